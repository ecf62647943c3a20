"""Weight files: find, read, write and tell apart. Arrays by name go in and out; what the names mean is the caller's."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mindrlhf.parallel.strategy import is_whole, read_strategy, strategy_path
from mindrlhf.runtime.errors import NAMED, CorruptCheckpoint, IncompleteCheckpoint, UserError, some
from mindrlhf.runtime.files import PathLike, replacing

Arrays = Mapping[str, np.ndarray]

NETWORK = "checkpoint_network"
SUFFIXES = (".safetensors", ".ckpt")
CONFIG_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
)

_RANK = re.compile(r"rank_(\d+)")
_INDEX = "model.safetensors.index.json"
_SAMPLES = 64


@dataclass(frozen=True)
class Weights:
    """Weight files that belong together.

    folder: where config.json and the tokenizer files lie. format: "safetensors" or "ckpt". promised: the names that a
    Hugging Face index announces, empty where there is none.
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
        if path.suffix not in SUFFIXES:
            raise UserError(f"{path} is no weight file: it ends neither in .safetensors nor in .ckpt")
        return path
    for suffix in SUFFIXES if path.suffix in SUFFIXES else ():
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix)
    raise UserError(f"there is no checkpoint {path}; give a Hugging Face folder, an output folder or a weight file")


def _in_folder(folder: Path) -> Weights:
    if (folder / _INDEX).is_file():
        return _sharded(folder)
    files = weight_files(folder)
    if (folder / "model.safetensors") in files:
        files = [folder / "model.safetensors"]
    if len(files) == 1:
        return Weights((files[0],), folder, files[0].suffix[1:])
    if files:
        names = ", ".join(file.name for file in files[:NAMED])
        raise UserError(f"{folder} holds {len(files)} weight files and no {_INDEX} ({names}): name one of them")
    raise UserError(f"{folder} holds no weights (looked for *.safetensors, *.ckpt, {_INDEX}, {NETWORK} and rank_0)")


def _sharded(folder: Path) -> Weights:
    index = folder / _INDEX
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
        plain = bool(shards) and all(shard == os.path.basename(shard) for shard in shards)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCheckpoint(f"{index} is damaged: it holds no readable weight_map") from error
    if not plain:
        raise CorruptCheckpoint(f"{index} is damaged: a shard must be the name of a file beside it")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise IncompleteCheckpoint(
            f"{folder} is incomplete: {len(missing)} of {len(shards)} shards are missing: {some(missing)}"
        )
    return Weights(tuple(folder / shard for shard in shards), folder, "safetensors", frozenset(weight_map))


def _require_whole(network: Path, rank: str) -> None:
    strategy = strategy_path(network.parent / "strategy", int(rank[len("rank_") :]))
    if strategy.is_file() and not all(is_whole(layout) for layout in read_strategy(strategy).values()):
        raise UserError(
            f"{network / rank} holds slices; merge it first: tools/transform_checkpoint.py --src_checkpoint={network} "
            f"--src_strategy={strategy.parent} --dst_checkpoint=MERGED"
        )


