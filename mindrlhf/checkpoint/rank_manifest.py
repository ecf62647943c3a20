"""What the weight file of one rank is: its size and the sha256 of every tensor, in a JSON file beside it.

It is written last and removed first: a save that was killed leaves none, and never one over other bytes. A mark stands
in its place meanwhile, which tells what was left from what other programs write.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Union

import numpy as np

from mindrlhf.checkpoint.ckpt_file import CkptFile
from mindrlhf.checkpoint.safetensors_file import SafetensorsFile
from mindrlhf.checkpoint.tensor_file import Spec, blocks
from mindrlhf.parallel.slices import Box
from mindrlhf.runtime.errors import CorruptCheckpoint, IncompleteCheckpoint, some
from mindrlhf.runtime.files import PathLike, fsync_path, write_json

RANK_MANIFEST = "manifest.json"
RANK_FORMAT = 1
SAVING = ".saving"  # a rank's file is being written
RankFile = Union[SafetensorsFile, CkptFile]
READERS: dict[str, type[RankFile]] = {"safetensors": SafetensorsFile, "ckpt": CkptFile}


@dataclass(frozen=True)
class RankManifest:
    """One weight file.

    file: its name. size: its bytes. dtypes, shapes, sha256: by tensor. between: sha256 of the bytes that are no
    tensor's. boxes: (start, stop) by axis of what each tensor is of the full one; empty where all are whole. rank,
    world: whose it is, of how many. step: updates done, None where that means nothing. save: what all ranks of one save
    have in common, None in what an earlier version wrote where they could not agree on it.
    """

    file: str
    size: int
    dtypes: dict[str, str]
    shapes: dict[str, list[int]]
    sha256: dict[str, str]
    between: str
    boxes: dict[str, list[list[int]]]
    rank: int
    world: int
    step: int | None
    save: str | None
    format_version: int = RANK_FORMAT


def digest(array: np.ndarray) -> str:
    """Hex sha256 of the bytes of an array in C order."""
    found = hashlib.sha256()
    for piece in blocks(array):
        found.update(piece.data)
    return found.hexdigest()


def write_rank_manifest(
    path: Path,
    sha256: Mapping[str, str],
    boxes: Mapping[str, Box],
    *,
    rank: int,
    world: int,
    step: int | None,
    save: str | None,
) -> None:
    """Write the manifest of the weight file `path`, which is on the disk already. sha256: of its tensors, by name."""
    file = READERS[path.suffix[1:]](path)
    try:
        assert file.table.keys() == sha256.keys(), f"{path} holds other tensors than were written"
        manifest = RankManifest(
            path.name,
            file.size,
            {name: spec.dtype for name, spec in file.table.items()},
            {name: list(spec.shape) for name, spec in file.table.items()},
            dict(sha256),
            file.sha256_between(),
            {name: [list(bounds) for bounds in box] for name, box in boxes.items()},
            rank,
            world,
            step,
            save,
        )
    finally:
        file.close()
    _finish(path.parent, asdict(manifest))


def copy_manifest(source: Path, path: Path, rank: int) -> None:
    """The manifest of the file `source` for its replica `path`, which is another rank's."""
    manifest = _parsed(source.parent / RANK_MANIFEST)
    _finish(path.parent, {**asdict(manifest), "rank": rank})


def _finish(folder: Path, manifest: dict[str, Any]) -> None:
    write_json(folder / RANK_MANIFEST, manifest)
    (folder / SAVING).unlink(missing_ok=True)


