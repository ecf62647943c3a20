"""The parts that one worker writes, and what of an earlier run of the same command it keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindrlhf.data.encode_rows import Outcome
from mindrlhf.data.formats import Rejected
from mindrlhf.data.records import Pair, clear_parts, part_folder, part_path, write_records
from mindrlhf.data.rejected import rejected_line
from mindrlhf.data.sidecar import PART_NAME, difference, read_sidecar, verify
from mindrlhf.runtime.errors import BadRecord, UserError
from mindrlhf.runtime.files import PathLike

Span = tuple[int, int]

ROWS_PER_PAIR = 16  # a block ends after so many times more rows than it has pairs, however many of them are no pair


@dataclass
class Block:
    """Rows `start` to `stop` - 1 of the source, and what became of them."""

    start: int
    stop: int
    pairs: list[Pair] = field(default_factory=list)
    overlong: int = 0
    rejected: list[Rejected] = field(default_factory=list)

    @property
    def reasons(self) -> Counter[str]:
        """How often a row was rejected for which reason."""
        return Counter(row.reason for row in self.rejected)

    @property
    def lines(self) -> Iterator[bytes]:
        """The rejected rows as they are kept."""
        return map(rejected_line, self.rejected)


def blocks(outcomes: Iterable[Outcome], start: int, most_pairs: int) -> Iterator[Block]:
    """Cut what became of the rows from `start` on into blocks of `most_pairs` pairs, the last one shorter.

    The cuts depend on nothing but the rows, so that a run which continues makes the same ones.
    """
    block = Block(start, start)
    for row, outcome in enumerate(outcomes, start):
        block.stop = row + 1
        if isinstance(outcome, Rejected):
            block.rejected.append(outcome)
        elif outcome is None:
            block.overlong += 1
        else:
            block.pairs.append(Pair(row, outcome.prompt_ids, outcome.chosen_ids, outcome.rejected_ids))
        if len(block.pairs) == most_pairs or block.stop - block.start == ROWS_PER_PAIR * most_pairs:
            yield block
            block = Block(block.stop, block.stop)
    if block.stop > block.start:
        yield block


class Parts:
    """`DST.parts` as worker `rank` of `workers` fills it: its share of the rows, less what is kept of an earlier run.

    Made by every worker before any of them calls `clear`. UserError where another number of workers has begun the same.
    `replaced` says how parts that are of another run differ, and is empty where there are none.
    """

    def __init__(self, dst: PathLike, rank: int, workers: int, total: int, provenance: Mapping[str, Any]) -> None:
        self.dst, self.rank, self.workers, self.total = dst, rank, workers, total
        self.provenance = dict(provenance)
        self.folder = part_folder(dst)
        self.start, self.stop = total * rank // workers, total * (rank + 1) // workers
        self.replaced = ""
        self._look_at_all()
        self.kept: dict[Span, Path] = {}
        done = self.start
        for span, path in sorted(self._find_kept()):
            if span[0] >= done:
                self.kept[span] = path
                done = span[1]
        self._next = 0

    def _names(self) -> list[Path]:
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path for path in found if PART_NAME.fullmatch(path.name))

    def _look_at_all(self) -> None:
        for path in self._names():
            try:
                sidecar = read_sidecar(path)
            except (BadRecord, OSError):
                continue
            differing = difference(sidecar.provenance, self.provenance)
            self.replaced = self.replaced or differing
            if not differing and sidecar.workers != self.workers:
                raise UserError(
                    f"{self.folder} was begun by {sidecar.workers} worker(s), and now there are {self.workers}; run "
                    f"with {sidecar.workers}, or remove the folder to start anew"
                )

    def _find_kept(self) -> Iterator[tuple[Span, Path]]:
        """Whole parts of this worker's rows, by their rows."""
        for path in self._names():
            if not path.name.startswith(f"part-{self.rank:04d}-"):
                continue
            try:
                sidecar = verify(path)
            except (BadRecord, OSError):
                continue
            same = sidecar.provenance == self.provenance and sidecar.total == self.total
            if same and self.start <= sidecar.rows[0] and sidecar.rows[1] <= self.stop:
                yield sidecar.rows, path

    def clear(self) -> None:
        """Remove all that is not kept."""
        clear_parts(self.dst, self.rank, self.workers, self.kept.values())

    @property
    def kept_rows(self) -> int:
        """How many rows need not be done again."""
        return sum(stop - start for start, stop in self.kept)

    def missing(self) -> list[Span]:
        """The rows yet to be done, in order."""
        edges = [self.start, *(edge for span in self.kept for edge in span), self.stop]
        gaps = zip(edges[::2], edges[1::2])
        return [(start, stop) for start, stop in gaps if start < stop]

    def add(self, block: Block) -> None:
        """Write a block as a part, under the next number that no kept part has."""
        taken = set(self.kept.values())
        path = part_path(self.dst, self.rank, self._next)
        while path in taken:
            self._next += 1
            path = part_path(self.dst, self.rank, self._next)
        self._next += 1
        write_records(
            path,
            block.pairs,
            provenance=self.provenance,
            span=(block.start, block.stop),
            total=self.total,
            overlong=block.overlong,
            rejected=block.reasons,
            workers=self.workers,
            lines=block.lines,
        )
