from __future__ import annotations

import contextlib
from pathlib import Path

import mindspore
import numpy as np
import pytest

from mindrlhf.checkpoint.store import find_weights, read_weights, save_weights
from mindrlhf.parallel.strategy import (
    TensorLayout,
    is_whole,
    read_strategies,
    read_strategy,
    strategy_path,
    strategy_ranks,
    write_layouts,
    write_stages,
    write_strategy,
)
from mindrlhf.runtime.errors import CorruptCheckpoint, IncompleteCheckpoint, UserError

SHAPES = {"layer.weight": (4, 6), "layer.bias": (4,), "scale": ()}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = strategy_path(tmp_path, 1)
    assert path == tmp_path / "ckpt_strategy_rank_1.ckpt"
    write_strategy(path, SHAPES, world=2)
    layouts = read_strategy(path)
    assert layouts == {name: TensorLayout((2,), ((),) * len(shape)) for name, shape in SHAPES.items()}
    assert all(is_whole(layout) and layout.devices == 2 for layout in layouts.values())


@pytest.mark.parametrize(
    ("layout", "whole"),
    [
        (TensorLayout((8,), ((), ())), True),
        (TensorLayout((2, 4), ((0,), ())), False),
        (TensorLayout((2, 4), ((), (1,))), False),
        (TensorLayout((2, 1), ((0,), ())), True),  # the axis that splits it has one device
        (TensorLayout((2, 4), ((1, 0), ())), False),
        (TensorLayout((2, 4), ((), ()), opt_weight_shard_step=4, opt_weight_shard_size=-1), False),
        (TensorLayout((1,), ((), ()), opt_weight_shard_step=1, opt_weight_shard_size=-1), True),
        (TensorLayout((8,), ((), ()), field=3), False),
    ],
)
def test_whole_means_that_every_rank_holds_all(layout: TensorLayout, whole: bool) -> None:
    assert is_whole(layout) is whole


def test_a_split_tensor_is_read_as_split(tmp_path: Path) -> None:
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    proto = ParallelStrategyMap(current_stage=2)
    for name, maps in {"one": [[0, -1]], "two": [[1, 0], [-1]]}.items():
        layout = proto.parallel_layout_item.add(param_name=name).parallel_layouts
        layout.dev_matrix.add(dim=[2, 4])
        for dims in maps:
            layout.tensor_map.add(dim=dims)
        layout.field, layout.opt_weight_shard_step, layout.opt_weight_shard_size = 0, 4, -1
    path = tmp_path / "strategy.ckpt"
    path.write_bytes(proto.SerializeToString())
    assert read_strategy(path) == {
        "one": TensorLayout((2, 4), ((0,), ()), 0, 4, -1),
        "two": TensorLayout((2, 4), ((1, 0), ()), 0, 4, -1),
    }


def test_a_smaller_run_removes_the_ranks_of_a_larger_one(tmp_path: Path) -> None:
    for rank in range(11):
        write_strategy(strategy_path(tmp_path, rank), SHAPES, world=11)
    assert strategy_ranks(tmp_path) == list(range(11))
    write_strategy(strategy_path(tmp_path, 0), SHAPES, world=2)
    assert strategy_ranks(tmp_path) == [0, 1]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no strategy file .*ckpt_strategy_rank_3\.ckpt"):
        read_strategy(strategy_path(tmp_path, 3))


def test_a_cut_or_flipped_file_is_never_taken_for_the_original(tmp_path: Path) -> None:
    path = strategy_path(tmp_path, 0)
    write_strategy(path, SHAPES, world=2)
    whole, layouts = path.read_bytes(), read_strategy(path)
    damaged = [whole[:length] for length in range(len(whole))]
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            assert read_strategy(path) != layouts
        except CorruptCheckpoint:
            refused += 1
    assert refused > 0.9 * len(damaged)
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        # Some flips change only what nobody reads; none may end in another error.
        with contextlib.suppress(CorruptCheckpoint):
            read_strategy(path)


def test_any_layout_that_is_written_is_read(tmp_path: Path) -> None:
    layouts = {
        "column": TensorLayout((2, 4), ((0,), ())),
        "row": TensorLayout((2, 4), ((), (0,)), 0, 4, -1),
        "both": TensorLayout((2, 4), ((1, 0), ()), 0, 0, 0),
        "one axis": TensorLayout((2, 4), ((1, 0),)),
        "scalar": TensorLayout((2, 4), ()),
    }
    write_layouts(strategy_path(tmp_path, 0), layouts)
    assert read_strategy(strategy_path(tmp_path, 0)) == layouts


