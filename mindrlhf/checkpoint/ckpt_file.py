"""MindSpore's .ckpt format: a protobuf `Checkpoint` of repeated values, read and written one tensor at a time.

    Checkpoint { repeated Value value = 1 }
    Value      { string tag = 1; TensorProto tensor = 2; MapTensorProto maptensor = 3 }
    TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3 }

A tensor above 512 MiB is several values of one tag. Behind the message may stand "crc_num" and ten bytes, the CRC-32
of all before it. protobuf would hold the whole file at once; the framing is a few bytes per tensor and is done here.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mindrlhf.checkpoint.crc import join_crc
from mindrlhf.checkpoint.tensor_file import Spec, TensorFile, blocks, spec_of
from mindrlhf.runtime.errors import UserError

SLICE = 512 << 20  # bytes of one value, as mindspore.save_checkpoint cuts
_TYPES = {
    "bool": "Bool",
    "bfloat16": "BFloat16",
    **{f"float{bits}": f"Float{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"Int{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"UInt{bits}" for bits in (8, 16, 32, 64)},
}
_QUANTISED = "Int4"
_DTYPES = {word: dtype for dtype, word in _TYPES.items()}
_CRC, _TRAILER = b"crc_num", 17
_WORD = 1 << 16  # no name or type is longer
_VARINT, _BYTES = 0, 2  # protobuf's wire types
_CHARACTER = 4  # bytes of one in a value of type str


class CkptFile(TensorFile):
    """An opened .ckpt file."""

    damage = "is damaged or no checkpoint of MindSpore"

    def _open(self) -> bool:
        self._file.seek(max(0, self.size - _TRAILER))
        trailer = self._file.read()
        summed = trailer.startswith(_CRC) and len(trailer) == _TRAILER
        self._expected = int.from_bytes(trailer[len(_CRC) :], "big") if summed else None
        self._end = self.size - (0 if self._expected is None else _TRAILER)
        if not self._end:
            raise self.damaged("it is empty")
        shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        for name, dims, kind, place in self._values():
            if shapes.setdefault(name, (dims, kind)) != (dims, kind):
                raise self.damaged(f"{name} has two shapes")
            self.places.setdefault(name, []).append(place)
        for name, (dims, kind) in shapes.items():
            self.table[name] = self._spec(name, dims, kind)
        return self._expected is not None

    def _spec(self, name: str, dims: tuple[int, ...], kind: str) -> Spec:
        length = sum(length for _, length in self.places[name])
        if kind == "str":
            return Spec(f"<U{length // _CHARACTER}", ())
        if kind == _QUANTISED:
            raise UserError(f"{self.path}: {name} is {kind}, which is not supported; use other weights")
        if kind not in _DTYPES:
            raise self.damaged(f"{name} is {kind!r}")
        spec = Spec(_DTYPES[kind], () if dims == (0,) and length else dims)
        if spec.nbytes != length:
            raise self.damaged(f"{name} has {length} bytes, its shape says {spec.nbytes}")
        return spec

    def _values(self) -> Iterator[tuple[str, tuple[int, ...], str, tuple[int, int]]]:
        """Name, shape, type and place of every value of the message."""
        for field, start, stop in self._fields(0, self._end):
            if field != 1:
                raise self.damaged(f"field {field} where a value should be")
            name, tensor, table = "", None, False
            for part, first, last in self._fields(start, stop):
                if part == 1:
                    name = self._text(first, last)
                elif part == 2:
                    tensor = self._tensor(first, last)
                elif part == 3:
                    table = True
            if table:
                raise UserError(f"{self.path}: {name!r} is no tensor, which is not supported; use other weights")
            if tensor is None:
                raise self.damaged(f"{name!r} has no values")
            yield (name, *tensor)

    def _tensor(self, start: int, stop: int) -> tuple[tuple[int, ...], str, tuple[int, int]]:
        dims: list[int] = []
        kind, place = "", (stop, 0)
        for field, first, last in self._fields(start, stop):
            if field == 1:
                dims.extend(self._numbers(first, last))
            elif field == 2:
                kind = self._text(first, last)
            elif field == 3:
                place = (first, last - first)
        return tuple(dims), kind, place

    def _numbers(self, start: int, stop: int) -> Iterator[int]:
        while start < stop:
            number, start = self._varint(start, stop)
            yield number

    def _fields(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Number and place of every field of the message at these bytes."""
        while start < stop:
            key, start = self._varint(start, stop)
            if key & 7 == _VARINT:
                _, last = self._varint(start, stop)
            elif key & 7 == _BYTES:
                length, start = self._varint(start, stop)
                last = start + length
            else:
                raise self.damaged(f"unknown wire type {key & 7}")
            if last > stop:
                raise self.damaged("a field passes the end of its message")
            yield key >> 3, start, last
            start = last

    def _varint(self, start: int, stop: int) -> tuple[int, int]:
        """A number of 7 bits a byte, and where it ends."""
        self._file.seek(start)
        number = 0
        for k, byte in enumerate(self._file.read(min(10, stop - start))):
            number |= (byte & 0x7F) << 7 * k
            if byte < 0x80:
                return number, start + k + 1
        raise self.damaged("a number does not end")

    def _text(self, start: int, stop: int) -> str:
        if stop - start > _WORD:
            raise self.damaged("a name is too long")
        self._file.seek(start)
        try:
            return self._file.read(stop - start).decode()
        except UnicodeDecodeError as error:
            raise self.damaged(str(error)) from error

    def _sum_agrees(self) -> bool:
        crc, end = 0, 0
        for offset, length in sorted(place for places in self.places.values() for place in places if place[1]):
            self._file.seek(end)
            crc = join_crc(zlib.crc32(self._file.read(offset - end), crc), self._sums[offset, length], length)
            end = offset + length
        self._file.seek(end)
        return zlib.crc32(self._file.read(self._end - end), crc) == self._expected


