"""The weights of many ranks into one checkpoint. Today every rank must hold every tensor whole (data parallel)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mindrlhf.checkpoint.store import (
    NETWORK,
    SUFFIXES,
    Weights,
    carry_files,
    network_folder,
    rank_file,
    rank_folders,
    read_tensors,
    sweep,
)
from mindrlhf.parallel.strategy import TensorLayout, is_whole, read_strategy, strategy_path, strategy_ranks
from mindrlhf.runtime.errors import CorruptCheckpoint, IncompleteCheckpoint, UserError, some
from mindrlhf.runtime.files import PathLike, replacing, sha256_file


@dataclass(frozen=True)
class Merged:
    """What a merge did. carried: names of the files copied beside the rank folder."""

    path: Path
    ranks: int
    tensors: int
    size: int
    carried: tuple[str, ...]


def merge(src_checkpoint: PathLike, src_strategy: PathLike, dst_checkpoint: PathLike) -> Merged:
    """Join the rank folders of `src_checkpoint` into `DST/checkpoint_network/rank_0/checkpoint_0.<ext>`.

    src_checkpoint: a folder of rank folders, or the output folder around it. src_strategy: the folder of the run's
    strategy files. Raises a `UserError` where ranks are missing, foreign, of different saves, or hold slices.
    """
    for folder in (src_checkpoint, src_strategy):
        if not Path(folder).is_dir():
            raise UserError(f"there is no folder {folder}; name the checkpoint_network and the strategy of one run")
    source, network = network_folder(src_checkpoint), Path(dst_checkpoint) / NETWORK
    _check_target(source, network)
    layouts = _agreed_layouts(Path(src_strategy))
    files = _rank_files(source, world=next(iter(layouts.values())).devices)
    split = [name for name, layout in layouts.items() if not is_whole(layout)]
    if split:
        raise UserError(
            f"{source} holds slices of {len(split)} tensors, and only whole ones can be merged: {some(split)}"
        )
    _check_replicas(files)
    count = _check_tensors(files[0], source, layouts)
    target = network / "rank_0" / f"checkpoint_0{files[0].suffix}"
    sweep(target.parent)
    with replacing(target) as temporary:
        shutil.copyfile(files[0], temporary)
    for suffix in SUFFIXES:
        if suffix != target.suffix:
            target.with_suffix(suffix).unlink(missing_ok=True)
    carried = carry_files(source, network)
    return Merged(target, len(files), count, target.stat().st_size, tuple(carried))


def _check_target(source: Path, network: Path) -> None:
    if not network.is_dir():
        return
    if network.samefile(source):
        raise UserError(f"the merged checkpoint would replace its source {source}: give another destination")
    others = [folder.name for rank, folder in rank_folders(network).items() if rank > 0]
    if others:
        raise UserError(f"{network} holds the ranks of a run ({some(others)}): give another destination")


def _agreed_layouts(folder: Path) -> dict[str, TensorLayout]:
    """The layouts that the strategy files of all ranks state alike."""
    ranks = strategy_ranks(folder)
    if not ranks:
        raise UserError(f"{folder} holds no strategy (looked for ckpt_strategy_rank_K.ckpt)")
    layouts = read_strategy(strategy_path(folder, ranks[0]))
    for rank in ranks[1:]:
        if read_strategy(strategy_path(folder, rank)) != layouts:
            raise CorruptCheckpoint(f"the strategies of ranks {ranks[0]} and {rank} in {folder} differ")
    worlds = {layout.devices for layout in layouts.values()}
    if len(worlds) > 1:
        raise CorruptCheckpoint(
            f"the strategy of rank {ranks[0]} in {folder} is damaged: it is for {sorted(worlds)} ranks"
        )
    _check_ranks(ranks, worlds.pop(), "strategy", folder)
    return layouts


def _rank_files(source: Path, world: int) -> list[Path]:
    folders = rank_folders(source)
    if not folders:
        raise UserError(f"{source} holds no rank folders (looked for rank_0, rank_1, ...)")
    _check_ranks(list(folders), world, "checkpoint", source)
    files = [rank_file(folder) for folder in folders.values()]
    for file in files:
        if file.suffix != files[0].suffix:
            raise UserError(f"{files[0]} and {file} are of different formats")
    return files


def _check_ranks(ranks: list[int], world: int, what: str, folder: Path) -> None:
    """Raise where `ranks`, ascending, are not 0 to world - 1."""
    gap = next((rank for rank, present in enumerate(ranks) if rank != present), len(ranks))
    if gap < world:
        raise IncompleteCheckpoint(
            f"{folder} lacks the {what} of rank {gap}: the strategy is for {world} ranks; copy it from its machine"
        )
    if len(ranks) > world:
        raise UserError(
            f"{folder} holds a {what} of rank {ranks[-1]}, and the strategy is for {world} ranks: of which run is it?"
        )


def _check_replicas(files: list[Path]) -> None:
    digest = sha256_file(files[0])
    for file in files[1:]:
        if not file.samefile(files[0]) and sha256_file(file) != digest:
            raise CorruptCheckpoint(
                f"{files[0].parent.name} and {file.parent.name} of {file.parent.parent} should be copies and differ: "
                "they are of different saves, or one is damaged; copy both anew"
            )


def _check_tensors(file: Path, folder: Path, layouts: Mapping[str, TensorLayout]) -> int:
    """Raise where names or axes are not those of the strategy; return the number of tensors."""
    weights = Weights((file,), folder, file.suffix[1:])
    axes = {name: array.ndim for name, array in read_tensors(weights)}
    missing = [name for name in layouts if name not in axes]
    foreign = [name for name in axes if name not in layouts]
    if missing:
        raise IncompleteCheckpoint(
            f"{file} lacks {len(missing)} of {len(layouts)} tensors of its strategy: {some(missing)}"
        )
    if foreign:
        raise UserError(f"{file} holds {len(foreign)} tensors that its strategy does not know: {some(foreign)}")
    for name, layout in layouts.items():
        if axes[name] != len(layout.tensor_map):
            raise UserError(f"{file} holds {name} with {axes[name]} axes, its strategy says {len(layout.tensor_map)}")
    return len(axes)