def test_the_files_of_a_run_are_read_as_its_stages(tmp_path: Path) -> None:
    first = {"embedding": TensorLayout((2, 2), ((0,), ())), "adam_m.head": TensorLayout((2, 2), ((0,), ()))}
    last = {"head": TensorLayout((2, 2), ((0,), ())), "adam_m.adam": TensorLayout((2, 2), ((), ()))}
    write_stages(tmp_path, [first, last])
    strategy = read_strategies(tmp_path)
    assert (strategy.world, strategy.size, strategy.stages) == (8, 4, (first, last))
    assert [strategy.stage_of(rank) for rank in (0, 3, 4, 7)] == [first, first, last, last]
    assert strategy.states == {"adam_m.head"}
    assert not strategy.whole


def test_the_order_of_items_does_not_count(tmp_path: Path) -> None:
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    layouts = {name: TensorLayout((2,), ((0,),)) for name in ("a", "b", "c")}
    write_stages(tmp_path, [layouts])
    proto = ParallelStrategyMap.FromString(strategy_path(tmp_path, 1).read_bytes())
    items = list(proto.parallel_layout_item)
    del proto.parallel_layout_item[:]
    proto.parallel_layout_item.extend(reversed(items))
    strategy_path(tmp_path, 1).write_bytes(proto.SerializeToString())
    assert read_strategies(tmp_path).stages == (layouts,)


def test_one_file_stands_for_all_ranks_of_a_single_stage(tmp_path: Path) -> None:
    layouts = {"a": TensorLayout((4,), ((0,),))}
    write_layouts(tmp_path / "any.ckpt", layouts)
    strategy = read_strategies(tmp_path / "any.ckpt")
    assert (strategy.world, strategy.stages) == (4, (layouts,))


def test_a_merged_file_has_the_stages_in_its_names(tmp_path: Path) -> None:
    layout = TensorLayout((4,), ((0,),))
    write_layouts(tmp_path / "merged.ckpt", {"0-a": layout, "1-b": layout})
    assert read_strategies(tmp_path / "merged.ckpt").stages == ({"a": layout}, {"b": layout})
    write_layouts(tmp_path / "merged.ckpt", {"0-a": layout, "2-b": layout})
    with pytest.raises(IncompleteCheckpoint, match=r"merged\.ckpt lacks stage 1; merge the files of all stages"):
        read_strategies(tmp_path / "merged.ckpt")


@pytest.mark.parametrize(
    ("layout", "sentence"),
    [
        (TensorLayout((2, 2), ((2,),)), "is damaged: a has the layout"),
        (TensorLayout((2, 2), ((0,), (0,))), "is damaged: a has the layout"),
        (TensorLayout((2, 2), ((0,),), 0, 1, 4), "is damaged: a has the layout"),
        (TensorLayout((2, 2), ((),), 3), "splits a by fields of a table"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(tmp_path: Path, layout: TensorLayout, sentence: str) -> None:
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    write_layouts(tmp_path / "x.ckpt", {"a": TensorLayout((2, 2), ((),) * len(layout.tensor_map))})
    proto = ParallelStrategyMap.FromString((tmp_path / "x.ckpt").read_bytes())
    found = proto.parallel_layout_item[0].parallel_layouts
    found.tensor_map[0].dim[:] = [axes[0] if axes else -1 for axes in layout.tensor_map]
    found.field, found.opt_weight_shard_step = layout.field, layout.opt_weight_shard_step
    found.opt_weight_shard_size = layout.opt_weight_shard_size
    (tmp_path / "x.ckpt").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match=sentence):
        read_strategies(tmp_path / "x.ckpt")


@pytest.mark.parametrize("output_format", ["safetensors", "ckpt"])
def test_mindspores_own_transform_accepts_it(tmp_path: Path, output_format: str) -> None:
    random = np.random.default_rng(0)
    arrays = {name: np.asarray(random.normal(size=shape), np.float32) for name, shape in SHAPES.items()}
    for rank in range(2):
        write_strategy(strategy_path(tmp_path / "strategy", rank), SHAPES, world=2)
        folder = tmp_path / "source" / f"rank_{rank}"
        if output_format == "ckpt":
            folder.mkdir(parents=True)
            parameters = [{"name": name, "data": mindspore.Tensor(array)} for name, array in arrays.items()]
            mindspore.save_checkpoint(parameters, str(folder / "checkpoint_0.ckpt"))
        else:
            save_weights(arrays, folder / "checkpoint_0.safetensors")
    mindspore.transform_checkpoints(
        str(tmp_path / "source"),
        str(tmp_path / "merged"),
        "checkpoint_",
        str(strategy_path(tmp_path / "strategy", 0)),
        output_format=output_format,
    )
    merged = read_weights(find_weights(tmp_path / "merged" / "rank_0"))
    assert merged.keys() == arrays.keys()
    assert all(np.array_equal(merged[name], arrays[name]) for name in arrays)
