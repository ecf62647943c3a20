"""What a transform reads: the ranks of a run, or a whole checkpoint as the only rank of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mindrlhf.checkpoint.find import (
    Weights,
    find_weights,
    is_rank_folder,
    network_folder,
    rank_files,
    rank_folders,
)
from mindrlhf.checkpoint.rank_slices import RankSlices
from mindrlhf.checkpoint.tensor_file import Spec
from mindrlhf.checkpoint.tensors import Tensors
from mindrlhf.parallel.strategy import STRATEGY, Strategy, TensorLayout, read_strategies, strategy_ranks
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import PathLike


def source_weights(checkpoint: PathLike, strategy: PathLike | None = None) -> Weights:
    """The weights to transform, the files of all ranks even where each holds everything.

    checkpoint: a folder of rank folders, the output folder around it, or a whole checkpoint as `find_weights` takes it.
    strategy: the strategy folder of the run; where not given, `strategy` beside the folder of rank folders, if it is
    there. Raises `UserError` where several ranks come without.
    """
    place = Path(checkpoint)
    if strategy and not place.is_dir():
        what = f"{place} is a file" if place.is_file() else f"there is no folder {place}"
        raise UserError(f"{what}; with a strategy, name the checkpoint_network of the run")
    if place.is_dir() and not is_rank_folder(place):
        network = network_folder(place)
        folders = rank_folders(network)
        beside = network.parent / STRATEGY
        found = Path(strategy) if strategy else beside if folders and _has_strategy(beside) else None
        if found:
            layouts = read_strategies(found)
            files = rank_files(network, layouts)
            return Weights(tuple(files), network, files[0].suffix[1:], strategy=layouts)
        if len(folders) > 1:
            raise UserError(
                f"{network} holds {len(folders)} rank folders, and {beside} no strategy; name the strategy folder of "
                f"the run with --src_strategy"
            )
    weights = find_weights(place)
    if weights.format == "bin":
        raise UserError(f"{weights} is in PyTorch's format; convert it first with tools/convert_weight.py")
    return weights


def open_source(checkpoint: PathLike, strategy: PathLike | None = None) -> tuple[RankSlices, Path]:
    """The same opened, and the folder where config.json and the tokenizer's files lie; raises as `RankSlices`."""
    weights = source_weights(checkpoint, strategy)
    if weights.strategy:
        return RankSlices(weights.files, weights.format, weights.strategy), weights.folder
    with Tensors(weights) as opened:
        tables = opened.tables()
    layouts = whole_strategy(tables, weights.folder)
    beside = all(is_rank_folder(file.parent) for file in weights.files)
    return RankSlices(weights.files, weights.format, layouts, beside=beside, owned=False), weights.folder


def whole_strategy(tables: Sequence[Mapping[str, Spec]], source: Path) -> Strategy:
    """That each file holds its own tensors, whole."""
    stages = [{name: TensorLayout((1,), ((),) * len(spec.shape)) for name, spec in table.items()} for table in tables]
    return Strategy(source, tuple(stages), 1)


def _has_strategy(folder: Path) -> bool:
    return folder.is_dir() and bool(strategy_ranks(folder))
