"""Which pairs make which step: the order of data, the same for every number of workers and micro-batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mindrlhf.data.records import Pair, PairRecords
from mindrlhf.data.rows import COLLATIONS, Collation, Rows, round_up, row_length
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.seed import permutation


@dataclass(frozen=True)
class Shape:
    """Static sizes of every batch of a run: S tokens of a row, T scored tokens of a row."""

    length: int
    scored: int


@dataclass(frozen=True)
class Counts:
    """What a set of pairs holds. tokens: non-padding ones, each answer with its prompt; the others: scored tokens."""

    pairs: int
    tokens: int
    chosen_tokens: int
    rejected_tokens: int


def count(pairs: Iterable[Pair]) -> Counts:
    """Counts over `pairs`."""
    lengths = [(len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs]
    prompt, chosen, rejected = (sum(column) for column in zip(*lengths))
    return Counts(len(lengths), 2 * prompt + chosen + rejected, chosen, rejected)


@dataclass(frozen=True)
class Step:
    """One worker's share of a global batch, and the counts and padding of the whole of it."""

    micro_batches: list[Rows]
    counts: Counts
    padding_fraction: float


def batch_shape(records: list[PairRecords], seq_len: int | None) -> Shape:
    """Sizes that hold every pair of `records`; `seq_len` may pad a record's own, not cut it."""
    own = max(record.seq_len for record in records)
    if seq_len is not None and seq_len < own:
        raise UserError(f"data.seq_len is {seq_len}, below the {own} the record was made with; preprocess again")
    length = row_length(seq_len or own)
    longest = max(record.max_response for record in records)
    return Shape(length, min(length, round_up(longest)))


def split_micro_batches(global_batch_pairs: int, workers: int, micro_batch_pairs: int | None) -> tuple[int, int]:
    """(pairs per worker and pass, passes per step); UserError with the numbers where they do not divide."""
    if global_batch_pairs % workers:
        raise UserError(
            f"train.global_batch_pairs is {global_batch_pairs}, which {workers} workers do not share evenly; "
            f"give a multiple of {workers}"
        )
    share = global_batch_pairs // workers
    micro = share if micro_batch_pairs is None else micro_batch_pairs
    if share % micro:
        raise UserError(
            f"train.global_batch_pairs {global_batch_pairs} is not {workers} workers x {micro} "
            f"train.micro_batch_pairs x a whole number; change one of them"
        )
    return micro, share // micro


class PreferenceBatches:
    """Global batch b of epoch e is entries bB to bB+B-1 of permutation(seed, e) (or of file order); worker r takes the
    r-th contiguous slice of it and cuts it into micro-batches in order. The last batch is filled up, nothing dropped.
    """

    def __init__(
        self,
        records: PairRecords,
        shape: Shape,
        global_batch_pairs: int,
        micro_batch_pairs: int,
        worker: int = 0,
        workers: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        with_reference: bool = True,
        whole_set: bool = False,
        collation: Collation = COLLATIONS["padded"],
    ) -> None:
        """`with_reference` False leaves the records' reference aside.

        `whole_set`: denominators are those of all records, for an evaluation, not of each global batch.
        """
        self.records = records
        self.shape = shape
        self.batch = global_batch_pairs
        self.micro = micro_batch_pairs
        self.worker = worker
        self.workers = workers
        self.shuffle = shuffle
        self.seed = seed
        self.with_reference = with_reference
        self.collation = collation
        self.whole = count(map(records.__getitem__, range(len(records)))) if whole_set else None
        self._orders: dict[int, np.ndarray] = {}

    @property
    def steps_per_epoch(self) -> int:
        """ceil(N / B)."""
        return -(-len(self.records) // self.batch)

    def pairs(self, number: int) -> list[Pair]:
        """The real pairs of the `number`-th global batch of the run, counted from 0, through the epochs."""
        epoch, batch = divmod(number, self.steps_per_epoch)
        order = self._order(epoch)[batch * self.batch : (batch + 1) * self.batch]
        return [self.records[int(index)] for index in order]

    def step(self, number: int) -> Step:
        """This worker's share of the `number`-th step, counted as in `pairs`."""
        pairs = self.pairs(number)
        counts = count(pairs)
        over = self.whole or counts
        share = self.batch // self.workers
        filled: list[Pair | None] = [*pairs, *[None] * (self.batch - len(pairs))]
        mine = filled[self.worker * share : (self.worker + 1) * share]
        micro_batches = [
            self.collation.collate(
                mine[start : start + self.micro],
                self.shape.length,
                self.shape.scored,
                over.pairs,
                over.chosen_tokens,
                self.with_reference,
            )
            for start in range(0, share, self.micro)
        ]
        units = self.batch // self.collation.pairs_per_unit
        places = units * self.collation.rows_per_unit * self.shape.length
        # The last token of each answer is predicted and never stands in a row.
        in_rows = counts.tokens - 2 * counts.pairs
        return Step(micro_batches, counts, 1.0 - in_rows / places)

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.records))
        if epoch not in self._orders:
            self._orders = {epoch: permutation(self.seed, epoch, len(self.records))}
        return self._orders[epoch]
