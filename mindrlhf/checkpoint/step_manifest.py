"""The manifest of a saved step: which files belong to it and what their bytes are. It is written last and read first.

Every rank says what its own file is in an entry beside it; rank 0 gathers the entries into the one manifest, so that
no rank hashes the file of another. (What a rank's weight file is says `rank_manifest`.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mindrlhf.checkpoint.store import tensor_table
from mindrlhf.runtime.errors import CorruptCheckpoint, IncompleteCheckpoint
from mindrlhf.runtime.files import PathLike, sha256_file, write_json

STEP_MANIFEST = "manifest.json"
STEP_FORMAT = 1
_ENTRY = "entry.json"  # beside a state file until the manifest is written


@dataclass(frozen=True)
class FileEntry:
    """One weight file: bytes, hex digest, and name -> {"dtype", "shape"} of its tensors."""

    size: int
    sha256: str
    tensors: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class StepManifest:
    """One committed step.

    world_size: ranks of the run. replicated: one file, rank 0's, stands for all. files: by path relative to the
    folder, with "/". state: the run's own JSON (place in the data, seeds, hash of the config).
    """

    step: int
    world_size: int
    replicated: bool
    files: dict[str, FileEntry]
    state: dict[str, Any]
    format_version: int = STEP_FORMAT


def write_entry(file: PathLike) -> None:
    """Say beside the .safetensors file, which is on the disk already, what it is: for `write_step_manifest`."""
    path = Path(file)
    entry = FileEntry(path.stat().st_size, sha256_file(path), tensor_table(path))
    write_json(path.with_name(_ENTRY), asdict(entry))


def write_step_manifest(
    folder: PathLike, *, step: int, world_size: int, replicated: bool, names: list[str], state: Mapping[str, Any]
) -> None:
    """Write the manifest over the files `names` (relative to `folder`) from their entries, which are removed first.

    No file is read. Raises `IncompleteCheckpoint` where a file or its entry is not there, `CorruptCheckpoint` where a
    file has another size than its entry says.
    """
    files = {name: _taken(Path(folder) / name) for name in names}
    for name in names:
        (Path(folder) / name).with_name(_ENTRY).unlink()
    manifest = StepManifest(step, world_size, replicated, files, dict(state))
    write_json(Path(folder) / STEP_MANIFEST, asdict(manifest))


def _taken(path: Path) -> FileEntry:
    """What the rank that wrote the file says of it."""
    try:
        entry = FileEntry(**json.loads(path.with_name(_ENTRY).read_text(encoding="utf-8")))
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise IncompleteCheckpoint(
            f"{path.parent} was not written where rank 0 can see it; give an output_dir that all machines share"
        ) from error
    except (ValueError, TypeError) as error:
        raise CorruptCheckpoint(f"{path.with_name(_ENTRY)} is damaged: {error}; save again") from error
    if size != entry.size:
        raise CorruptCheckpoint(f"{path} has {size} bytes, its rank wrote {entry.size}; save again")
    return entry


def verify_step(folder: PathLike) -> StepManifest:
    """The manifest of `folder`, every file of it there and of its size; for their bytes see `check_contents`.

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
    return manifest


def check_contents(path: Path, entry: FileEntry) -> None:
    """Raise `CorruptCheckpoint` where the bytes of a file are not those of its entry."""
    if sha256_file(path) != entry.sha256:
        raise CorruptCheckpoint(f"{path} is damaged: its sha256 is not the one in its manifest")


def _read(folder: Path) -> StepManifest:
    path = folder / STEP_MANIFEST
    if not path.is_file():
        raise IncompleteCheckpoint(f"{folder} is incomplete: it has no {STEP_MANIFEST}, so its save was never finished")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields["format_version"]
        if version == STEP_FORMAT:
            entries = {name: FileEntry(**entry) for name, entry in fields.pop("files").items()}
            manifest = StepManifest(files=entries, **fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCheckpoint(f"{path} is damaged: {error}") from error
    if version != STEP_FORMAT:
        raise CorruptCheckpoint(f"{path} has format version {version!r}; this version reads {STEP_FORMAT}")
    fault = _step_fault(manifest)
    if fault:
        raise CorruptCheckpoint(f"{path} is damaged: {fault}")
    return manifest


def _step_fault(manifest: StepManifest) -> str | None:
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
        raise CorruptCheckpoint(f"{folder / STEP_MANIFEST} names {name!r}, which lies outside its folder")
    return path
