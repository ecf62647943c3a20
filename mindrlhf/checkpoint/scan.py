"""One tensor of many ranks, read once from its first byte to its last: joined, summed, compared, and written on.

It passes in bands of a few megabytes, so that memory does not grow with the tensor. The bands come in the order of the
bytes of the tensor, and with it of every slice: all sums are made on the way.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

import numpy as np

from mindrlhf.checkpoint.ckpt_file import CkptPlan
from mindrlhf.checkpoint.rank_slices import Part, RankSlices
from mindrlhf.checkpoint.safetensors_file import SafetensorsPlan
from mindrlhf.parallel.slices import Box, bands, common, extent, whole, within
from mindrlhf.runtime.errors import CorruptCheckpoint

BAND = 1 << 24  # bytes of a tensor in memory at once
Plan = Union[SafetensorsPlan, CkptPlan]


@dataclass(frozen=True)
class TargetFile:
    """A file to be written. path: where it grows, `plan.size` bytes long. boxes: name -> what of it goes there."""

    path: Path
    plan: Plan
    boxes: Mapping[str, Box]


@dataclass(frozen=True)
class Written:
    """A slice that was written. target: number of the file. sums: CRC-32 of its pieces."""

    target: int
    sums: list[int]
    sha256: str


@dataclass(frozen=True)
class Scanned:
    """A tensor that was read. parts: hex sha256 of each part. constant: whether all its numbers are one."""

    name: str
    sha256: str
    parts: tuple[str, ...]
    constant: bool
    written: tuple[Written, ...] = field(default=())


def scan(source: RankSlices, name: str, targets: Sequence[TargetFile] = ()) -> Scanned:
    """Read a tensor from every rank that holds any of it, and write it to those of `targets` that take any.

    Raises `CorruptCheckpoint` where bytes are not those of a manifest, or where ranks that should hold the same do not.
    """
    spec = source.table[name]
    parts = [_Summed(source, name, part) for part in source.parts[name]]
    # What was summed as it was read is not summed again: a part that is the whole, a slice that is a part.
    known = [part.part.box for part in parts] + [whole(spec.shape)]
    slices = [
        _Slice(number, target, name, summed=target.boxes[name] not in known)
        for number, target in enumerate(targets)
        if name in target.boxes
    ]
    total = hashlib.sha256()
    try:
        for box in bands(spec.shape, BAND // spec.itemsize):
            band = _band(parts, box, spec.raw)
            if len(parts) > 1:
                total.update(band.data)
            for piece in slices:
                piece.take(band, box)
    finally:
        for piece in slices:
            piece.close()
    digests = tuple(part.verified() for part in parts)
    sha256 = total.hexdigest() if len(parts) > 1 else digests[0]
    by_box = dict(zip(known, [*digests, sha256]))
    written = tuple(piece.done(by_box) for piece in slices)
    constant = len({part.value for part in parts}) == 1 and parts[0].value is not None
    return Scanned(name, sha256, digests, constant, written)


def _band(parts: Sequence[_Summed], box: Box, raw: np.dtype) -> np.ndarray:
    """A box of the tensor, contiguous, all that holds any of it read and summed."""
    met = [(part, shared) for part in parts if (shared := common(part.part.box, box)) is not None]
    if len(met) == 1:
        return met[0][0].take(met[0][1])
    band = np.empty(extent(box), raw)
    for part, shared in met:
        band[within(shared, box)] = part.take(shared)
    return band


class _Summed:
    """A part that is being read from all of its ranks."""

    def __init__(self, source: RankSlices, name: str, part: Part) -> None:
        self.source = source
        self.name = name
        self.part = part
        # Links to one file are read once.
        links = {source.files[rank].identity: k for k, rank in reversed(list(enumerate(part.ranks)))}
        self.others = sorted(links.values())[1:]
        self.sha256 = hashlib.sha256()
        self.value: bytes | None = b""  # the one number met so far, None for several

    def take(self, box: Box) -> np.ndarray:
        """A box within the part, from its first rank; what the others hold is compared with it."""
        first = self.source.read_part(self.name, self.part, box)
        self.sha256.update(first.data)
        if self.value is not None:
            number = first.flat[:1].tobytes()
            same = self.value in (b"", number) and bool((first == first.flat[0]).all())
            self.value = number if same else None
        for holder in self.others:
            if not np.array_equal(self.source.read_part(self.name, self.part, box, holder), first):
                self._differ(holder)
        return first

    def verified(self) -> str:
        """The digest of the part, which is that of every rank and of its manifest."""
        found = self.sha256.hexdigest()
        for rank in self.part.ranks:
            self._require(rank, found)
        return found

    def _require(self, rank: int, sha256: str) -> None:
        """Raise where this digest of a rank's slice is not the one in its manifest."""
        manifest = self.source.manifests[rank]
        if manifest and manifest.sha256[self.name] != sha256:
            raise CorruptCheckpoint(
                f"{self.source.files[rank].path} is damaged: the sha256 of {self.name} is not the one in its manifest; "
                f"copy it anew"
            )

    def _differ(self, holder: int) -> None:
        ranks = [self.part.ranks[k] for k in (0, holder)]
        for rank in ranks:
            if self.source.manifests[rank]:
                self._require(rank, self.source.files[rank].sha256(self.name))
        one, other = (self.source.files[rank].path.parent for rank in ranks)
        raise CorruptCheckpoint(
            f"{one.name} and {other.name} of {one.parent} should hold the same {self.name} and differ: they are of "
            f"different saves, or one is damaged; copy both anew"
        )


class _Slice:
    """A slice that is being written, its bytes from first to last."""

    def __init__(self, number: int, target: TargetFile, name: str, *, summed: bool) -> None:
        """summed: whether its sha256 is to be made here."""
        self.number = number
        self.box = target.boxes[name]
        self.summed = summed
        self.places = target.plan.places[name]
        self.sums = [0] * len(self.places)
        self.sha256 = hashlib.sha256()
        self.at = 0
        self.file = os.open(target.path, os.O_WRONLY)

    def take(self, band: np.ndarray, box: Box) -> None:
        """Write what a band has of it."""
        shared = common(self.box, box)
        if shared is None:
            return
        data = np.ascontiguousarray(band[within(shared, box)]).reshape(-1).view(np.uint8)
        if self.summed:
            self.sha256.update(data.data)
        for k, offset, piece in self._placed(data):
            self.sums[k] = zlib.crc32(piece.data, self.sums[k])
            _write(self.file, piece, offset)
        self.at += data.size

    def _placed(self, data: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """Number of a piece, offset in the file, and the bytes that go there."""
        start = self.at
        for k, (offset, length) in enumerate(self.places):
            if start < length and data.size:
                count = min(length - start, data.size)
                yield k, offset + start, data[:count]
                data, start = data[count:], start + count
            start -= length

    def done(self, known: Mapping[Box, str]) -> Written:
        """What was written, in the end. known: digests of boxes that were summed elsewhere."""
        assert self.at == sum(length for _, length in self.places), f"{self.at} bytes written of {self.places}"
        sha256 = self.sha256.hexdigest() if self.summed else known[self.box]
        return Written(self.number, self.sums, sha256)

    def close(self) -> None:
        """Close the file."""
        os.close(self.file)


def _write(file: int, data: np.ndarray, offset: int) -> None:
    """All of `data` at `offset`: one call may write less."""
    while data.size:
        count = os.pwrite(file, data.data, offset)
        data, offset = data[count:], offset + count
