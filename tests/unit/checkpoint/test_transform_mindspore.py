"""The same layouts through MindSpore's own transform: it must cut and join as ours does."""

from __future__ import annotations

from pathlib import Path

import mindspore
import numpy as np
import pytest
from sliced_runs import Stages, cut, dense, model, random_layout, same

from mindrlhf.checkpoint.find import find_weights, rank_file
from mindrlhf.checkpoint.merge import transform
from mindrlhf.checkpoint.store import network_file
from mindrlhf.checkpoint.tensors import read_weights
from mindrlhf.parallel.slices import box_of, whole, within
from mindrlhf.parallel.strategy import TensorLayout, read_strategies, strategy_path, write_stages

pytestmark = pytest.mark.slow
ARRAYS = model()
PAIRS = [
    (dense(ARRAYS, 2, 4), dense(ARRAYS, 4, 2)),
    (dense(ARRAYS, 2, 4, shard=True), dense(ARRAYS, 8, 1, shard=True)),
    (dense(ARRAYS, 2, 2, 2), dense(ARRAYS, 2, 4, shard=True)),
    (dense(ARRAYS, 4, 2), dense(ARRAYS, 2, 2, 2, shard=True)),
]


def merged_strategy(folder: Path, stages: Stages) -> str:
    """The one file of all stages that MindSpore's transform asks for."""
    write_stages(folder, stages)
    if len(stages) == 1:
        return str(strategy_path(folder, 0))
    mindspore.merge_pipeline_strategys(str(folder), str(folder / "merged.ckpt"))
    return str(folder / "merged.ckpt")


def held(folder: Path, world: int) -> list[dict[str, np.ndarray]]:
    return [read_weights(find_weights(rank_file(folder / f"rank_{rank}"))) for rank in range(world)]


@pytest.mark.parametrize("pair", range(len(PAIRS)))
def test_a_reshard_gives_every_rank_what_mindspore_gives_it(tmp_path: Path, pair: int) -> None:
    before, after = PAIRS[pair]
    source = cut(tmp_path / "out", ARRAYS, before, "ckpt")
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    strategies = [merged_strategy(tmp_path / name, stages) for name, stages in (("a", before), ("b", after))]
    mindspore.transform_checkpoints(str(source / "checkpoint_network"), str(theirs), "checkpoint_", *strategies)
    transform(source, ours, dst_strategy=strategies[1])
    assert read_strategies(ours / "strategy").stages == tuple(after)
    transform(source, tmp_path / "one", src_strategy=strategies[0])
    assert same(read_weights(find_weights(tmp_path / "one")), ARRAYS)
    mine = [read_weights(find_weights(copy_of(ours, rank, tmp_path))) for rank in range(8)]
    assert all(same(one, other) for one, other in zip(held(theirs, 8), mine))


def copy_of(folder: Path, rank: int, place: Path) -> Path:
    """A rank's file where no strategy lies beside it."""
    target = place / f"{rank}.ckpt"
    target.write_bytes(network_file(folder, rank).with_suffix(".ckpt").read_bytes())
    return target


@pytest.mark.parametrize("seed", range(4))
def test_any_layout_is_cut_as_mindspore_cuts_it(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    arrays, layouts = {}, {}
    for k in range(40):
        shape = [(16, 8), (8, 16, 32), (32,), (64, 64)][k % 4]
        layout = random_layout(random, shape, 8, shard=k % 3 > 0)
        arrays[f"x{k}.weight"] = random.normal(size=shape).astype(np.float32)
        layouts[f"x{k}.weight"] = layout
    cut(tmp_path / "one", arrays, [{name: TensorLayout((1,), ((),) * a.ndim) for name, a in arrays.items()}], "ckpt")
    write_stages(tmp_path / "layouts", [layouts])
    mindspore.transform_checkpoints(
        str(tmp_path / "one" / "checkpoint_network"),
        str(tmp_path / "cut"),
        "checkpoint_",
        None,
        str(strategy_path(tmp_path / "layouts", 0)),
    )
    for rank, found in enumerate(held(tmp_path / "cut", 8)):
        for name, array in arrays.items():
            box = box_of(layouts[name], array.shape, rank)
            assert np.array_equal(found[name], array[within(box, whole(array.shape))]), layouts[name]
