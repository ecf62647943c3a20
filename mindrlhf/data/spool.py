"""Pairs on disk while their record is not complete, so that memory does not grow with their number."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mindrlhf.runtime.files import PathLike

if TYPE_CHECKING:
    from mindrlhf.data.records import Pair

FIXED_BYTES = 160  # of a row of a MindRecord beside its token ids: 135 where it has a reference


@dataclass(frozen=True)
class Sizes:
    """What must be known of all pairs before the first is written.

    `largest_row` and `row_bytes` are bytes of the longest row and of all rows in a MindRecord, `max_response` tokens of
    the longest response of either kind.
    """

    pairs: int = 0
    largest_row: int = 0
    row_bytes: int = 0
    max_response: int = 0

    def __add__(self, other: Sizes) -> Sizes:
        return Sizes(
            self.pairs + other.pairs,
            max(self.largest_row, other.largest_row),
            self.row_bytes + other.row_bytes,
            max(self.max_response, other.max_response),
        )


def sizes_of(pairs: Iterable[Pair]) -> Sizes:
    """The sizes of `pairs` together."""
    total = Sizes()
    for pair in pairs:
        prompt, chosen, rejected = len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)
        size = FIXED_BYTES + 4 * (prompt + chosen + rejected)
        total += Sizes(1, size, size, max(chosen, rejected))
    return total


class Spool:
    """Pairs in the order in which they are added, in a file without a name in `folder`; iterated any number of times.

    `sizes` are those of all pairs so far. Either all pairs have reference log-probs, or none.
    """

    def __init__(self, folder: PathLike) -> None:
        self.sizes = Sizes()
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (lives as long as this)

    def add(self, pairs: Iterable[Pair]) -> None:
        """Append `pairs`."""
        for pair in pairs:
            self.sizes += sizes_of([pair])
            ids = (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
            sums = (
                pair.ref_chosen_logps,
                pair.ref_rejected_logps,
                pair.ref_chosen_shared_logps,
                pair.ref_rejected_shared_logps,
            )
            known = [value for value in sums if value is not None]
            head = np.array([pair.pair_id, *map(len, ids), len(known)], np.int64)
            tokens = b"".join(np.asarray(each, np.int32).tobytes() for each in ids)
            self._file.write(head.tobytes() + np.array(known, np.float32).tobytes() + tokens)

    def __iter__(self) -> Iterator[Pair]:
        from mindrlhf.data.records import Pair

        self._file.seek(0)
        while head := self._file.read(5 * 8):
            pair_id, *lengths, known = np.frombuffer(head, np.int64).tolist()
            sums = np.frombuffer(self._file.read(4 * known), np.float32).tolist()
            ids = [np.frombuffer(self._file.read(4 * length), np.int32) for length in lengths]
            yield Pair(pair_id, ids[0], ids[1], ids[2], *sums)
