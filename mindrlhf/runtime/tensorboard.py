"""The rows of metrics.jsonl for TensorBoard: an event file of scalars, readable at any moment.

A file is a series of records: length of the data (8 bytes), checksum of these 8, data, checksum of the data. The data
is a protobuf Event, written here by hand: protobuf must not be imported before MindSpore, which chooses how it works.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from mindrlhf.runtime.files import PathLike, replacing

_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
# Fields of Event, Summary and Summary.Value: the number of the field * 8 + how it is stored.
_WALL_TIME, _STEP, _VERSION, _SUMMARY = b"\x09", b"\x10", b"\x1a", b"\x2a"
_VALUE, _TAG, _NUMBER = b"\x0a", b"\x0a", b"\x15"
_STEP_AT = 1 + 8 + 1  # where the step of an event begins, behind the wall time


class EventWriter:
    """Appends rows to one event file in a folder.

    A run that starts anew replaces what event files the folder holds; one that resumes after step k joins them without
    what lies beyond.
    """

    def __init__(self, folder: PathLike, resumed_step: int = 0) -> None:
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        earlier = sorted(place.glob("*tfevents*"))
        # A run that was killed while it joined files has left some records twice; those of a dict are different.
        kept = dict.fromkeys(record for path in earlier if resumed_step for record in _until(path, resumed_step))
        # A new name each time: a TensorBoard that is watching goes on to a file that sorts behind the one it reads.
        self.path = place / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        with replacing(self.path) as temporary:
            temporary.write_bytes(b"".join((_record(_now() + _sized(_VERSION, b"brain.Event:2")), *kept)))
        for path in earlier:
            if path != self.path:
                path.unlink()

    def write(self, step: int, figures: Mapping[str, float | None]) -> None:
        """Append one event with a scalar, a float32, for each figure that is a number."""
        values = [
            _sized(_VALUE, _sized(_TAG, name.encode()) + _NUMBER + struct.pack("<f", value))
            for name, value in figures.items()
            if value is not None
        ]
        event = _now() + _STEP + _varint(step) + _sized(_SUMMARY, b"".join(values))
        with self.path.open("ab") as file:
            file.write(_record(event))


def _until(path: Path, step: int) -> Iterator[bytes]:
    """The records of rows up to `step`; one that is cut off or damaged ends them."""
    content, place = path.read_bytes(), 0
    while place + _LENGTH.size <= len(content):
        start = place + _LENGTH.size + _CHECKSUM.size
        end = start + _LENGTH.unpack_from(content, place)[0]
        data, record = content[start:end], content[place : end + _CHECKSUM.size]
        if record != _record(data):
            return
        of_row = data[:1] == _WALL_TIME and data[_STEP_AT - 1 : _STEP_AT] == _STEP
        if of_row and _read_varint(data[_STEP_AT:]) <= step:
            yield record
        place += len(record)


def _record(data: bytes) -> bytes:
    length = _LENGTH.pack(len(data))
    return length + _CHECKSUM.pack(_masked_crc(length)) + data + _CHECKSUM.pack(_masked_crc(data))


def _now() -> bytes:
    return _WALL_TIME + struct.pack("<d", time.time())


def _sized(field: bytes, content: bytes) -> bytes:
    return field + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _read_varint(content: bytes) -> int:
    return content[0] if content[0] < 0x80 else (content[0] & 0x7F) | _read_varint(content[1:]) << 7


def _masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted by a constant, as TensorFlow's records have it."""
    crc, table = 0xFFFFFFFF, _crc_table()
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@cache
def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 if crc & 1 else crc >> 1
        table.append(crc)
    return table
