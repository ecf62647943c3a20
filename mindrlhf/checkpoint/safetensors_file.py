"""The safetensors format: 8 bytes of length, a JSON header, then the bytes of the tensors.

Read and written one tensor at a time through plain reads and writes: mapped pages, which the safetensors package reads
through, would count as memory of the process.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mindrlhf.checkpoint.crc import join_crc
from mindrlhf.checkpoint.tensor_file import Spec, TensorFile, blocks, spec_of
from mindrlhf.runtime.errors import UserError

# In the order in which the safetensors package ranks them; a file begins with the highest.
NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
FOR_HUGGING_FACE = {"format": "pt"}  # which transformers asks for
_SPELLED = {dtype: name for name, dtype in NAMES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(NAMES.values())}
_METADATA, _CRC = "__metadata__", "crc_num"
_LONGEST_HEADER = 100_000_000  # of the safetensors package


def spelled(spec: Spec) -> str:
    """The format's word for a dtype."""
    return _SPELLED[spec.dtype]


class SafetensorsFile(TensorFile):
    """An opened .safetensors file; MindSpore's checksum is checked where the file has one."""

    def _open(self) -> bool:
        start, entries = self._header()
        metadata = entries.pop(_METADATA, None) or {}
        try:
            ends = 0
            for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
                if entry["dtype"] not in NAMES:
                    raise UserError(
                        f"{self.path}: {name} is {entry['dtype']}, which is not supported; use other weights"
                    )
                spec = Spec(NAMES[entry["dtype"]], tuple(map(int, entry["shape"])))
                first, last = entry["data_offsets"]
                if first != ends or last - first != spec.nbytes or min(spec.shape, default=0) < 0:
                    raise self.damaged(f"the place of {name} is not that of its shape")
                self.table[name], self.places[name] = spec, [(start + first, last - first)]
                ends = last
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.damaged(f"its header is not one: {error}") from error
        if start + ends != self.size:
            raise self.damaged(f"it has {self.size} bytes, its header says {start + ends}")
        self.sum = metadata.get(_CRC) if isinstance(metadata, dict) else None
        return self.sum is not None

    def _header(self) -> tuple[int, dict[str, Any]]:
        """Where the data begins, and the entries of the header."""
        head = self._file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(_LONGEST_HEADER, self.size - 8):
            raise self.damaged("it has no header")
        try:
            entries = json.loads(self._file.read(length))
        except (ValueError, RecursionError) as error:
            raise self.damaged(f"its header is not JSON: {error}") from error
        if not isinstance(entries, dict):
            raise self.damaged("its header is not an object")
        return 8 + length, entries

    def _sum_agrees(self) -> bool:
        pieces = {
            name: [(length, self._sums[offset, length]) for offset, length in places]
            for name, places in self.places.items()
        }
        return str(self.sum).isdecimal() and int(str(self.sum)) == _sum(pieces)


class SafetensorsPlan:
    """Where everything of a file will lie, before a byte of it is written; equal specs give equal plans.

    specs: every tensor of the file. places: name -> (offset, length) of its pieces, here always one. size: bytes of
    the file. hugging_face: with the entry that transformers asks for instead of the checksum that MindSpore's crc_check
    reads.
    """

    def __init__(self, specs: Mapping[str, Spec], *, hugging_face: bool = False) -> None:
        self.specs = specs
        self.hugging_face = hugging_face
        self._offsets: dict[str, int] = {}
        end = 0
        for name in sorted(specs, key=lambda name: (-_RANKS[specs[name].dtype], name)):
            self._offsets[name] = end
            end += specs[name].nbytes
        start = len(self._head(0))
        self.places = {name: [(start + at, specs[name].nbytes)] for name, at in self._offsets.items()}
        self.size = start + end

    def seal(self, file: BinaryIO, sums: Mapping[str, list[int]]) -> None:
        """Write all that is no tensor. sums: the CRC-32 of every piece."""
        pieces = {name: [(spec.nbytes, sums[name][0])] for name, spec in self.specs.items()}
        file.seek(0)
        file.write(self._head(0 if self.hugging_face else _sum(pieces)))

    def _head(self, crc: int) -> bytes:
        """The length and the header, padded to 8 bytes as the package does; as long for any checksum."""
        # One entry alone, in an order that is always the same: equal replicas must be equal files.
        entries: dict[str, Any] = {_METADATA: FOR_HUGGING_FACE if self.hugging_face else {_CRC: f"{crc:010}"}}
        for name, offset in self._offsets.items():
            spec = self.specs[name]
            entries[name] = {
                "dtype": spelled(spec),
                "shape": list(spec.shape),
                "data_offsets": [offset, offset + spec.nbytes],
            }
        header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        return struct.pack("<Q", len(header)) + header


class SafetensorsWriter:
    """Writes a file of tensors that come one at a time and in any order; equal tensors give equal bytes.

    specs, hugging_face: see `SafetensorsPlan`. To be closed in the end; what happens to a half-written file is the
    caller's.
    """

    def __init__(self, path: Path, specs: Mapping[str, Spec], *, hugging_face: bool = False) -> None:
        self.specs = specs
        self._plan = SafetensorsPlan(specs, hugging_face=hugging_face)
        self._sums: dict[str, list[int]] = {}
        self._file = path.open("wb")
        self._file.truncate(self._plan.size)

    def put(self, name: str, array: np.ndarray) -> None:
        """Write one tensor."""
        assert spec_of(array) == self.specs[name], f"{name} is {spec_of(array)}, announced as {self.specs[name]}"
        assert name not in self._sums, f"{name} is written twice"
        ((offset, _),) = self._plan.places[name]
        self._file.seek(offset)
        crc = 0
        for piece in blocks(array):
            self._file.write(piece.data)
            crc = 0 if self._plan.hugging_face else zlib.crc32(piece.data, crc)
        self._sums[name] = [crc]

    def close(self, *, complete: bool = True) -> None:
        """Write the header, unless something failed, and close the file."""
        try:
            if complete:
                missing = self.specs.keys() - self._sums.keys()
                assert not missing, f"{sorted(missing)} were never written"
                self._plan.seal(self._file, self._sums)
        finally:
            self._file.close()


def write_safetensors(
    path: Path, specs: Mapping[str, Spec], arrays: Iterable[tuple[str, np.ndarray]], *, hugging_face: bool = False
) -> None:
    """Write one file; see `SafetensorsWriter`."""
    writer = SafetensorsWriter(path, specs, hugging_face=hugging_face)
    complete = False
    try:
        for name, array in arrays:
            writer.put(name, array)
        complete = True
    finally:
        writer.close(complete=complete)


def _sum(pieces: Mapping[str, list[tuple[int, int]]]) -> int:
    """MindSpore's checksum: CRC-32 over name and bytes of each tensor, by name. pieces: name -> (length, CRC-32)."""
    crc = 0
    for name in sorted(pieces):
        crc = zlib.crc32(name.encode(), crc)
        for length, part in pieces[name]:
            crc = join_crc(crc, part, length)
    return crc
