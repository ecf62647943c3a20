"""Weights on the disk: read, written and told apart. Arrays by name go in and out; what names mean is the caller's."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Callable

import numpy as np

from mindrlhf.checkpoint.beside import carry_files, refuse_other_files
from mindrlhf.checkpoint.destination import link_or_copy, sweep
from mindrlhf.checkpoint.find import (
    NETWORK,
    SUFFIXES,
    Weights,
    find_weights,
    network_folder,
    rank_file,
    rank_folders,
    weight_files,
)
from mindrlhf.checkpoint.rank_manifest import announce, copy_manifest, digest, remove_manifest, write_rank_manifest
from mindrlhf.checkpoint.safetensors_file import write_safetensors
from mindrlhf.checkpoint.tensor_file import spec_of
from mindrlhf.checkpoint.tensors import read_tensors, read_weights, tensor_table
from mindrlhf.parallel.slices import Box
from mindrlhf.runtime.errors import IncompleteCheckpoint, UserError, misfits
from mindrlhf.runtime.files import PathLike, replacing

__all__ = [
    "NETWORK",
    "SUFFIXES",
    "TENSORS",
    "Weights",
    "carry_files",
    "find_weights",
    "fingerprint",
    "load_parameters",
    "network_file",
    "network_folder",
    "rank_file",
    "rank_folders",
    "read_tensors",
    "read_weights",
    "refuse_other_files",
    "remove_manifest",
    "save_weights",
    "sweep",
    "tensor_table",
    "weight_files",
    "write_network",
]

Arrays = Mapping[str, np.ndarray]

TENSORS = "tensors.json"  # beside what was transformed: dtype, shape and sha256 of every whole tensor

_SAMPLES = 64


def load_parameters(parameters: Mapping[str, Any], arrays: Arrays, source: object, *, sliced: bool = False) -> None:
    """Set every MindSpore Parameter from the array of its name, cast to the Parameter's dtype.

    Nothing is set unless names and shapes agree: raises `IncompleteCheckpoint` with all that is missing, foreign or of
    another shape. source: what the message calls the arrays. sliced: they are this rank's part of a model laid out.
    """
    from mindspore import Tensor

    expected = {name: tuple(target.shape) for name, target in parameters.items()}
    wrong = misfits(expected, {name: array.shape for name, array in arrays.items()}, "parameters")
    if wrong:
        raise IncompleteCheckpoint(f"{source} does not fit the model: {'; '.join(wrong)}")
    for name, target in parameters.items():
        target.set_data(Tensor(arrays[name], target.dtype), slice_shape=sliced)


def save_weights(arrays: Arrays, path: PathLike, *, for_hugging_face: bool = False) -> None:
    """Write a .safetensors file atomically, with the checksum that MindSpore's crc_check reads.

    for_hugging_face: with the entry that transformers asks for instead. Equal arrays give equal bytes. Raises
    `UserError` where the file cannot be written.
    """
    specs = {name: spec_of(array) for name, array in arrays.items()}
    try:
        with replacing(path) as temporary:
            write_safetensors(temporary, specs, arrays.items(), hugging_face=for_hugging_face)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error


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


def network_file(output_dir: PathLike, rank: int) -> Path:
    """Where the weights of a rank lie in an output folder."""
    return Path(output_dir) / NETWORK / f"rank_{rank}" / "checkpoint_0.safetensors"


def write_network(
    output_dir: PathLike,
    arrays: Arrays,
    *,
    step: int,
    rank: int,
    world: int,
    barrier: Callable[[], None],
    replicated: bool,
    save: str,
    boxes: Mapping[str, Box] | None = None,
) -> Path:
    """Write the weights of `rank` under `output_dir`, each file with its manifest; return `checkpoint_network`.

    step: updates done. replicated: every rank holds the same arrays, so rank 0 writes and the others link. barrier:
    waits for all ranks; called by every one of them, equally often. save: a name that this save has on all ranks, and
    no other save has. boxes: which box of the full tensor each array is, so that a strategy of another layout is known
    when they are read. Rank folders that an earlier run left are removed. Other ranks may still write on the return.
    """
    path = network_file(output_dir, rank)
    network = path.parent.parent
    if rank == 0:
        (network / TENSORS).unlink(missing_ok=True)
        for other, folder in rank_folders(network).items() if network.is_dir() else ():
            if other >= world:
                shutil.rmtree(folder)
        sweep(path.parent)
    elif path.parent.is_dir():
        shutil.rmtree(path.parent)
    announce(path.parent)
    if rank == 0 or not replicated:
        save_weights(arrays, path)
        sha256 = {key: digest(array) for key, array in arrays.items()}
        write_rank_manifest(path, sha256, boxes or {}, rank=rank, world=world, step=step, save=save)
    barrier()
    if rank > 0 and replicated:
        first = network_file(output_dir, 0)
        link_or_copy(first, path)
        copy_manifest(first, path, rank)
    return network
