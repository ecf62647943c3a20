"""Strategy files: which part of each tensor a rank holds, in the protobuf that MindSpore's own transforms read.

MindSpore writes no such file in data parallel, so `write_strategy` does, with every tensor whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindrlhf.runtime.errors import CorruptCheckpoint, UserError
from mindrlhf.runtime.files import PathLike, replacing

_NAME = re.compile(r"ckpt_strategy_rank_(\d+)\.ckpt")


@dataclass(frozen=True)
class TensorLayout:
    """How one tensor lies on the devices of a stage.

    dev_matrix: the devices as a grid, the last axis fastest. tensor_map: for each tensor axis the grid axes that split
    it, counted from the right; () where it is whole. field: rows of an embedding held apart, 0 for none.
    opt_weight_shard_step, opt_weight_shard_size: stride and number of the ranks that share axis 0 of a slice between
    them (-1: all that hold the same slice), 0 for none.
    """

    dev_matrix: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    field: int = 0
    opt_weight_shard_step: int = 0
    opt_weight_shard_size: int = 0

    @property
    def devices(self) -> int:
        """Number of devices of the stage."""
        return math.prod(self.dev_matrix)


def is_whole(layout: TensorLayout) -> bool:
    """Whether every rank holds the full tensor."""
    split = any(layout.dev_matrix[-1 - axis] > 1 for axes in layout.tensor_map for axis in axes)
    shared = layout.devices > 1 and (layout.opt_weight_shard_step, layout.opt_weight_shard_size) != (0, 0)
    return not split and not shared and layout.field == 0


def strategy_path(folder: PathLike, rank: int) -> Path:
    """Where the strategy of a rank lies in a strategy folder."""
    return Path(folder) / f"ckpt_strategy_rank_{rank}.ckpt"


def strategy_ranks(folder: PathLike) -> list[int]:
    """The ranks that have a strategy file in `folder`, ascending."""
    return sorted(int(match.group(1)) for file in Path(folder).iterdir() if (match := _NAME.fullmatch(file.name)))


def write_strategy(path: PathLike, shapes: Mapping[str, Sequence[int]], world: int) -> None:
    """Write the strategy of one rank for tensors that are whole on each of `world` ranks.

    The files of ranks that an earlier, larger run left beside it are removed.
    """
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    strategy = ParallelStrategyMap(current_stage=0)
    for name, shape in sorted(shapes.items()):
        # MindSpore takes the stage from the first operator and refuses a file without any.
        operator = strategy.parallel_strategy_item.add(node_name=f"Replicate_{name}")
        operator.parallel_strategys.stage = 0
        operator.parallel_strategys.parallel_strategy.add(dim=[1] * len(shape))
        layout = strategy.parallel_layout_item.add(param_name=name).parallel_layouts
        layout.dev_matrix.add(dim=[world])
        layout.tensor_map.add(dim=[-1] * len(shape))
        layout.param_split_shape.add()
        layout.indices_offset.add()
        layout.field = layout.opt_weight_shard_step = layout.opt_weight_shard_size = 0
    with replacing(path) as temporary:
        temporary.write_bytes(strategy.SerializeToString(deterministic=True))
    folder = Path(path).parent
    for other in strategy_ranks(folder):
        if other >= world:
            strategy_path(folder, other).unlink(missing_ok=True)


def read_strategy(path: PathLike) -> dict[str, TensorLayout]:
    """The layout of every tensor.

    Raises `UserError` where there is no file, `CorruptCheckpoint` where it is damaged.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    if not Path(path).is_file():
        raise UserError(f"there is no strategy file {path}")
    strategy = ParallelStrategyMap()
    try:
        strategy.ParseFromString(Path(path).read_bytes())
    except (DecodeError, ValueError) as error:
        raise CorruptCheckpoint(f"the strategy file {path} is damaged: {error}") from error
    if not strategy.IsInitialized() or not strategy.parallel_layout_item:
        raise CorruptCheckpoint(f"the strategy file {path} is damaged: it holds no layout")
    layouts = {}
    for item in strategy.parallel_layout_item:
        proto = item.parallel_layouts
        maps = [tuple(entry.dim) for entry in proto.tensor_map]
        # One list names one grid axis (or -1) per tensor axis; several lists are one per tensor axis.
        axes = [(axis,) for axis in maps[0]] if len(maps) == 1 else maps
        layout = TensorLayout(
            dev_matrix=tuple(proto.dev_matrix[0].dim) if proto.dev_matrix else (),
            tensor_map=tuple(tuple(axis for axis in split if axis != -1) for split in axes),
            field=proto.field,
            opt_weight_shard_step=proto.opt_weight_shard_step,
            opt_weight_shard_size=proto.opt_weight_shard_size,
        )
        _check(layout, item.param_name, path)
        layouts[item.param_name] = layout
    return layouts


def _check(layout: TensorLayout, name: str, path: PathLike) -> None:
    """Raise `CorruptCheckpoint` where a layout contradicts itself."""
    axes = [axis for split in layout.tensor_map for axis in split]
    grid = len(layout.dev_matrix)
    if not layout.devices or any(not 0 <= axis < grid for axis in axes) or len(set(axes)) != len(axes):
        raise CorruptCheckpoint(f"the strategy file {path} is damaged: {name} has the layout {layout}")
