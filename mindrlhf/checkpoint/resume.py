"""Full training state by step: `checkpoint/step-N` appears complete or not at all, and the newest valid one is found.

A step is written to `step-N.tmp`, each file synced; every rank says what its own file is, and rank 0 writes that into
the manifest and renames the folder. What has no valid manifest is no checkpoint. No rank reads the bytes of another's
file, neither to save nor to resume.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np

from mindrlhf.checkpoint.step_manifest import (
    StepManifest,
    check_contents,
    verify_step,
    write_entry,
    write_step_manifest,
)
from mindrlhf.checkpoint.store import Weights, read_weights, save_weights, tensor_table
from mindrlhf.runtime.errors import CorruptCheckpoint, IncompleteCheckpoint
from mindrlhf.runtime.files import PathLike, fsync_path

STEPS = "checkpoint"

_STEP = re.compile(r"step-(\d+)")


class ForeignStep(IncompleteCheckpoint):
    """A whole step that was saved by fewer ranks than are to resume from it."""


class Resumed(NamedTuple):
    """A step as one rank takes it up: where it lies, the arrays of the rank, the state that all ranks share."""

    path: Path
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]


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
        write_entry(temporary / _file_of(rank))
    barrier()
    if rank == 0:
        names = [_file_of(writer) for writer in range(1 if replicated else world)]
        write_step_manifest(temporary, step=step, world_size=world, replicated=replicated, names=names, state=state)
        commit(temporary, final)
        _prune(final, keep)
    barrier()
    return final


def read_newest(
    output_dir: PathLike,
    rank: int,
    *,
    agree: Callable[[bool], bool] = bool,
    of_first: Callable[[str], str] = str,
) -> Resumed | None:
    """The newest step that every rank can take up, read by each; None where no step was ever saved.

    Called by all ranks. rank: whose arrays are read; 0 on all of them where they hold the same. agree: whether all
    ranks say True, the same answer on each. of_first: rank 0's text, of ASCII and as long as everyone's, on each; by it
    rank 0 chooses what is tried. Both default to what they are in a single process.

    A step that some rank cannot read is skipped by all; each that cannot says why on its stderr. Raises on all ranks
    alike: `CorruptCheckpoint` where there are steps and none is left, `IncompleteCheckpoint` where the newest readable
    one was saved by fewer ranks.
    """
    from mindrlhf.runtime.logging import warn

    folder = Path(output_dir) / STEPS
    tried = 0
    for number in _proposed([_number(path) for path in _steps(folder)], of_first):
        path, tried = folder / f"step-{number}", tried + 1
        found: Resumed | None = None
        foreign: ForeignStep | None = None
        try:
            found = Resumed(path, *read_step(path, rank))
        except ForeignStep as error:
            foreign = error
        except (CorruptCheckpoint, IncompleteCheckpoint) as error:
            # Of the rank whose file it is: rank 0, which alone warns elsewhere, may have seen no fault.
            print(f"warning: {path.name} is skipped: {error}", file=sys.stderr, flush=True)
        if not agree(foreign is None):
            raise foreign or IncompleteCheckpoint(f"{path} was saved by fewer ranks than this run has; start as many")
        if agree(found is not None):
            return found
        if found:
            warn(f"{path.name} is skipped: another rank cannot read it, and says why in its log")
    if tried:
        raise CorruptCheckpoint(f"none of the {tried} steps in {folder} is valid; start without resume")
    return None


def _proposed(mine: list[int], of_first: Callable[[str], str]) -> Iterator[int]:
    """The numbers that rank 0 gives, on every rank; the others' own do not count."""
    numbers = iter(mine)
    # All texts must be of one length, and a rank whose own numbers are at their end goes on following.
    while (number := int(of_first(f"{next(numbers, -1):20d}"))) >= 0:
        yield number


def read_step(path: PathLike, rank: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of `rank` and the state of a step.

    Verified is the file that is read, by its bytes; of the files of other ranks, that they are there and have their
    size. Raises `IncompleteCheckpoint` where something is missing, `CorruptCheckpoint` where something is damaged,
    `ForeignStep` where there is nothing of that rank.
    """
    folder = Path(path)
    manifest = _verified(folder)
    name = _file_of(0 if manifest.replicated else rank)
    if name not in manifest.files:
        raise ForeignStep(
            f"{folder} has no state of rank {rank}: it was saved by {manifest.world_size} ranks; start as many, or "
            f"without resume"
        )
    check_contents(folder / name, manifest.files[name])
    if tensor_table(folder / name) != manifest.files[name].tensors:
        raise CorruptCheckpoint(f"{folder / name} holds other tensors than its manifest says")
    return read_weights(Weights((folder / name,), folder, "safetensors")), manifest.state


def _file_of(rank: int) -> str:
    return f"rank_{rank}/state.safetensors"


def _verified(path: Path) -> StepManifest:
    manifest = verify_step(path)
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
        _verified(path)
    except (CorruptCheckpoint, IncompleteCheckpoint):
        return False
    return True
