"""Where weights lie: what a path of a user comes to."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from mindrlhf.parallel.strategy import (
    STRATEGY,
    Strategy,
    is_whole,
    read_strategies,
    read_strategy,
    strategy_path,
    strategy_ranks,
)
from mindrlhf.runtime.errors import NAMED, CorruptCheckpoint, IncompleteCheckpoint, UserError, some
from mindrlhf.runtime.files import PathLike

NETWORK = "checkpoint_network"
SUFFIXES = (".safetensors", ".ckpt")
INDEX = "model.safetensors.index.json"

_RANK = re.compile(r"rank_(\d+)")
HUGGING_FACE = (INDEX, "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
_BIN = ".bin"  # PyTorch's, in Hugging Face folders alone


@dataclass(frozen=True)
class Weights:
    """Weight files that belong together.

    folder: where config.json and the tokenizer files lie. format: "safetensors", "ckpt" or "bin". promised: the names
    that a Hugging Face index announces, empty where there is none. strategy: what the files of ranks 0 to N - 1 hold,
    as it was when they were found: a run may write its own over it; None where the files hold whole tensors.
    """

    files: tuple[Path, ...]
    folder: Path
    format: str
    promised: frozenset[str] = field(default_factory=frozenset)
    strategy: Strategy | None = None

    def __str__(self) -> str:
        return str(self.files[0] if len(self.files) == 1 else self.folder)


def find_weights(path: PathLike, strategy: PathLike | None = None) -> Weights:
    """The weights at `path`.

    `path` is a Hugging Face folder, an output folder that holds `checkpoint_network`, that folder, one of its rank
    folders, or one file; where a file has the other ending (.safetensors, .ckpt) than asked for, that one is taken.
    strategy: the strategy folder of the run; where it is not given, `strategy` beside `checkpoint_network`. By it the
    slices of all ranks are found as the whole tensors that they make up. Raises `UserError` where nothing is found or
    where a single rank that holds but slices is named, `IncompleteCheckpoint` where a shard or a rank is missing.
    """
    place = Path(path)
    if not place.is_dir():
        file = _with_either_suffix(place)
    elif _RANK.fullmatch(place.name):
        file = rank_file(place)
    else:
        network = network_folder(place)
        if network == place and not rank_folders(place):
            return _in_folder(place)
        layouts = Path(strategy) if strategy else network.parent / STRATEGY
        if strategy or _holds_slices(layouts):
            return slices_in(network, read_strategies(layouts))
        file = rank_file(network / "rank_0")
    if not _RANK.fullmatch(file.parent.name):
        return Weights((file,), file.parent, file.suffix[1:])
    network = file.parent.parent
    if _holds_slices(network.parent / STRATEGY):
        raise UserError(f"{file.parent} holds the slices of one rank; give {network}, which holds those of all")
    return Weights((file,), network, file.suffix[1:])


def slices_in(network: Path, strategy: Strategy) -> Weights:
    """The files of all ranks in `network`, of which `strategy` says what they hold; one where all hold the same.

    Raises `IncompleteCheckpoint` where a rank is missing, `UserError` where there is one too many, or one has no file
    or two.
    """
    files = rank_files(network, strategy)
    kind = files[0].suffix[1:]
    if strategy.whole:
        return Weights((files[0],), network, kind)
    return Weights(tuple(files), network, kind, strategy=strategy)


def rank_files(network: Path, strategy: Strategy) -> list[Path]:
    """The weight files of ranks 0 to N - 1; raises as `slices_in`."""
    folders = rank_folders(network)
    if not folders:
        raise UserError(f"{network} holds no rank folders (looked for rank_0, rank_1, ...)")
    missing = [rank for rank in range(strategy.world) if rank not in folders]
    if missing:
        raise IncompleteCheckpoint(
            f"{network} lacks the checkpoint of rank {some(list(map(str, missing)))}: the strategy {strategy.source} "
            f"is for {strategy.world} ranks; copy it from its machine"
        )
    foreign = [rank for rank in folders if rank >= strategy.world]
    if foreign:
        raise UserError(
            f"{network} holds a checkpoint of rank {some(list(map(str, foreign)))}, and the strategy {strategy.source} "
            f"is for {strategy.world} ranks: of which run is it?"
        )
    files = [rank_file(folder) for folder in folders.values()]
    for file in files:
        if file.suffix != files[0].suffix:
            raise UserError(f"{files[0]} and {file} are of different formats; all ranks must be of one save")
    return files


def _holds_slices(folder: Path) -> bool:
    """Whether ranks hold less than the whole tensors, by a strategy folder that may not be there."""
    ranks = strategy_ranks(folder) if folder.is_dir() else []
    if not ranks:
        return False
    layouts = read_strategy(strategy_path(folder, ranks[0])).values()
    devices = max(layout.devices for layout in layouts)
    return len(ranks) > devices or not all(map(is_whole, layouts))


def network_folder(path: PathLike) -> Path:
    """The folder of the rank folders: `path` itself or the `checkpoint_network` in it; UserError for a saved step."""
    if Path(path).name.startswith("step-") and (Path(path) / "manifest.json").is_file():
        weights = Path(path).parent.parent / NETWORK
        raise UserError(f"{path} is a state to resume from (--resume True), not weights; give {weights}")
    inner = Path(path) / NETWORK
    return inner if inner.is_dir() else Path(path)


def is_rank_folder(folder: Path) -> bool:
    """Whether a folder is named as that of a rank."""
    return bool(_RANK.fullmatch(folder.name))


def rank_folders(network: PathLike) -> dict[int, Path]:
    """The `rank_K` folders in `network` by rank, ascending."""
    found = {}
    for folder in Path(network).iterdir():
        match = _RANK.fullmatch(folder.name)
        if match and folder.is_dir():
            found[int(match.group(1))] = folder
    return dict(sorted(found.items()))


def rank_file(folder: PathLike) -> Path:
    """The one weight file of a rank folder. Raises `UserError` where there is none or more than one."""
    if not Path(folder).is_dir():
        raise UserError(f"there is no folder {folder}")
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder} holds no checkpoint (looked for *.safetensors and *.ckpt)")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{folder} holds {len(files)} checkpoints ({names}): remove all but the one that is meant")
    return files[0]


def weight_files(folder: PathLike) -> list[Path]:
    """The weight files directly in `folder`, by name."""
    return sorted(file for file in Path(folder).iterdir() if file.suffix in SUFFIXES and file.is_file())


def _with_either_suffix(path: Path) -> Path:
    if path.is_file():
        if path.suffix not in (*SUFFIXES, _BIN):
            raise UserError(f"{path} is no weight file: it ends in none of .safetensors, .ckpt and .bin")
        return path
    for suffix in SUFFIXES if path.suffix in SUFFIXES else ():
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix)
    raise UserError(f"there is no checkpoint {path}; give a Hugging Face folder, an output folder or a weight file")


def _in_folder(folder: Path) -> Weights:
    # What Hugging Face named wins over what was converted into its folder.
    for name in HUGGING_FACE:
        file = folder / name
        if file.is_file():
            return _sharded(file) if file.suffix == ".json" else Weights((file,), folder, file.suffix[1:])
    files = weight_files(folder)
    if len(files) == 1:
        return Weights((files[0],), folder, files[0].suffix[1:])
    if files:
        names = ", ".join(file.name for file in files[:NAMED])
        raise UserError(f"{folder} holds {len(files)} weight files and no {INDEX} ({names}): name one of them")
    raise UserError(
        f"{folder} holds no weights (looked for *.safetensors, *.ckpt, pytorch_model.bin, {INDEX}, {NETWORK} and "
        f"rank_0)"
    )


def _sharded(index: Path) -> Weights:
    """The weights of which a Hugging Face index says in which file each tensor is."""
    folder = index.parent
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
        plain = bool(shards) and all(shard == os.path.basename(shard) for shard in shards)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCheckpoint(f"{index} is damaged: it holds no readable weight_map") from error
    ending = _BIN if ".bin." in index.name else ".safetensors"
    if not plain or not all(shard.endswith(ending) for shard in shards):
        raise CorruptCheckpoint(f"{index} is damaged: a shard must be the name of a {ending} file beside it")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise IncompleteCheckpoint(
            f"{folder} is incomplete: {len(missing)} of {len(shards)} shards are missing: {some(missing)}"
        )
    return Weights(tuple(folder / shard for shard in shards), folder, ending[1:], frozenset(weight_map))
