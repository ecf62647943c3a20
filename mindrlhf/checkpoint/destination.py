"""The place where weights will be written: room on its disk, what a failure leaves, what a killed one left."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import PathLike, replacing


def require_room(path: Path, size: int) -> None:
    """Raise `UserError` where the disk is too small for `size` bytes at `path`."""
    free = shutil.disk_usage(next(place for place in (path, *path.absolute().parents) if place.exists())).free
    if free < size:
        raise UserError(f"{path} needs {size / 2**30:.1f} GiB, and its disk has {free / 2**30:.1f} free; make room")


@contextlib.contextmanager
def no_folder_left(path: Path) -> Iterator[None]:
    """Remove the folders that were made for `path` and in it where the work fails, as far as they are empty."""
    made = [folder for folder in (path, *path.absolute().parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        inner = sorted((folder for folder in path.glob("*") if folder.is_dir()), reverse=True) if made else []
        for folder in [*inner, *made]:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def sweep(folder: PathLike) -> None:
    """Remove the temporary files that a killed save left in `folder`."""
    for leftover in [*Path(folder).glob(".tmp*"), *Path(folder).glob(".*.tmp")]:
        leftover.unlink()


def link_or_copy(source: Path, path: Path) -> None:
    """`path` becomes a hard link to `source`, or a copy on a file system without them."""
    with replacing(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
