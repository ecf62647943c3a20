"""The manifest of a checkpoint folder: what belongs to it and what its bytes are. It is written last and read first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mindrlhf.checkpoint.store import tensor_table
from mindrlhf.runtime.errors import CorruptCheckpoint, IncompleteCheckpoint
from mindrlhf.runtime.files import PathLike, sha256_file, write_json

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class FileEntry:
    """One weight file: bytes, hex digest, and name -> {"dtype", "shape"} of its tensors."""

    size: int
    sha256: str
    tensors: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Manifest:
    """One committed step.

    world_size: ranks of the run. replicated: one file, rank 0's, stands for all. files: by path relative to the
    folder, with "/". state: the run's own JSON (place in the data, seeds, hash of the config).
    """

    step: int
    world_size: int
    replicated: bool
    files: dict[str, FileEntry]
    state: dict[str, Any]
    format_version: int = FORMAT_VERSION


def write_manifest(
    folder: PathLike, *, step: int, world_size: int, replicated: bool, names: list[str], state: Mapping[str, Any]
) -> None:
    """Write the manifest over the .safetensors files `names` (relative to `folder`), which are on the disk already."""
    files = {}
    for name in names:
        path = Path(folder) / name
        files[name] = FileEntry(path.stat().st_size, sha256_file(path), tensor_table(path))
    manifest = Manifest(step, world_size, replicated, files, dict(state))
    write_json(Path(folder) / MANIFEST, asdict(manifest))


def verify(folder: PathLike, *, contents: bool = True) -> Manifest:
    """The manifest of `folder`, every file of it checked: size and, with `contents`, sha256.

    Raises `IncompleteCheckpoint` where the manifest or a file is missing, `CorruptCheckpoint` for anything else.
    """
    manifest = _read(Path(folder))
    for name, entry in manifest.files.items():
        path = _inside(Path(folder), name)
        if not path.is_file():
            raise IncompleteCheckpoint(f"{folder} is incomplete: {name} is missing")
        size = path.stat().st_size
        if size != entry.size:
            raise CorruptCheckpoint(f"{path} is damaged: it has {size} bytes, its manifest says {entry.size}")
        if contents and sha256_file(path) != entry.sha256:
            raise CorruptCheckpoint(f"{path} is damaged: its sha256 is not the one in its manifest")
    return manifest


def _read(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise IncompleteCheckpoint(f"{folder} is incomplete: it has no {MANIFEST}, so its save was never finished")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields["format_version"]
        if version == FORMAT_VERSION:
            entries = {name: FileEntry(**entry) for name, entry in fields.pop("files").items()}
            manifest = Manifest(files=entries, **fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCheckpoint(f"{path} is damaged: {error}") from error
    if version != FORMAT_VERSION:
        raise CorruptCheckpoint(f"{path} has format version {version!r}; this version reads {FORMAT_VERSION}")
    fault = _fault(manifest)
    if fault:
        raise CorruptCheckpoint(f"{path} is damaged: {fault}")
    return manifest


def _fault(manifest: Manifest) -> str | None:
    """What is wrong with the values of a manifest."""
    if type(manifest.step) is not int or type(manifest.world_size) is not int or manifest.world_size < 1:
        return "step and world_size must be whole numbers"
    if not isinstance(manifest.replicated, bool) or not isinstance(manifest.state, dict):
        return "replicated must be true or false, state an object"
    for name, entry in manifest.files.items():
        if type(entry.size) is not int or not isinstance(entry.sha256, str) or not isinstance(entry.tensors, dict):
            return f"the entry of {name} has a value of a wrong type"
    ranks = 1 if manifest.replicated else manifest.world_size
    if len(manifest.files) != ranks:
        return f"it lists {len(manifest.files)} files for {ranks} ranks"
    return None


def _inside(folder: Path, name: str) -> Path:
    """The file `name` of the folder; one that would lie elsewhere is refused."""
    pure = PurePosixPath(name)
    path = folder / name
    outside = folder.resolve() not in path.resolve().parents
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or outside:
        raise CorruptCheckpoint(f"{folder / MANIFEST} names {name!r}, which lies outside its folder")
    return path
