"""Pairs as rows of tokens: the one place where a token meets the hidden state that predicts it.

Shape letters: R rows, S tokens of a row, T scored tokens of a row, U units, K pairs of a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable, NamedTuple

import numpy as np

from mindrlhf.data.records import Pair


class Rows(NamedTuple):
    """The fields of a batch, in the order in which cells take them.

    input_ids, position_ids (R,S) int32; segment_ids (R,S) int32: 0 padding, else 1 + 3k + branch of pair k of the row,
    branch 0 prompt, 1 chosen, 2 rejected. predict_from, targets, sequence_index (R,T) int32: token `targets` is
    predicted by the hidden state at `predict_from` and belongs to sequence `sequence_index` of its unit (2k chosen,
    2k + 1 rejected, 2K none). in_shared (R,T) float32: 1 for the first tokens of an answer, as many as the shorter
    answer of its pair has. ref_logps, ref_shared_logps (U,2K) float32. pair_mask (U,K) float32, 0 for filler.
    num_pairs, num_chosen_tokens () float32: real pairs and scored chosen tokens of the global batch.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    segment_ids: np.ndarray
    predict_from: np.ndarray
    targets: np.ndarray
    sequence_index: np.ndarray
    in_shared: np.ndarray
    ref_logps: np.ndarray
    ref_shared_logps: np.ndarray
    pair_mask: np.ndarray
    num_pairs: np.ndarray
    num_chosen_tokens: np.ndarray


def round_up(count: int, multiple: int = 16) -> int:
    """The least multiple that is not below `count`."""
    return -(-count // multiple) * multiple


def row_length(seq_len: int) -> int:
    """S for prompts and responses of at most `seq_len` tokens together: the last token is only predicted."""
    return round_up(seq_len - 1)


def padded(
    pairs: Sequence[Pair | None],
    length: int,
    scored: int,
    num_pairs: float,
    num_chosen_tokens: float,
    with_reference: bool = True,
) -> Rows:
    """One row per answer, chosen and rejected of a pair in turn, padded to S = `length`; None is a filler pair.

    `scored` is T, at least the longest response and a multiple of 16. `with_reference` False leaves the reference
    fields 0. A pair that does not fit is a mistake of the caller.
    """
    count = len(pairs)
    rows = 2 * count
    input_ids, position_ids, segment_ids = (np.zeros((rows, length), np.int32) for _ in range(3))
    predict_from, targets = (np.zeros((rows, scored), np.int32) for _ in range(2))
    sequence_index = np.full((rows, scored), 2, np.int32)
    in_shared = np.zeros((rows, scored), np.float32)
    ref_logps, ref_shared_logps = (np.zeros((count, 2), np.float32) for _ in range(2))
    pair_mask = np.zeros((count, 1), np.float32)
    for unit, pair in enumerate(pairs):
        if pair is None:
            continue
        pair_mask[unit, 0] = 1.0
        if with_reference and pair.ref_chosen_logps is not None:
            ref_logps[unit] = pair.ref_chosen_logps, pair.ref_rejected_logps
            ref_shared_logps[unit] = pair.ref_chosen_shared_logps, pair.ref_rejected_shared_logps
        prompt = len(pair.prompt_ids)
        in_shared[2 * unit : 2 * unit + 2, : min(len(pair.chosen_ids), len(pair.rejected_ids))] = 1.0
        for branch, response in enumerate((pair.chosen_ids, pair.rejected_ids)):
            row = 2 * unit + branch
            total = prompt + len(response)
            input_ids[row, : total - 1] = np.concatenate([pair.prompt_ids, response])[:-1]
            position_ids[row, : total - 1] = np.arange(total - 1)
            segment_ids[row, :prompt] = 1
            segment_ids[row, prompt : total - 1] = 2 + branch
            predict_from[row, : len(response)] = np.arange(prompt - 1, total - 1)
            targets[row, : len(response)] = response
            sequence_index[row, : len(response)] = branch
    return Rows(
        input_ids,
        position_ids,
        segment_ids,
        predict_from,
        targets,
        sequence_index,
        in_shared,
        ref_logps,
        ref_shared_logps,
        pair_mask,
        np.asarray(num_pairs, np.float32),
        np.asarray(num_chosen_tokens, np.float32),
    )


@dataclass(frozen=True)
class Collation:
    """How pairs become rows. A unit is what stays together: `rows_per_unit` rows with up to `pairs_per_unit` pairs.

    collate: (pairs, S, T, num_pairs, num_chosen_tokens, with_reference) -> Rows, see `padded`.
    """

    rows_per_unit: int
    pairs_per_unit: int
    collate: Callable[..., Rows]


COLLATIONS = {"padded": Collation(2, 1, padded)}
