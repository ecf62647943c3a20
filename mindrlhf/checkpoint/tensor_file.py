"""A file of tensors, opened: what it holds is known, and a tensor, or a box of one, is read when it is asked for."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindrlhf.parallel.slices import Box, extent, whole
from mindrlhf.runtime.errors import CorruptCheckpoint

BLOCK = 1 << 24  # bytes that are read, summed or written at once
SHORT = 1 << 12  # runs of fewer bytes are read with what lies between them: the system reads whole pages anyway
_SIZES = {"bfloat16": 2}  # which NumPy knows once MindSpore is imported


class Spec(NamedTuple):
    """What a tensor is: NumPy's name of its dtype (or "bfloat16"), and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return _SIZES.get(self.dtype) or np.dtype(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.itemsize

    @property
    def raw(self) -> np.dtype:
        """A dtype of as many bytes, which NumPy always knows."""
        size = self.itemsize
        return np.dtype(f"u{size}" if size in (1, 2, 4, 8) else f"V{size}")


def spec_of(array: np.ndarray) -> Spec:
    """The spec of an array."""
    return Spec(array.dtype.name if array.dtype.kind != "U" else array.dtype.str, array.shape)


def named(raw: np.ndarray, spec: Spec) -> np.ndarray:
    """Raw numbers as what they are."""
    import mindspore  # noqa: F401  (registers bfloat16 with numpy)

    return raw.view(np.dtype(spec.dtype))


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The bytes of an array in C order, in pieces of at most BLOCK; what is not contiguous is copied piece by piece."""
    if array.flags.c_contiguous:
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, BLOCK):
            yield flat[start : start + BLOCK]
    elif array.nbytes <= BLOCK:
        yield from blocks(np.ascontiguousarray(array))
    elif len(array) == 1:
        yield from blocks(array[0])
    else:
        yield from blocks(array[: len(array) // 2])
        yield from blocks(array[len(array) // 2 :])


class TensorFile(ABC):
    """A weight file whose tensors lie in it as plain bytes. A subclass finds where.

    table: name -> spec in the order of the file. places: name -> (offset, length) of the pieces of its bytes.
    """

    damage = "is damaged or cut short"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.table: dict[str, Spec] = {}
        self.places: dict[str, list[tuple[int, int]]] = {}
        self._sums: dict[tuple[int, int], int] = {}  # place of a piece that was read -> its CRC-32
        self._file = path.open("rb")
        try:
            status = os.fstat(self._file.fileno())
            self.size = status.st_size
            self.identity = status.st_dev, status.st_ino  # links to one file have one
            self.checked = self._open()
        except BaseException:
            self._file.close()
            raise

    @abstractmethod
    def _open(self) -> bool:
        """Fill `table` and `places`; whether the file has a checksum."""

    @abstractmethod
    def _sum_agrees(self) -> bool:
        """Whether the checksum is that of the bytes, of which all are in `_sums`."""

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """One tensor, or a box of it, its own dtype kept."""
        return named(self.read_raw(name, box), self.table[name])

    def read_raw(self, name: str, box: Box | None = None) -> np.ndarray:
        """The same as numbers of `Spec.raw`. Of a box no more than its own bytes is read, and short gaps in it."""
        spec = self.table[name]
        if box is None or box == whole(spec.shape):
            found = np.empty(spec.shape, spec.raw)
            flat = found.reshape(-1).view(np.uint8)
            start = 0
            for offset, length in self.places[name]:
                self._sums[offset, length] = self._fill(flat[start : start + length], offset)
                start += length
            return found
        found = np.empty(extent(box), spec.raw)
        if found.size:
            self._fill_box(name, box, found)
        return found

    def _fill_box(self, name: str, box: Box, found: np.ndarray) -> None:
        spec = self.table[name]
        # Up to `axis` the box cuts, behind it a row is whole: runs of numbers that lie together.
        axis = max(k for k, bounds in enumerate(box) if bounds != (0, spec.shape[k]))
        inner = math.prod(spec.shape[axis + 1 :]) * spec.itemsize
        row, first, length = spec.shape[axis] * inner, box[axis][0] * inner, (box[axis][1] - box[axis][0]) * inner
        runs = found.reshape(-1).view(np.uint8).reshape(-1, length)
        starts = _rows(spec.shape[:axis], box[:axis])
        if length >= SHORT or axis == 0:
            for run, start in zip(runs, starts):
                self._fill_span(name, run, start * row + first)
            return
        together = box[axis - 1][1] - box[axis - 1][0]  # rows that follow each other
        most = max(1, BLOCK // row)
        done = 0
        for start in starts[::together]:
            for k in range(0, together, most):
                count = min(most, together - k)
                rows = np.empty((count, row), np.uint8)
                self._fill_span(name, rows.reshape(-1), (start + k) * row)
                runs[done : done + count] = rows[:, first : first + length]
                done += count

    def _fill_span(self, name: str, flat: np.ndarray, start: int) -> None:
        """Read the bytes of a tensor from `start` on, out of the pieces in which they lie."""
        for offset, length in self.places[name]:
            if start < length:
                count = min(length - start, flat.size)
                self._fill(flat[:count], offset + start, summed=False)
                flat, start = flat[count:], start + count
                if not flat.size:
                    return
            start -= length

    def _fill(self, flat: np.ndarray, offset: int, *, summed: bool = True) -> int:
        """Read bytes from `offset` on; their CRC-32, 0 where the file has no checksum."""
        self._reopen()
        crc = 0
        for piece in blocks(flat):
            if os.preadv(self._file.fileno(), [piece.data], offset) != piece.size:
                raise self.damaged("it ends too early")
            offset += piece.size
            crc = zlib.crc32(piece.data, crc) if self.checked and summed else 0
        return crc

    def _reopen(self) -> None:
        if self._file.closed:
            self._file = self.path.open("rb")

    def check(self) -> None:
        """Raise `CorruptCheckpoint` where the file has a checksum that does not agree; reads what was not read yet."""
        if not self.checked:
            return
        for places in self.places.values():
            for place in places:
                if place not in self._sums:
                    self._sums[place] = reduce(lambda crc, piece: zlib.crc32(piece, crc), self._pieces(place), 0)
        self._reopen()
        if not self._sum_agrees():
            raise CorruptCheckpoint(f"{self.path} is damaged: its checksum does not match; copy it anew")

    def sha256(self, name: str) -> str:
        """Hex digest of the bytes of a tensor."""
        digest = hashlib.sha256()
        for place in self.places[name]:
            for piece in self._pieces(place):
                digest.update(piece)
        return digest.hexdigest()

    def sha256_between(self) -> str:
        """Hex digest of all bytes of the file that are no tensor's."""
        digest, end = hashlib.sha256(), 0
        for offset, length in [*sorted(place for places in self.places.values() for place in places), (self.size, 0)]:
            for piece in self._pieces((end, offset - end)):
                digest.update(piece)
            end = max(end, offset + length)
        return digest.hexdigest()

    def _pieces(self, place: tuple[int, int]) -> Iterator[memoryview]:
        """The bytes at a place, in one buffer that is filled again and again."""
        offset, length = place
        block = np.empty(min(BLOCK, length), np.uint8)
        for start in range(0, length, BLOCK):
            piece = block[: min(BLOCK, length - start)]
            self._fill(piece, offset + start, summed=False)
            yield piece.data

    def damaged(self, why: str) -> CorruptCheckpoint:
        """The error to raise for a file that is no such file."""
        return CorruptCheckpoint(f"{self.path} {self.damage} ({why}); copy it anew")

    def close(self) -> None:
        """Close the file; a read opens it again."""
        with contextlib.suppress(AttributeError):
            self._file.close()

    def __getstate__(self) -> dict[str, object]:
        self.close()
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._file = self.path.open("rb")
        self._file.close()


def _rows(shape: tuple[int, ...], box: Box) -> list[int]:
    """The numbers, in a tensor of this shape, of the rows in a box, ascending."""
    numbers = [0]
    for size, (start, stop) in zip(shape, box):
        numbers = [number * size + k for number in numbers for k in range(start, stop)]
    return numbers
