"""Strategy files: which part of each tensor a rank holds, in the protobuf that MindSpore's own transforms read.

MindSpore writes no such file in data parallel, so `write_strategy` does, with every tensor whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mindrlhf.runtime.errors import CorruptCheckpoint, IncompleteCheckpoint, UserError, some
from mindrlhf.runtime.files import PathLike, replacing

STRATEGY = "strategy"  # the folder of these files in an output folder

_NAME = re.compile(r"ckpt_strategy_rank_(\d+)\.ckpt")
# What optimizers put before the name of a parameter to name its state; strategies list it, checkpoints mostly do not.
_STATES = (
    "adam_m",
    "adam_v",
    "accu_grads",
    "exp_avg",
    "exp_avg_sq",
    "moments",
    "moment1",
    "moment2",
    "momentum",
    "stat",
)


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


@dataclass(frozen=True)
class Strategy:
    """The layouts of a whole run.

    source: the folder (or file) they were read from. stages: for each pipeline stage the layout of each tensor, by
    name; the ranks of a stage follow each other. size: ranks of a stage.
    """

    source: Path
    stages: tuple[Mapping[str, TensorLayout], ...]
    size: int

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.size * len(self.stages)

    def stage_of(self, rank: int) -> Mapping[str, TensorLayout]:
        """The layouts of the stage of a rank, whose number within it is `rank % size`."""
        return self.stages[rank // self.size]

    @cached_property
    def names(self) -> frozenset[str]:
        """Every tensor of every stage."""
        return frozenset(name for layouts in self.stages for name in layouts)

    @cached_property
    def states(self) -> frozenset[str]:
        """Tensors that are an optimizer's state of others, and are not missed where weights alone were saved."""
        found = {name for name in self.names if name.partition(".")[0] in _STATES}
        return frozenset(name for name in found if name.partition(".")[2] in self.names)

    @property
    def whole(self) -> bool:
        """Whether every rank holds every tensor in full."""
        return len(self.stages) == 1 and all(is_whole(layout) for layout in self.stages[0].values())


def is_whole(layout: TensorLayout) -> bool:
    """Whether every rank holds the full tensor."""
    used = [axis for axes in layout.tensor_map for axis in axes]
    split = any(layout.dev_matrix[-1 - axis] > 1 for axis in used)
    others = layout.devices // math.prod(layout.dev_matrix[-1 - axis] for axis in used)
    size = layout.opt_weight_shard_size if layout.opt_weight_shard_step else 0
    shared = size > 1 or (size < 0 and others > 1)
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
    write_layouts(path, {name: TensorLayout((world,), ((),) * len(shape)) for name, shape in shapes.items()})
    remove_beyond(Path(path).parent, world)


def write_layouts(path: PathLike, layouts: Mapping[str, TensorLayout], stage: int = 0) -> None:
    """Write the strategy file of one rank of a pipeline stage."""
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    strategy = ParallelStrategyMap(current_stage=0)
    for name, layout in sorted(layouts.items()):
        # MindSpore takes the stage from the first operator and refuses a file without any.
        operator = strategy.parallel_strategy_item.add(node_name=f"Replicate_{name}")
        operator.parallel_strategys.stage = stage
        counts = [math.prod(layout.dev_matrix[-1 - axis] for axis in axes) for axes in layout.tensor_map]
        operator.parallel_strategys.parallel_strategy.add(dim=counts)
        proto = strategy.parallel_layout_item.add(param_name=name).parallel_layouts
        proto.dev_matrix.add(dim=layout.dev_matrix)
        # Lists of their own only where an axis is split by several: MindSpore reads those otherwise.
        if any(len(axes) > 1 for axes in layout.tensor_map):
            for axes in layout.tensor_map:
                proto.tensor_map.add(dim=axes or [-1])
            if len(layout.tensor_map) == 1:
                proto.tensor_map.add()  # one list alone would be one axis for each of its entries
        else:
            proto.tensor_map.add(dim=[axes[0] if axes else -1 for axes in layout.tensor_map])
        proto.param_split_shape.add()
        proto.indices_offset.add()
        proto.field = layout.field
        proto.opt_weight_shard_step = layout.opt_weight_shard_step
        proto.opt_weight_shard_size = layout.opt_weight_shard_size
    with replacing(path) as temporary:
        temporary.write_bytes(strategy.SerializeToString(deterministic=True))


def write_stages(folder: PathLike, stages: Sequence[Mapping[str, TensorLayout]]) -> None:
    """Write the files of all ranks of a run, as training leaves them; those of ranks beyond it are removed."""
    sizes = [next(iter(layouts.values())).devices for layouts in stages]
    rank = 0
    for stage, (layouts, size) in enumerate(zip(stages, sizes)):
        for _ in range(size):
            write_layouts(strategy_path(folder, rank), layouts, stage)
            rank += 1
    remove_beyond(Path(folder), rank)


def remove_beyond(folder: Path, world: int) -> None:
    """Remove the files of ranks that an earlier, larger run left."""
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
    layouts: dict[str, TensorLayout] = {}
    for item in strategy.parallel_layout_item:
        proto = item.parallel_layouts
        maps = [tuple(entry.dim) for entry in proto.tensor_map]
        # One list names one grid axis (or -1) per tensor axis; of several each is for a tensor axis, unless empty.
        axes = [(axis,) for axis in maps[0]] if len(maps) == 1 else [axes for axes in maps if axes]
        layout = TensorLayout(
            dev_matrix=tuple(proto.dev_matrix[0].dim) if proto.dev_matrix else (),
            tensor_map=tuple(tuple(axis for axis in split if axis != -1) for split in axes),
            field=proto.field,
            opt_weight_shard_step=proto.opt_weight_shard_step,
            opt_weight_shard_size=proto.opt_weight_shard_size,
        )
        _check(layout, item.param_name, path)
        if layouts.setdefault(item.param_name, layout) != layout:
            raise CorruptCheckpoint(f"the strategy file {path} is damaged: it has two layouts of {item.param_name}")
    return layouts


