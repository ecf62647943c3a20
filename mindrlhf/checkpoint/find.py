"""Where weights lie: what a path of a user comes to."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from mindrlhf.parallel.strategy import is_whole, read_strategy, strategy_path
from mindrlhf.runtime.errors import NAMED, CorruptCheckpoint, IncompleteCheckpoint, UserError, some
from mindrlhf.runtime.files import PathLike

NETWORK = "checkpoint_network"
SUFFIXES = (".safetensors", ".ckpt")
INDEX = "model.safetensors.index.json"

_RANK = re.compile(r"rank_(\d+)")
_HUGGING_FACE = (INDEX, "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
_BIN = ".bin"  # PyTorch's, in Hugging Face folders alone


@dataclass(frozen=True)
class Weights:
    """Weight files that belong together.

    folder: where config.json and the tokenizer files lie. format: "safetensors", "ckpt" or "bin". promised: the names
    that a Hugging Face index announces, empty where there is none.
    """

    files: tuple[Path, ...]
    folder: Path
    format: str
    promised: frozenset[str] = field(default_factory=frozenset)

    def __str__(self) -> str:
        return str(self.files[0] if len(self.files) == 1 else self.folder)


def find_weights(path: PathLike) -> Weights:
    """The weights at `path`.

    `path` is a Hugging Face folder, an output folder that holds `checkpoint_network`, that folder, one of its rank
    folders, or one file; where a file has the other ending (.safetensors, .ckpt) than asked for, that one is taken.
    Raises `UserError` where nothing is found or where a rank holds but slices, `IncompleteCheckpoint` where a shard
    is missing.
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
        file = rank_file(network / "rank_0")
    if not _RANK.fullmatch(file.parent.name):
        return Weights((file,), file.parent, file.suffix[1:])
    network = file.parent.parent
    _require_whole(network, file.parent.name)
    return Weights((file,), network, file.suffix[1:])


def network_folder(path: PathLike) -> Path:
    """The folder of the rank folders: `path` itself or the `checkpoint_network` in it; UserError for a saved step."""
    if Path(path).name.startswith("step-") and (Path(path) / "manifest.json").is_file():
        weights = Path(path).parent.parent / NETWORK
        raise UserError(f"{path} is a state to resume from (--resume True), not weights; give {weights}")
    inner = Path(path) / NETWORK
    return inner if inner.is_dir() else Path(path)


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
    for name in _HUGGING_FACE:
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


def _require_whole(network: Path, rank: str) -> None:
    strategy = strategy_path(network.parent / "strategy", int(rank[len("rank_") :]))
    if strategy.is_file() and not all(is_whole(layout) for layout in read_strategy(strategy).values()):
        raise UserError(
            f"{network / rank} holds slices; merge it first: tools/transform_checkpoint.py --src_checkpoint={network} "
            f"--src_strategy={strategy.parent} --dst_checkpoint=MERGED"
        )