class CkptPlan:
    """Where everything of a file will lie, before a byte of it is written; tensors in the order of `specs`.

    places: name -> (offset, length) of its pieces. size: bytes of the file, with the checksum that
    mindspore.load_checkpoint(crc_check=True) reads.
    """

    def __init__(self, specs: Mapping[str, Spec]) -> None:
        self.specs = specs
        self.places: dict[str, list[tuple[int, int]]] = {}
        self._frames: list[tuple[int, bytes, str, int]] = []  # offset, bytes, and of which piece of which tensor
        end = 0
        for name, spec in specs.items():
            self.places[name] = []
            for start in range(0, spec.nbytes, SLICE) or (0,):
                length = min(SLICE, spec.nbytes - start)
                frame = _frame(name, spec, length)
                self._frames.append((end, frame, name, len(self.places[name])))
                self.places[name].append((end + len(frame), length))
                end += len(frame) + length
        self._end = end
        self.size = end + _TRAILER

    def seal(self, file: BinaryIO, sums: Mapping[str, list[int]]) -> None:
        """Write all that is no tensor. sums: the CRC-32 of every piece."""
        crc = 0
        for offset, frame, name, k in self._frames:
            file.seek(offset)
            file.write(frame)
            crc = join_crc(zlib.crc32(frame, crc), sums[name][k], self.places[name][k][1])
        file.seek(self._end)
        file.write(_CRC + crc.to_bytes(10, "big"))


class CkptWriter:
    """Writes tensors as they come, with the checksum that mindspore.load_checkpoint(crc_check=True) reads."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._crc = 0

    def put(self, name: str, array: np.ndarray) -> None:
        """Write one tensor."""
        for piece in _pieces(name, array):
            self._file.write(piece)
            self._crc = zlib.crc32(piece, self._crc)

    def close(self, *, complete: bool = True) -> None:
        """Write the checksum, unless something failed, and close the file."""
        try:
            if complete:
                self._file.write(_CRC + self._crc.to_bytes(10, "big"))
        finally:
            self._file.close()


def _pieces(name: str, array: np.ndarray) -> Iterator[bytes | memoryview]:
    """The bytes of the values of one tensor."""
    spec, unwritten, left = spec_of(array), array.nbytes, 0
    if not unwritten:
        yield _frame(name, spec, 0)
    for piece in blocks(array):
        start = 0
        while start < piece.size:
            if not left:
                left = min(SLICE, unwritten)
                yield _frame(name, spec, left)
            part = piece[start : start + left]
            yield part.data
            start, left, unwritten = start + part.size, left - part.size, unwritten - part.size


def _frame(name: str, spec: Spec, length: int) -> bytes:
    """All of a value that stands before its `length` bytes of content."""
    dims = b"".join(_number(1 << 3 | _VARINT) + _number(size) for size in spec.shape)
    tensor = dims + _field(2, _TYPES[spec.dtype].encode()) + _number(3 << 3 | _BYTES) + _number(length)
    value = _field(1, name.encode()) + _number(2 << 3 | _BYTES) + _number(len(tensor) + length) + tensor
    return _number(1 << 3 | _BYTES) + _number(len(value) + length) + value


def _field(number: int, content: bytes) -> bytes:
    return _number(number << 3 | _BYTES) + _number(len(content)) + content


def _number(value: int) -> bytes:
    """A number in 7 bits a byte, lowest first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