def read_strategies(source: PathLike) -> Strategy:
    """The layouts of all ranks, from the folder that training left: one file per rank, equal within a stage.

    source: that folder, or one file: of a rank, where the run had one stage, or what mindspore.merge_pipeline_strategys
    made of several. Raises `IncompleteCheckpoint`
    where a rank or a stage has no file, `CorruptCheckpoint` where files contradict each other, `UserError` where there
    are none or more than the run had.
    """
    place = Path(source)
    if place.is_file():
        layouts = read_strategy(place)
        return Strategy(place, _merged_stages(layouts, place), _devices(layouts, place))
    if not place.is_dir():
        raise UserError(f"there is no folder {place}; name the strategy folder of the run, or leave it out")
    ranks = strategy_ranks(place)
    if not ranks:
        raise UserError(f"{place} holds no strategy (looked for ckpt_strategy_rank_K.ckpt)")
    first = strategy_path(place, ranks[0])
    size = _devices(read_strategy(first), first)
    _check_ranks(place, ranks, size)
    stages = tuple(_stage(place, range(start, start + size)) for start in range(0, len(ranks), size))
    _check_disjoint(place, stages, size)
    return Strategy(place, stages, size)


def _merged_stages(layouts: dict[str, TensorLayout], path: Path) -> tuple[dict[str, TensorLayout], ...]:
    """The stages of a merged file, which names a tensor STAGE-NAME; of any other file the only one."""
    parts = {name: name.partition("-") for name in layouts}
    if not all(dash and number.isdecimal() for number, dash, _ in parts.values()):
        return (layouts,)
    stages: dict[int, dict[str, TensorLayout]] = {}
    for name, (number, _, rest) in parts.items():
        stages.setdefault(int(number), {})[rest] = layouts[name]
    missing = sorted(set(range(max(stages) + 1)) - stages.keys())
    if missing:
        raise IncompleteCheckpoint(f"{path} lacks stage {some(list(map(str, missing)))}; merge the files of all stages")
    return tuple(stages[number] for number in sorted(stages))


def _devices(layouts: Mapping[str, TensorLayout], path: Path) -> int:
    """The number of ranks of a stage, which all its layouts are for."""
    sizes = sorted({layout.devices for layout in layouts.values()})
    if len(sizes) > 1:
        raise CorruptCheckpoint(f"{path} is damaged: its layouts are for {some(list(map(str, sizes)))} ranks")
    held_apart = [name for name, layout in layouts.items() if layout.field]
    if held_apart:
        raise UserError(f"{path} splits {some(held_apart)} by fields of a table, which is not supported")
    return sizes[0]


def _check_ranks(folder: Path, ranks: list[int], size: int) -> None:
    """Raise where `ranks`, ascending, are not 0 to N - 1 with N a multiple of `size`."""
    world = -(-(ranks[-1] + 1) // size) * size
    missing = sorted(set(range(world)) - set(ranks))
    if not missing:
        return
    stages = f"each of its {world // size} stages has {size} ranks" if world > size else f"the run had {size} ranks"
    raise IncompleteCheckpoint(
        f"{folder} lacks the strategy of rank {some(list(map(str, missing)))}: {stages}; copy it from its "
        f"machine, or compile without --dry_run_ranks"
    )


def _stage(folder: Path, ranks: range) -> dict[str, TensorLayout]:
    """The layouts that the files of all ranks of a stage state alike."""
    first = strategy_path(folder, ranks[0])
    layouts, seen = read_strategy(first), {first.read_bytes()}
    if _devices(layouts, first) != len(ranks):
        raise CorruptCheckpoint(f"{first} is for {_devices(layouts, first)} ranks, that of rank 0 for {len(ranks)}")
    for rank in ranks[1:]:
        path = strategy_path(folder, rank)
        data = path.read_bytes()
        # Files of one stage are mostly equal bytes; the order of their items is not promised.
        if data not in seen and read_strategy(path) != layouts:
            raise CorruptCheckpoint(
                f"the strategies of ranks {ranks[0]} and {rank} in {folder} differ; they must be of one run"
            )
        seen.add(data)
    return layouts


def _check_disjoint(folder: Path, stages: Sequence[Mapping[str, TensorLayout]], size: int) -> None:
    """Raise where a stage has no tensor of its own: its files are copies, or of another run."""
    for number, layouts in enumerate(stages):
        others = {name for other in stages[:number] for name in other}
        if number and not layouts.keys() - others:
            raise UserError(
                f"{folder} holds the strategies of ranks {number * size} to {number * size + size - 1}, whose tensors "
                f"are all those of ranks before them, and a stage has {size} ranks: of which run are they?"
            )


def _check(layout: TensorLayout, name: str, path: PathLike) -> None:
    """Raise `CorruptCheckpoint` where a layout contradicts itself."""
    axes = [axis for split in layout.tensor_map for axis in split]
    grid = len(layout.dev_matrix)
    wrong = not layout.devices or any(not 0 <= axis < grid for axis in axes) or len(set(axes)) != len(axes)
    if not wrong and layout.opt_weight_shard_step:
        size = layout.opt_weight_shard_size
        others = layout.devices // math.prod(layout.dev_matrix[-1 - axis] for axis in axes)
        wrong = size < -1 or (size > 0 and others % size > 0)
    if wrong:
        raise CorruptCheckpoint(f"the strategy file {path} is damaged: {name} has the layout {layout}")