def read_tensors(weights: Weights) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every tensor, one at a time (a .ckpt is read whole), its own dtype kept.

    Raises `CorruptCheckpoint` where a file is cut short, fails its checksum or repeats a tensor, and
    `IncompleteCheckpoint` where a tensor that the index announces is missing.
    """
    seen: set[str] = set()
    for file in weights.files:
        for name, array in _read_safetensors(file) if file.suffix == ".safetensors" else _read_ckpt(file):
            if name in seen:
                raise CorruptCheckpoint(f"{weights} holds {name} twice, the second time in {file.name}")
            seen.add(name)
            yield name, array
    missing = sorted(weights.promised - seen)
    if missing:
        raise IncompleteCheckpoint(f"{weights} lacks {len(missing)} tensors that its index announces: {some(missing)}")


def read_weights(weights: Weights) -> dict[str, np.ndarray]:
    """Every tensor by name; raises as `read_tensors`."""
    return dict(read_tensors(weights))


def _read_safetensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    import mindspore  # noqa: F401  (registers bfloat16 with numpy)

    try:
        with safe_open(str(file), framework="np") as opened:
            expected = (opened.metadata() or {}).get("crc_num")
            crc = 0
            for name in sorted(opened.keys()):
                array = opened.get_tensor(name)
                crc = _crc(name, array, crc) if expected else 0
                yield name, array
    except (SafetensorError, OSError) as error:
        raise CorruptCheckpoint(f"{file} is damaged or cut short ({error}); copy it anew") from error
    if expected and str(crc) != expected:
        raise CorruptCheckpoint(f"{file} is damaged: its checksum does not match; copy it anew")


def _read_ckpt(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    import mindspore

    with file.open("rb") as opened:
        # MindSpore ends a file that has a checksum with this word and ten bytes.
        opened.seek(max(0, file.stat().st_size - 17))
        has_crc = opened.read(7) == b"crc_num"
    try:
        parameters = mindspore.load_checkpoint(str(file), crc_check=has_crc)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CorruptCheckpoint(f"{file} is damaged or no checkpoint of MindSpore; copy it anew") from error
    for name, value in parameters.items():
        yield name, value.asnumpy() if hasattr(value, "asnumpy") else np.asarray(value)


def tensor_table(file: PathLike) -> dict[str, dict[str, Any]]:
    """Name -> {"dtype", "shape"} of a .safetensors file, from its header alone."""
    try:
        with safe_open(str(file), framework="np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
            return {name: {"dtype": view.get_dtype(), "shape": view.get_shape()} for name, view in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CorruptCheckpoint(f"{file} is damaged or cut short ({error}); copy it anew") from error


def load_parameters(parameters: Mapping[str, Any], arrays: Arrays, source: object) -> None:
    """Set every MindSpore Parameter from the array of its name, cast to the Parameter's dtype.

    Nothing is set unless names and shapes agree: raises `IncompleteCheckpoint` with all that is missing, foreign or of
    another shape. source: what the message calls the arrays.
    """
    from mindspore import Tensor

    missing = [name for name in parameters if name not in arrays]
    foreign = [name for name in arrays if name not in parameters]
    misshaped = [
        f"{name} is {arrays[name].shape}, the model's {tuple(target.shape)}"
        for name, target in parameters.items()
        if name in arrays and arrays[name].shape != tuple(target.shape)
    ]
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(parameters)} parameters missing: {some(missing)}")
    if misshaped:
        faults.append(f"{len(misshaped)} of another shape: {some(misshaped)}")
    if foreign:
        faults.append(f"{len(foreign)} not the model's: {some(foreign)}")
    if faults:
        raise IncompleteCheckpoint(f"{source} does not fit the model: {'; '.join(faults)}")
    for name, target in parameters.items():
        target.set_data(Tensor(arrays[name], target.dtype))


def save_weights(arrays: Arrays, path: PathLike, *, for_hugging_face: bool = False) -> None:
    """Write a .safetensors file atomically, with the checksum that MindSpore's crc_check reads.

    for_hugging_face: with the entry that transformers asks for instead. Equal arrays give equal bytes. Raises
    `UserError` where the file cannot be written.
    """
    # safetensors writes the bytes of an array that is not contiguous in the wrong order.
    dense = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    crc = 0
    for name in sorted(dense):
        crc = _crc(name, dense[name], crc)
    try:
        with replacing(path) as temporary:
            # One entry alone: safetensors writes several in random order, and equal replicas must be equal files.
            metadata = {"format": "pt"} if for_hugging_face else {"crc_num": str(crc)}
            save_file(dense, str(temporary), metadata=metadata)
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot write {path}: {error}") from error


def _crc(name: str, array: np.ndarray, crc: int) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data, zlib.crc32(name.encode(), crc))


def fingerprint(tensors: Arrays | Iterable[tuple[str, np.ndarray]], skip: Collection[str] = ()) -> str:
    """A number that tells weights apart: sha256 over names, shapes and 64 evenly spaced values of each tensor.

    tensors: by their Hugging Face names, in any order and any float dtype; values count as bfloat16 (rounded to
    nearest even), so that weights and their 16-bit copy are the same. skip: names left out, such as a tied head.
    """
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    parts = {name: _sample(array) for name, array in pairs if name not in skip}
    digest = hashlib.sha256()
    for name in sorted(parts):
        shape, values = parts[name]
        digest.update(f"{name}\0{','.join(map(str, shape))}\0".encode())
        digest.update(values)
    return digest.hexdigest()


def _sample(array: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    last = array.size - 1
    places = np.arange(_SAMPLES, dtype=np.int64) * last // (_SAMPLES - 1) if array.size else np.zeros(0, np.int64)
    bits = array.flat[places].astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return array.shape, rounded.astype("<u2").tobytes()


def carry_files(source: PathLike, target: PathLike, tokenizer_files: Iterable[PathLike] = ()) -> list[str]:
    """Copy config.json, generation_config.json and the tokenizer's files beside weights; return the names copied.

    tokenizer_files: those of the run's tokenizer where it is not the one in `source`. Of these names `target` then
    holds no other file: one that an earlier run left is removed.
    """
    own = [Path(file) for file in tokenizer_files]
    found = [Path(source) / name for name in (CONFIG_FILES if own else CONFIG_FILES + TOKENIZER_FILES)] + own
    files = {file.name: file for file in found if file.is_file()}
    for name, file in files.items():
        place = Path(target) / name
        if not place.exists() or not file.samefile(place):
            with replacing(place) as temporary:
                shutil.copyfile(file, temporary)
    for name in CONFIG_FILES + TOKENIZER_FILES:
        if name not in files:
            (Path(target) / name).unlink(missing_ok=True)
    return sorted(files)


def network_file(output_dir: PathLike, rank: int) -> Path:
    """Where the weights of a rank lie in an output folder."""
    return Path(output_dir) / NETWORK / f"rank_{rank}" / "checkpoint_0.safetensors"


def write_network(
    output_dir: PathLike, arrays: Arrays, *, rank: int, barrier: Callable[[], None], replicated: bool
) -> Path:
    """Write the weights of `rank` under `output_dir`; return the `checkpoint_network` folder.

    replicated: every rank holds the same arrays, so rank 0 writes and the others link. barrier: waits for all ranks;
    called by every one of them, equally often. Rank folders that an earlier run left are removed.
    """
    path = network_file(output_dir, rank)
    network = path.parent.parent
    if rank == 0 and network.is_dir():
        for other, folder in rank_folders(network).items():
            if other > 0:
                shutil.rmtree(folder)
        sweep(path.parent)
    barrier()
    if rank == 0 or not replicated:
        save_weights(arrays, path)
    barrier()
    if rank > 0 and replicated:
        _link(network_file(output_dir, 0), path)
    return network


def _link(source: Path, path: Path) -> None:
    with replacing(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)


def sweep(folder: PathLike) -> None:
    """Remove the temporary files that a killed save left in `folder`."""
    for leftover in [*Path(folder).glob(".tmp*"), *Path(folder).glob(".*.tmp")]:
        leftover.unlink()
