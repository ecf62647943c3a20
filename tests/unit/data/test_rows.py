"""A scored token meets the hidden state before it, and no other token is scored."""

from __future__ import annotations

import numpy as np
import pytest

from mindrlhf.data.records import Pair
from mindrlhf.data.rows import Rows, padded, round_up, row_length

LENGTH, SCORED = 48, 32
INTEGER_FIELDS = ("input_ids", "position_ids", "segment_ids", "predict_from", "targets", "sequence_index")


def pair(prompt: int, chosen: int, rejected: int, seed: int = 0) -> Pair:
    """Random tokens; 0 is among them, as it is among those of real tokenizers."""
    generator = np.random.default_rng(seed)
    tokens = [generator.integers(0, 50, count, dtype=np.int32) for count in (prompt, chosen, rejected)]
    return Pair(seed, *tokens, -1.5, -2.5, -3.5, -4.5)


def random_pairs(count: int) -> list[Pair]:
    generator = np.random.default_rng(0)
    return [pair(*generator.integers(1, [17, 33, 33]), seed) for seed in range(count)]


def test_the_scored_tokens_are_the_response() -> None:
    pairs = random_pairs(200)
    rows = padded(pairs, LENGTH, SCORED, 200, 1)
    inside = 0
    for row in range(400):
        each, branch = pairs[row // 2], row % 2
        response = (each.chosen_ids, each.rejected_ids)[branch]
        scored = rows.sequence_index[row] == branch
        assert set(rows.sequence_index[row, ~scored]) <= {2}
        assert sorted(rows.targets[row, scored]) == sorted(response)
        places = rows.predict_from[row, scored]
        assert len(set(places)) == len(response), "one hidden state predicts one token"
        for place, target in zip(places, rows.targets[row, scored]):
            if place + 1 < LENGTH and rows.segment_ids[row, place + 1]:
                assert rows.input_ids[row, place + 1] == target
                inside += 1
    # All but the last token of every response stand in a row.
    assert inside == sum(len(each.chosen_ids) + len(each.rejected_ids) - 2 for each in pairs)


def test_a_row_by_hand() -> None:
    mine = Pair(0, *(np.array(ids, np.int32) for ids in ([7, 8, 9], [1, 2], [3, 4, 5, 6])))
    rows = padded([mine], 16, 16, 1, 2)
    assert rows.input_ids[0].tolist() == [7, 8, 9, 1] + 12 * [0]
    assert rows.position_ids[0].tolist() == [0, 1, 2, 3] + 12 * [0]
    assert rows.segment_ids[0].tolist() == [1, 1, 1, 2] + 12 * [0]
    assert rows.predict_from[0].tolist() == [2, 3] + 14 * [0]
    assert rows.targets[0].tolist() == [1, 2] + 14 * [0]
    assert rows.sequence_index[0].tolist() == [0, 0] + 14 * [2]
    assert rows.input_ids[1].tolist() == [7, 8, 9, 3, 4, 5] + 10 * [0]
    assert rows.segment_ids[1].tolist() == [1, 1, 1, 3, 3, 3] + 10 * [0]
    assert rows.predict_from[1].tolist() == [2, 3, 4, 5] + 12 * [0]
    assert rows.targets[1].tolist() == [3, 4, 5, 6] + 12 * [0]
    assert rows.sequence_index[1].tolist() == [1, 1, 1, 1] + 12 * [2]


def test_the_last_token_is_only_predicted() -> None:
    """So prompt and response may have one token more than the row."""
    full = pair(17, 32, 1)
    rows = padded([full], LENGTH, SCORED, 1, 32)
    assert (rows.segment_ids[0] > 0).all()
    assert rows.input_ids[0].tolist() == [*full.prompt_ids, *full.chosen_ids[:-1]]
    assert (rows.predict_from[0, -1], rows.targets[0, -1]) == (LENGTH - 1, full.chosen_ids[-1])
    # The rejected answer is one token, which stands in no row at all.
    assert set(rows.segment_ids[1]) == {0, 1}
    assert rows.targets[1, 0] == full.rejected_ids[0]


def test_a_pair_that_does_not_fit_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="shape"):
        padded([pair(18, 32, 1)], LENGTH, SCORED, 1, 32)


def test_filler() -> None:
    rows = padded([None, pair(3, 4, 5), None], LENGTH, SCORED, 1, 4)
    assert rows.pair_mask.tolist() == [[0], [1], [0]]
    for row in (0, 1, 4, 5):
        for name in INTEGER_FIELDS[:-1]:
            assert not getattr(rows, name)[row].any(), name
        assert (rows.sequence_index[row] == 2).all()
    assert not rows.ref_logps[[0, 2]].any()


def test_shapes_and_types() -> None:
    rows = padded(random_pairs(3), LENGTH, SCORED, 3, 40)
    shapes = [(6, LENGTH)] * 3 + [(6, SCORED)] * 4 + [(3, 2)] * 2 + [(3, 1), (), ()]
    assert [field.shape for field in rows] == shapes
    for name in Rows._fields:
        assert getattr(rows, name).dtype == (np.int32 if name in INTEGER_FIELDS else np.float32), name
    assert (float(rows.num_pairs), float(rows.num_chosen_tokens)) == (3.0, 40.0)


def test_the_shared_length_is_that_of_the_shorter_answer() -> None:
    (shared,) = padded([pair(3, 4, 7)], LENGTH, SCORED, 1, 4).in_shared[None]
    assert shared.sum(1).tolist() == [4, 4]
    assert shared[:, :4].all()


def test_reference() -> None:
    mine = pair(3, 4, 5)
    rows = padded([mine], LENGTH, SCORED, 1, 4)
    assert (rows.ref_logps.tolist(), rows.ref_shared_logps.tolist()) == ([[-1.5, -2.5]], [[-3.5, -4.5]])
    aside = padded([mine], LENGTH, SCORED, 1, 4, with_reference=False)
    absent = padded([Pair(0, mine.prompt_ids, mine.chosen_ids, mine.rejected_ids)], LENGTH, SCORED, 1, 4)
    for rows in (aside, absent):
        assert (rows.ref_logps.tolist(), rows.ref_shared_logps.tolist()) == ([[0, 0]], [[0, 0]])


@pytest.mark.parametrize(
    ("seq_len", "length"), [(2, 16), (17, 16), (18, 32), (512, 512), (513, 512), (514, 528), (4097, 4096), (8193, 8192)]
)
def test_row_length(seq_len: int, length: int) -> None:
    assert row_length(seq_len) == length


def test_round_up() -> None:
    assert [round_up(count) for count in (0, 1, 16, 17)] == [0, 16, 16, 32]
    assert round_up(65, 64) == 128
