"""Which pairs make which step, whoever computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mindrlhf.data.batches import Counts, PreferenceBatches, Shape, batch_shape, count, split_micro_batches
from mindrlhf.data.records import Pair
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.seed import permutation

SHAPE = Shape(32, 16)
BATCH = 8


class Records(list):  # type: ignore[type-arg]
    """Pairs in memory, as PairRecords gives them; pair i begins with token i."""

    def __init__(self, size: int, seq_len: int = 32, max_response: int = 16) -> None:
        self.seq_len, self.max_response = seq_len, max_response
        generator = np.random.default_rng(size)
        for number in range(size):
            prompt, chosen, rejected = generator.integers(1, [15, 17, 17])
            tokens = ([number, *[1] * (prompt - 1)], [2] * chosen, [3] * rejected)
            self.append(Pair(number, *(np.array(ids, np.int32) for ids in tokens)))


def batches(records: Records, micro: int = BATCH, **more: Any) -> PreferenceBatches:
    return PreferenceBatches(records, SHAPE, BATCH, micro, **more)  # type: ignore[arg-type]


def pair_ids(records: Records, step: int, workers: int = 1, micro: int = BATCH, **more: Any) -> list[int | None]:
    """The pairs of a global batch in the order of workers and micro-batches; None for filler."""
    found: list[int | None] = []
    for worker in range(workers):
        made = batches(records, micro, worker=worker, workers=workers, **more).step(step)
        for rows in made.micro_batches:
            assert rows.pair_mask.shape == (micro, 1)
            real = rows.pair_mask[:, 0] == 1
            found += [int(first) if is_real else None for first, is_real in zip(rows.input_ids[::2, 0], real)]
    return found


def test_file_order() -> None:
    records = Records(20)
    assert [pair_ids(records, step) for step in range(3)] == [
        list(range(8)),
        list(range(8, 16)),
        [16, 17, 18, 19, None, None, None, None],
    ]
    assert pair_ids(records, 3) == list(range(8)), "the next epoch"


def test_shuffled_order() -> None:
    records = Records(20)
    for epoch in range(2):
        order: list[int | None] = []
        for step in range(3):
            order += pair_ids(records, 3 * epoch + step, shuffle=True, seed=5)
        assert order[20:] == [None] * 4
        assert order[:20] == permutation(5, epoch, 20).tolist()
    orders = {tuple(permutation(seed, epoch, 20)) for seed, epoch in ((5, 0), (5, 1), (6, 0))}
    assert len(orders) == 3
    assert all(sorted(order) == list(range(20)) for order in orders)


@pytest.mark.parametrize(("workers", "micro"), [(1, 4), (1, 1), (2, 4), (2, 2), (4, 2), (4, 1), (8, 1)])
def test_workers_and_micro_batches_keep_the_order(workers: int, micro: int) -> None:
    records = Records(20)
    for step in range(6):
        assert pair_ids(records, step, workers, micro, shuffle=True) == pair_ids(records, step, shuffle=True)


def test_a_step_does_not_depend_on_those_before() -> None:
    """A resumed run starts in the middle, and may have been in another epoch before."""
    made = batches(Records(20), shuffle=True)
    there = [made.step(number).micro_batches[0].input_ids for number in range(6)]
    back = [made.step(number).micro_batches[0].input_ids for number in reversed(range(6))]
    np.testing.assert_array_equal(there, back[::-1])


@pytest.mark.parametrize(("size", "steps"), [(1, 1), (8, 1), (9, 2), (16, 2), (20, 3)])
def test_nothing_is_dropped(size: int, steps: int) -> None:
    records = Records(size)
    assert batches(records).steps_per_epoch == steps
    seen = [number for step in range(steps) for number in pair_ids(records, step, workers=4, micro=1)]
    assert [number for number in seen if number is not None] == list(range(size))


def test_denominators_and_counts_are_those_of_the_global_batch() -> None:
    records = Records(20)
    last = records[16:]
    chosen = sum(len(pair.chosen_ids) for pair in last)
    for worker in range(2):
        step = batches(records, 2, worker=worker, workers=2).step(2)
        assert step.counts == count(last)
        for rows in step.micro_batches:
            assert (float(rows.num_pairs), float(rows.num_chosen_tokens)) == (4.0, float(chosen))


def test_denominators_of_an_evaluation_are_those_of_the_whole_set() -> None:
    records = Records(20)
    made = batches(records, whole_set=True)
    assert made.whole == count(records)
    for number in range(3):
        rows = made.step(number).micro_batches[0]
        assert float(rows.num_pairs) == 20.0
        assert float(rows.num_chosen_tokens) == sum(len(pair.chosen_ids) for pair in records)


def test_counts_by_hand() -> None:
    lengths = [(3, 4, 5), (1, 2, 1)]
    pairs = [Pair(0, *(np.zeros(size, np.int32) for size in each)) for each in lengths]
    assert count(pairs) == Counts(pairs=2, tokens=7 + 8 + 3 + 2, chosen_tokens=6, rejected_tokens=6)
    records = Records(0)
    records += pairs
    # 16 rows of 32 places hold these 20 tokens but the last of each of the 4 answers.
    assert batches(records).step(0).padding_fraction == pytest.approx(1 - 16 / 512)


def test_the_reference_may_be_left_aside() -> None:
    records = Records(8)
    records[0] = Pair(0, records[0].prompt_ids, records[0].chosen_ids, records[0].rejected_ids, -1, -2, -3, -4)
    kept = batches(records).step(0).micro_batches[0]
    assert kept.ref_logps[0].tolist() == [-1, -2]
    assert not batches(records, with_reference=False).step(0).micro_batches[0].ref_logps.any()


@pytest.mark.parametrize(
    ("records", "seq_len", "shape"),
    [
        ([Records(1)], None, (32, 16)),
        ([Records(1, 513, 17)], None, (512, 32)),
        ([Records(1, 32, 5), Records(1, 65, 20)], None, (64, 32)),  # train and eval share their graphs
        ([Records(1)], 100, (112, 16)),
        ([Records(1, 18, 17)], None, (32, 32)),
        ([Records(1, 17, 16)], 17, (16, 16)),
    ],
)
def test_batch_shape(records: list[Any], seq_len: int | None, shape: tuple[int, int]) -> None:
    assert batch_shape(records, seq_len) == Shape(*shape)


def test_seq_len_below_the_records() -> None:
    with pytest.raises(UserError, match=r"data\.seq_len is 31, below the 32 the record was made with"):
        batch_shape([Records(1)], 31)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((8, 1, None), (8, 1)), ((8, 2, None), (4, 1)), ((8, 2, 1), (1, 4)), ((8, 8, 1), (1, 1)), ((12, 2, 3), (3, 2))],
)
def test_split(arguments: tuple[int, int, int | None], expected: tuple[int, int]) -> None:
    assert split_micro_batches(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((8, 3, None), "global_batch_pairs is 8, which 3 workers do not share evenly; give a multiple of 3"),
        ((8, 2, 3), "global_batch_pairs 8 is not 2 workers x 3 train.micro_batch_pairs x a whole number"),
        ((8, 2, 8), "global_batch_pairs 8 is not 2 workers x 8 train.micro_batch_pairs x a whole number"),
    ],
)
def test_a_split_that_does_not_come_out(arguments: tuple[int, int, int | None], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        split_micro_batches(*arguments)