def announce(folder: Path) -> None:
    """Mark a rank folder as being written, and remove its manifest; the next manifest removes the mark."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SAVING).touch()
    fsync_path(folder)
    remove_manifest(folder)


def remove_manifest(folder: PathLike) -> None:
    """Remove the manifest in a rank folder, for good before what it describes is changed."""
    path = Path(folder) / RANK_MANIFEST
    if path.is_file():
        path.unlink()
        fsync_path(folder)


def read_manifest(file: RankFile) -> RankManifest | None:
    """The manifest beside an opened weight file, None where there is none.

    Raises `CorruptCheckpoint` where it is damaged, or of another file than this by all but the numbers in it.
    """
    path = file.path.parent / RANK_MANIFEST
    if not path.is_file():
        return None
    manifest = _parsed(path)
    if manifest.file != file.path.name:
        raise CorruptCheckpoint(f"{path} is of {manifest.file}, beside {file.path.name}; copy the folder anew")
    if manifest.size != file.size:
        raise CorruptCheckpoint(
            f"{file.path} is damaged: it has {file.size} bytes, its manifest says {manifest.size}; copy it anew"
        )
    specs = {name: Spec(manifest.dtypes[name], tuple(manifest.shapes[name])) for name in manifest.sha256}
    if specs != file.table or manifest.between != file.sha256_between():
        raise CorruptCheckpoint(f"{file.path} is damaged: its head is not the one its manifest knows; copy it anew")
    return manifest


def _parsed(path: Path) -> RankManifest:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields["format_version"]
        if version == RANK_FORMAT:
            manifest = RankManifest(**fields)
            fault = _rank_fault(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCheckpoint(f"{path} is damaged: {error}; copy it anew") from error
    if version != RANK_FORMAT:
        raise CorruptCheckpoint(f"{path} has format version {version!r}; this version reads {RANK_FORMAT}")
    if fault:
        raise CorruptCheckpoint(f"{path} is damaged: {fault}; copy it anew")
    return manifest


def _rank_fault(manifest: RankManifest) -> str | None:
    """What is wrong with the values of a manifest."""
    numbers = (manifest.size, manifest.rank, manifest.world)
    if any(type(number) is not int or number < 0 for number in numbers) or manifest.rank >= manifest.world:
        return "size, rank and world must be whole numbers, and rank less than world"
    if manifest.step is not None and type(manifest.step) is not int:
        return "step must be a whole number"
    if not manifest.sha256.keys() == manifest.dtypes.keys() == manifest.shapes.keys():
        return "it does not say the same of every tensor"
    if not all(isinstance(size, int) for shape in manifest.shapes.values() for size in shape):
        return "a shape is not one of whole numbers"
    if not isinstance(manifest.boxes, dict):
        return "boxes must be an object"
    return None


def require_one_save(manifests: Sequence[RankManifest | None], files: Sequence[Path]) -> None:
    """Raise where the files of ranks are not all of one save; where none has a manifest nothing is known of that."""
    without = [file for file, manifest in zip(files, manifests) if manifest is None]
    killed = [file.parent.name for file in without if (file.parent / SAVING).exists()]
    if killed:
        raise IncompleteCheckpoint(
            f"a save to {files[0].parent.parent} was killed while it wrote {some(killed)}; save again, or copy all "
            f"ranks from another save"
        )
    if without and len(without) < len(files):
        raise IncompleteCheckpoint(
            f"{len(without)} of {len(files)} ranks have no {RANK_MANIFEST}, as when a save is killed: "
            f"{some([file.parent.name for file in without])} of {files[0].parent.parent}; copy them anew, or save again"
        )
    first = manifests[0]
    for file, manifest in zip(files, manifests):
        if first is None or manifest is None:
            continue
        if manifest.world != first.world:
            raise CorruptCheckpoint(
                f"{files[0].parent} is of a run of {first.world} ranks and {file.parent} of one of {manifest.world}; "
                f"copy all ranks from one save"
            )
        if manifest.step != first.step:
            raise CorruptCheckpoint(
                f"{files[0].parent} is of step {first.step} and {file.parent} of step {manifest.step}: copy all ranks "
                f"from one save"
            )
        if None not in (manifest.save, first.save) and manifest.save != first.save:
            raise CorruptCheckpoint(
                f"{files[0].parent} and {file.parent} are of different saves of step {first.step}; copy all ranks from "
                f"one of them"
            )
