"""A file of tensors, opened: what it holds is known, and a tensor is read when it is asked for."""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindrlhf.runtime.errors import CorruptCheckpoint

BLOCK = 1 << 24  # bytes that are read, summed or written at once
_SIZES = {"bfloat16": 2}  # which NumPy knows once MindSpore is imported


class Spec(NamedTuple):
    """What a tensor is: NumPy's name of its dtype (or "bfloat16"), and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * (_SIZES.get(self.dtype) or np.dtype(self.dtype).itemsize)


def spec_of(array: np.ndarray) -> Spec:
    """The spec of an array."""
    return Spec(array.dtype.name if array.dtype.kind != "U" else array.dtype.str, array.shape)


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
            self.size = path.stat().st_size
            self._checked = self._open()
        except BaseException:
            self._file.close()
            raise

    @abstractmethod
    def _open(self) -> bool:
        """Fill `table` and `places`; whether the file has a checksum."""

    @abstractmethod
    def _sum_agrees(self) -> bool:
        """Whether the checksum is that of the bytes, of which all are in `_sums`."""

    def read(self, name: str) -> np.ndarray:
        """One tensor, its own dtype kept."""
        import mindspore  # noqa: F401  (registers bfloat16 with numpy)

        spec = self.table[name]
        flat = np.empty(spec.nbytes, np.uint8)
        start = 0
        for offset, length in self.places[name]:
            self._sums[offset, length] = self._fill(flat[start : start + length], offset)
            start += length
        return flat.view(np.dtype(spec.dtype)).reshape(spec.shape)

    def _fill(self, flat: np.ndarray, offset: int) -> int:
        """Read bytes from `offset` on; their CRC-32, 0 where the file has no checksum."""
        crc = 0
        self._file.seek(offset)
        for piece in blocks(flat):
            if self._file.readinto(piece.data) != piece.size:
                raise self.damaged("it ends too early")
            crc = zlib.crc32(piece.data, crc) if self._checked else 0
        return crc

    def check(self) -> None:
        """Raise `CorruptCheckpoint` where the file has a checksum that does not agree; reads what was not read yet."""
        if not self._checked:
            return
        for name, places in self.places.items():
            if any(place not in self._sums for place in places):
                self.read(name)
        if not self._sum_agrees():
            raise CorruptCheckpoint(f"{self.path} is damaged: its checksum does not match; copy it anew")

    def damaged(self, why: str) -> CorruptCheckpoint:
        """The error to raise for a file that is no such file."""
        return CorruptCheckpoint(f"{self.path} {self.damage} ({why}); copy it anew")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
