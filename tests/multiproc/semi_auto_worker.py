"""A few DPO steps of micro models under MindSpore's semi-auto parallel, really executed on CPU by every worker.

    semi_auto_worker.py DP MP FOLDER NAME...          once, or by msrun on DP x MP workers

Writes FOLDER/NAME-DPxMP-RANK.npz: the `losses` and `norms` of the steps, and what this worker holds of every parameter
before and after them. One worker computes the same without the parallel passes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mindrlhf.runtime.logging import quiet

quiet()
sys.path.append(str(Path(__file__).resolve().parents[1] / "golden"))

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from contract import BETA, LENGTH, LOSS, batches  # noqa: E402
from divided_operators import divide_functions, divide_operators  # noqa: E402
from micro_models import MODELS, weights  # noqa: E402
from mindspore import nn, ops  # noqa: E402

from mindrlhf.cells.train_step import TrainStep  # noqa: E402
from mindrlhf.checkpoint.store import load_parameters  # noqa: E402
from mindrlhf.config.load import load_config  # noqa: E402
from mindrlhf.models import BuildOptions, families  # noqa: E402
from mindrlhf.parallel import context  # noqa: E402
from mindrlhf.parallel.gate import open_gate  # noqa: E402
from mindrlhf.parallel.groups import WORLD, known_groups  # noqa: E402
from mindrlhf.parallel.layout import Layout  # noqa: E402
from mindrlhf.runtime.device import setup  # noqa: E402
from mindrlhf.trainers.registry import build_preference_cell, loss_settings  # noqa: E402

# The norm of the first gradient is above the bound, that of the last below.
STEPS, RATE, MAX_GRAD_NORM = 3, 0.2, 1.0
CHUNK = 48  # of the 128 scored tokens there are
FAMILY_OF = {name: family for family, variants in MODELS.items() for name in variants}
ONE_LAYER = {"num_hidden_layers": 1, "num_layers": 1}
OTHER_SIZES = {"baichuan2-13b": {"hidden_size": 32, "num_attention_heads": 4}}  # its five heads cannot be divided


def open_semi_auto(layout: Layout, rank: int) -> None:
    """Let MindSpore's parallel passes work on CPU, with real groups of workers under the names that they use."""
    from mindspore.communication import create_group
    from mindspore.parallel._auto_parallel_context import auto_parallel_context

    # The passes are meant here also where data parallel does without them.
    Layout.semi_auto = property(lambda self: self.world > 1)  # type: ignore[assignment,method-assign]
    open_gate()
    context.enter(layout, rank)
    # By it the passes ask nobody how many workers there are.
    auto_parallel_context()._context_handle.set_hccl_test_avaible(True)
    create_group(WORLD, list(range(layout.world)))
    # In one order on all workers.
    for name, ranks in sorted(known_groups(layout.world).items(), key=lambda item: (len(item[1]), item[1])):
        if 1 < len(ranks) < layout.world and rank in ranks:
            create_group(name, list(ranks))


def build(name: str, layout: Layout) -> nn.Cell:
    """The preference cell of a micro model of tests/golden, of one layer, with the formula's weights."""
    family = families()[FAMILY_OF[name]]
    config = {**MODELS[family.name][name], **OTHER_SIZES.get(name, {}), **ONE_LAYER}
    settings = family.from_hf_config(config, BuildOptions(seq_length=LENGTH, layout=layout.of_model))
    # The head whole on every worker, also where GPTModel divides its own: the maximum over its parts has no kernel.
    settings["parallel_config"]["vocab_emb_dp"] = True
    loss = loss_settings(load_config(None, [f"rlhf.loss={LOSS}", f"rlhf.beta={BETA}"]))
    cell = build_preference_cell(family, settings, loss, layout.of_model)
    shapes = {tensor: shape for group in family.tensors(config) for tensor, shape in group.hf.items()}
    parameters = {parameter.name: parameter for parameter in cell.get_parameters()}
    load_parameters(parameters, family.hf_to_ms(weights(shapes), config), name)
    if layout.world > 1:
        divide_operators(cell.score.backbone, layout)
        # Three chunks of scored tokens, as long rows have them.
        cell.score.score.chunk = CHUNK
        # What is said of each pair stays with its worker: there is no kernel to gather it.
        cell.whole = ops.Identity().shard((layout.rows(2),))
    return cell


def held(cell: nn.Cell, when: str) -> dict[str, np.ndarray]:
    """Copies of what this worker has of each parameter."""
    return {f"{when} {parameter.name}": parameter.asnumpy().copy() for parameter in cell.trainable_params()}


def train(name: str, layout: Layout) -> dict[str, Any]:
    """What one worker sees of a model's training, by SGD: Adam would hide a wrong scale of the gradients."""
    cell = build(name, layout)
    optimizer = nn.SGD(cell.trainable_params(), learning_rate=RATE)
    step = TrainStep(cell, optimizer, MAX_GRAD_NORM, passes=1, reduce_over=1, split_over=layout.world)
    step.set_train()
    batch = tuple(map(ms.Tensor, batches(1)[0]))
    step.compile(True, *batch)  # which divides the parameters
    found: dict[str, Any] = held(cell, "before")
    seen = [step(True, *batch) for _ in range(STEPS)]
    found["losses"] = [float(sums.asnumpy()[:2].sum()) for sums, _, _ in seen]
    found["norms"] = [float(norm.asnumpy()) for _, norm, _ in seen]
    return {**found, **held(cell, "after")}


def main(data_parallel: int, model_parallel: int, folder: Path, names: list[str]) -> None:
    """Train one model after the other."""
    device = setup("CPU")
    layout = Layout(data_parallel=data_parallel, model_parallel=model_parallel)
    if layout.world > 1:
        open_semi_auto(layout, device.rank)
        divide_functions()
    for name in names:
        np.savez(folder / f"{name}-{data_parallel}x{model_parallel}-{device.rank}.npz", **train(name, layout))
    device.leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
