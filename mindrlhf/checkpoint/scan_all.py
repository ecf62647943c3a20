"""All tensors of many ranks, by several processes, and what only all of them together tell."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Union

from mindrlhf.checkpoint.crew import work
from mindrlhf.checkpoint.rank_slices import RankSlices
from mindrlhf.checkpoint.scan import Scanned, TargetFile, scan
from mindrlhf.runtime.errors import CorruptCheckpoint
from mindrlhf.runtime.progress import Progress

_MIB = 1 << 20
_OF_A_PROCESS = 90 * _MIB  # bytes that one needs: Python, NumPy, a few bands
_MEMORY, _MOST, _SMALL = 200 * _MIB, 8, 256 * _MIB
Task = Union[str, int]  # the name of a tensor, or the rank of a file whose checksum is to be verified


@dataclass(frozen=True)
class _Scan:
    """What every process is given."""

    source: RankSlices
    targets: Sequence[TargetFile]

    def __call__(self, task: Task) -> Scanned | None:
        """Scan one tensor, or check one file."""
        if isinstance(task, str):
            return scan(self.source, task, self.targets)
        self.source.check_file(task)
        return None


def scan_all(source: RankSlices, targets: Sequence[TargetFile], processes: int | None, what: str) -> list[Scanned]:
    """`scan` of every tensor, with a line of progress named `what`.

    processes: None for as many as cores and memory suggest. Raises as `scan`, and where a file without a manifest fails
    its checksum.
    """
    source.close()  # every process opens for itself
    names = sorted(source.table, key=lambda name: source.table[name].nbytes, reverse=True)
    # Without a manifest, a checksum of the whole file is all there is against flipped bits.
    distinct = {file.identity: rank for rank, file in reversed(list(enumerate(source.files)))}
    summed = [rank for rank in sorted(distinct.values()) if source.files[rank].checked]
    files: list[Task] = [rank for rank in summed if source.beside and not source.manifests[rank]]
    sizes = {name: source.table[name].nbytes for name in names}
    done = 0
    scanned: list[Scanned] = []
    with closing(Progress(what, len(names), unit="tensor")) as progress:
        for found in work(_Scan(source, targets), [*names, *files], processes or suggested(sizes.values())):
            if found:
                scanned.append(found)
                done += sizes[found.name]
                progress.advance(f"{done / _MIB:.1f} MiB")
    return scanned


def suggested(sizes: Collection[int]) -> int:
    """Processes for tensors of these sizes: one where little is to be done, and no more than twice the largest tensor
    and 200 MB hold."""
    if sum(sizes) < _SMALL:
        return 1
    room = _MEMORY + 2 * max(sizes)
    return max(1, min(len(os.sched_getaffinity(0)), _MOST, room // _OF_A_PROCESS))


def require_own_slices(source: RankSlices, scanned: Sequence[Scanned]) -> None:
    """Raise `CorruptCheckpoint` where slices are the same that the strategy calls different.

    Of a checkpoint without manifests, in all of a tensor; in any, where all tensors of two ranks are the same.
    """
    holdings: list[list[tuple[str, str, int]]] = [[] for _ in source.files]
    for found in scanned:
        parts = source.parts[found.name]
        if len(parts) == 1 or found.constant:
            continue
        if len(set(found.parts)) == 1 and source.manifests[0] is None:
            raise CorruptCheckpoint(
                f"{source.path} holds the same numbers in every slice of {found.name}, which {source.strategy.source} "
                f"calls different: files were copied, or the strategy is of another run"
            )
        for number, (part, digest) in enumerate(zip(parts, found.parts)):
            for rank in part.ranks:
                holdings[rank].append((found.name, digest, number))
    seen: dict[tuple[tuple[str, str], ...], int] = {}
    for rank, held in enumerate(holdings):
        if not held:
            continue
        held.sort()
        first = seen.setdefault(tuple((name, digest) for name, digest, _ in held), rank)
        if held != holdings[first]:
            raise CorruptCheckpoint(
                f"{source.files[rank].path} holds what {source.files[first].path} holds, and {source.strategy.source} "
                f"gives them other slices: copy the file of rank {rank} itself"
            )
