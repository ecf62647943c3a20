"""A few DPO steps of micro models under MindSpore's semi-auto parallel, really executed on CPU, by every worker.

    python semi_auto_worker.py DP MP FOLDER NAME...

Writes FOLDER/NAME_dpDPmpMP_rankR.npz: `losses` and `norms` of the steps, and what this worker holds of every parameter
before and after them. One worker (DP = MP = 1) runs the same cells without the parallel passes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mindrlhf.runtime.logging import quiet

quiet()
sys.path.append(str(Path(__file__).resolve().parents[1] / "golden"))

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from semi_auto_models import MAX_GRAD_NORM, RATE, STEPS, of_name  # noqa: E402

from mindrlhf.runtime.device import setup  # noqa: E402


def without_lazy_inline(made=None, *_, **__):
    """lazy_inline keeps cells as graphs of their own, which the CPU does not run."""
    return made


def open_semi_auto(layout, rank: int) -> None:
    """Let MindSpore's parallel passes work on CPU, with real groups of workers under the names they use."""
    from mindspore.communication import create_group
    from mindspore.parallel._auto_parallel_context import auto_parallel_context

    from mindrlhf.parallel import context
    from mindrlhf.parallel.gate import open_gate
    from mindrlhf.parallel.groups import WORLD, known_groups
    from mindrlhf.parallel.layout import Layout

    # The passes are meant here also where data parallel alone would do without them.
    Layout.semi_auto = property(lambda self: self.world > 1)  # type: ignore[assignment,method-assign]
    open_gate()
    context.enter(layout, rank)
    # Without devices the passes think of 2048 ranks.
    auto_parallel_context()._context_handle.set_hccl_test_avaible(True)
    create_group(WORLD, list(range(layout.world)))
    for name, ranks in sorted(known_groups(layout.world).items(), key=lambda item: (len(item[1]), item[1])):
        if 1 < len(ranks) < layout.world and rank in ranks:
            create_group(name, list(ranks))


def held(cell) -> dict[str, np.ndarray]:
    return {parameter.name: parameter.asnumpy().copy() for parameter in cell.trainable_params()}


def train(name: str, layout, world: int) -> dict[str, np.ndarray]:
    """What one worker sees of a model's training."""
    from mindspore import nn

    from mindrlhf.cells.train_step import TrainStep

    cell, rows = of_name(name, layout)
    optimizer = nn.SGD(cell.trainable_params(), learning_rate=RATE)
    step = TrainStep(cell, optimizer, MAX_GRAD_NORM, passes=1, reduce_over=1, split_over=world)
    step.set_train()
    batch = tuple(map(ms.Tensor, rows))
    step.compile(True, *batch)
    before = held(cell)
    losses, norms = [], []
    for _ in range(STEPS):
        sums, norm, _ = step(True, *batch)
        losses.append(sums.asnumpy()[:2].sum())
        norms.append(norm.asnumpy())
    found = {"losses": np.array(losses), "norms": np.array(norms)}
    found.update({f"before.{key}": value for key, value in before.items()})
    found.update({f"after.{key}": value for key, value in held(cell).items()})
    return found


def main(data_parallel: int, model_parallel: int, folder: Path, names: list[str]) -> None:
    ms.common.lazy_inline = without_lazy_inline
    device = setup("CPU")
    from mindrlhf.parallel.layout import Layout

    layout = Layout(data_parallel=data_parallel, model_parallel=model_parallel)
    if device.world > 1:
        open_semi_auto(layout, device.rank)
    for name in names:
        found = train(name, layout, device.world)
        np.savez(folder / f"{name}_dp{data_parallel}mp{model_parallel}_rank{device.rank}.npz", **found)
        print(name, found["losses"].tolist(), found["norms"].tolist(), flush=True)
    device.leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
