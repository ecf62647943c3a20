"""Full training state by step: `checkpoint/step-N` appears complete or not at all, and the newest valid one is found.

A step is written to `step-N.tmp`, each file synced; rank 0 then writes the manifest and renames the folder. What has
no valid manifest is no checkpoint.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import numpy as np

from mindrlhf.checkpoint import integrity
from mindrlhf.checkpoint.store import Weights, read_weights, save_weights, tensor_table
from mindrlhf.runtime.errors import CorruptCheckpoint, IncompleteCheckpoint
from mindrlhf.runtime.files import PathLike, fsync_path

STEPS = "checkpoint"

_STEP = re.compile(r"step-(\d+)")


def save_step(
    output_dir: PathLike,
    step: int,
    arrays: Mapping[str, np.ndarray],
    state: Mapping[str, Any],
    *,
    rank: int,
    world: int,
    barrier: Callable[[], None],
    keep: int | None,
    replicated: bool = True,
) -> Path:
    """Write `checkpoint/step-N` and remove older steps but the newest `keep` (None: keep all); return its path.

    arrays: the state of this rank by name. state: JSON that is the same on all ranks. replicated: every rank holds the
    same arrays, so rank 0 writes alone. barrier: waits for all ranks; called by every one of them, equally often. It
    returns on every rank only after the step is committed. Steps beyond N, of a run that this one replaces or
    went back behind, are removed after the commit.
    """
    final = Path(output_dir) / STEPS / f"step-{step}"
    temporary = final.with_name(f"{final.name}.tmp")
    if rank == 0:
        _sweep(final.parent)
    barrier()
    if rank == 0 or not replicated:
        save_weights(arrays, temporary / _file_of(rank))
    barrier()
    if rank == 0:
        names = [_file_of(writer) for writer in range(1 if replicated else world)]
        integrity.write_manifest(
            temporary, step=step, world_size=world, replicated=replicated, names=names, state=state
        )
        commit(temporary, final)
        _prune(final, keep)
    barrier()
    return final


def latest(output_dir: PathLike) -> Path | None:
    """The newest valid step, or None where no step was ever saved.

    Warns of every newer step that does not verify. Raises `CorruptCheckpoint` where there are steps and none does.
    """
    from mindrlhf.runtime.logging import warn

    found = _steps(Path(output_dir) / STEPS)
    for path in found:
        try:
            _verified(path)
        except (CorruptCheckpoint, IncompleteCheckpoint) as error:
            warn(f"{path.name} is skipped: {error}")
        else:
            return path
    if found:
        raise CorruptCheckpoint(f"none of the {len(found)} steps in {found[0].parent} is valid; start without resume")
    return None


def read_step(path: PathLike, rank: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of `rank` and the state of a step, after the whole step has been verified.

    Raises `IncompleteCheckpoint` where something is missing, `CorruptCheckpoint` where something is damaged.
    """
    folder = Path(path)
    manifest = _verified(folder)
    name = _file_of(0 if manifest.replicated else rank)
    if name not in manifest.files:
        raise IncompleteCheckpoint(f"{folder} has no state of rank {rank}: it was saved by {manifest.world_size} ranks")
    if tensor_table(folder / name) != manifest.files[name].tensors:
        raise CorruptCheckpoint(f"{folder / name} holds other tensors than its manifest says")
    return read_weights(Weights((folder / name,), folder, "safetensors")), manifest.state


def _file_of(rank: int) -> str:
    return f"rank_{rank}/state.safetensors"


def _verified(path: Path, *, contents: bool = True) -> integrity.Manifest:
    manifest = integrity.verify(path, contents=contents)
    if path.name != f"step-{manifest.step}":
        raise CorruptCheckpoint(f"{path} holds step {manifest.step}, not the step that its name says")
    return manifest


def _steps(folder: Path) -> list[Path]:
    """Folders named as steps, newest first."""
    if not folder.is_dir():
        return []
    found = {path: _STEP.fullmatch(path.name) for path in folder.iterdir() if path.is_dir()}
    return sorted((path for path, match in found.items() if match), key=_number, reverse=True)


def _number(path: Path) -> int:
    return int(path.name[len("step-") :])


def _sweep(folder: Path) -> None:
    """Remove what killed saves left."""
    for leftover in folder.glob("step-*.tmp"):
        shutil.rmtree(leftover)


def commit(temporary: Path, final: Path) -> None:
    """Put the complete folder `temporary` in the place of `final`.

    A kill between the two renames leaves `final` absent, with what it was beside it as `FINAL.replaced.tmp`.
    """
    replaced = final.with_name(f"{final.name}.replaced.tmp")
    if final.exists():
        os.rename(final, replaced)
    os.rename(temporary, final)
    fsync_path(final.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def _prune(newest: Path, keep: int | None) -> None:
    """Remove the steps beyond `newest`, and all that are older than the newest `keep` valid ones."""
    from mindrlhf.runtime.logging import warn

    valid = 0
    for path in _steps(newest.parent):
        if _number(path) > _number(newest):
            warn(f"{path.name} is of an earlier run beyond the {newest.name} just saved: removed")
            shutil.rmtree(path)
        elif keep is not None and valid >= keep:
            shutil.rmtree(path)
        else:
            valid += _is_valid(path)


def _is_valid(path: Path) -> bool:
    try:
        # Sizes alone: hashing every kept step again would cost more than the save.
        _verified(path, contents=False)
    except (CorruptCheckpoint, IncompleteCheckpoint):
        return False
    return True
