"""DPO steps whose graphs MindSpore's parallel passes have split, executed on CPU: as one process computes them.

Every family over data and over model parallel, and both kinds of MindFormers' classes over the two together; the head
is whole on every worker. What has no kernel on CPU is not here: the head divided over its vocabulary, sequence
parallel (without which experts cannot be divided over model parallel), optimizer shards, spread experts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mindspore
import numpy as np
import pytest
from pipeline_shell import ROOT, Ended, Shell

from mindrlhf.parallel.gate import PROVEN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(mindspore.__version__ not in PROVEN, reason="the gate is not proven on this MindSpore"),
]

WORKER = Path(__file__).with_name("semi_auto_worker.py").relative_to(ROOT)
DENSE = ("llama", "qwen2-tied", "baichuan2-7b", "baichuan2-13b", "qwen3", "glm4")
EXPERTS = "qwen3_moe"
RUNS = {(1, 1): (*DENSE, EXPERTS), (2, 1): (*DENSE, EXPERTS), (1, 2): DENSE, (2, 2): ("qwen2-tied", "qwen3")}
SEEN = [(layout, name) for layout, names in RUNS.items() if layout != (1, 1) for name in names]
Trained = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[int, int], str], list[Trained]]:
    """What each worker of a layout (dp, mp) saw of a model's training; one job trains the models of a layout."""
    shell = Shell(tmp_path_factory.mktemp("semi-auto"))
    jobs: dict[tuple[int, int], Ended] = {}

    def seen(layout: tuple[int, int], name: str) -> list[Trained]:
        dp, mp = layout
        if layout not in jobs:
            jobs[layout] = shell(WORKER, dp, mp, shell.folder, *RUNS[layout], workers=dp * mp)
        files = [shell.folder / f"{name}-{dp}x{mp}-{rank}.npz" for rank in range(dp * mp)]
        assert all(file.is_file() for file in files), jobs[layout].err
        return [dict(np.load(file)) for file in files]

    return seen


def own_part(whole: np.ndarray, part: np.ndarray, number: int) -> np.ndarray:
    """What the worker with this number on the model axis has to hold of `whole`, by the shape of what it holds."""
    places = [
        slice(None) if size == full else slice(number * size, (number + 1) * size)
        for full, size in zip(whole.shape, part.shape)
    ]
    return whole[tuple(places)]


@pytest.mark.parametrize(("layout", "name"), SEEN, ids=[f"{name}-{dp}x{mp}" for (dp, mp), name in SEEN])
def test_training_is_that_of_one_process(
    layout: tuple[int, int], name: str, trained: Callable[[tuple[int, int], str], list[Trained]]
) -> None:
    (one,) = trained((1, 1), name)
    _, mp = layout
    # Both with the bound on the norm and without.
    assert one["norms"][0] > 1.0 > one["norms"][-1]
    for rank, worker in enumerate(trained(layout, name)):
        np.testing.assert_allclose(worker["losses"], one["losses"], rtol=0, atol=4e-6)
        np.testing.assert_allclose(worker["norms"], one["norms"], rtol=1e-5)
        assert worker.keys() == one.keys()
        for parameter in [key.removeprefix("before ") for key in one if key.startswith("before ")]:
            before, after = (worker[f"{when} {parameter}"] for when in ("before", "after"))
            if ".layers." in parameter and before.ndim == 2 and name != EXPERTS:
                assert before.size * mp == one[f"before {parameter}"].size, parameter
            np.testing.assert_array_equal(before, own_part(one[f"before {parameter}"], before, rank % mp), parameter)
            update = one[f"after {parameter}"].astype(np.float64) - one[f"before {parameter}"]
            largest = np.abs(update).max()
            assert largest > 1e-3, parameter
            difference = after.astype(np.float64) - before - own_part(update, before, rank % mp)
            # A norm's weights are about 1 and move by a hundredth: 1e-5 of that is their own last place.
            assert np.abs(difference).max() <= 1e-4 * largest, parameter
