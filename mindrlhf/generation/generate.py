"""Decoding, plain and simple: every token costs a forward pass over the whole row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindrlhf.models import ModelFamily

ROW_MULTIPLE = 64  # rows grow in steps of this many tokens, so that few lengths are compiled
ROWS = 8  # at most this many prompts are answered at once


class NextTokenLogits(nn.Cell):
    """input_ids (R,S) int32, last (R,1) int32 -> logits (R,V) float32 of the token behind position `last`.

    Rows are padded on the right, so the causal rule alone keeps padding out of sight.
    """

    def __init__(self, backbone: nn.Cell, head: nn.Cell, rows: int, length: int) -> None:
        super().__init__(auto_prefix=False)
        self.backbone = backbone
        self.head = head
        self.positions = Tensor(np.tile(np.arange(length, dtype=np.int32), (rows, 1)))
        self.forbidden = Tensor(np.tile(np.triu(np.ones((length, length), np.uint8), 1), (rows, 1, 1, 1)))
        self.gather = ops.Gather(batch_dims=1)
        self.product = ops.MatMul(transpose_b=True)

    def construct(self, input_ids, last):  # type: ignore[no-untyped-def]  # graph code
        hidden = self.backbone(input_ids, self.positions, self.forbidden)
        states = self.gather(hidden, last, 1).reshape(input_ids.shape[0], -1)
        return self.product(states, self.head().astype(states.dtype)).astype(ms.float32)


def row_length(prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """S that holds every prompt and its answer."""
    longest = max(map(len, prompts)) + max_new_tokens
    return -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE


def generate(
    family: ModelFamily,
    model: nn.Cell,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Collection[int],
    choose: Callable[[np.ndarray], np.ndarray],
    advance: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Answers to `prompts` (ids, none empty) as ids, each up to and without the first of `stop_ids`.

    choose: logits (R,V) -> tokens (R,), see `sampling.pick`. The model was built for rows of `row_length`. advance is
    told how many tokens each round added.
    """
    rows, length = min(ROWS, len(prompts)), row_length(prompts, max_new_tokens)
    cell = NextTokenLogits(family.backbone(model), family.head(model), rows, length).set_train(False)
    answers: list[list[int]] = []
    for start in range(0, len(prompts), rows):
        batch = Batch(prompts[start : start + rows], rows, length)
        for _ in range(max_new_tokens):
            tokens = choose(cell(Tensor(batch.input_ids), Tensor(batch.last())).asnumpy())
            added = batch.add(tokens, stop_ids)
            if not added:
                break
            if advance:
                advance(added)
        answers += batch.answers
    return answers


class Batch:
    """Prompts and what was answered so far; rows beyond the prompts are filler and answer nothing."""

    def __init__(self, prompts: Sequence[Sequence[int]], rows: int, length: int) -> None:
        self.input_ids = np.zeros((rows, length), np.int32)
        self.ends = np.ones(rows, np.int64)
        self.live = np.arange(rows) < len(prompts)
        self.answers: list[list[int]] = [[] for _ in prompts]
        for row, prompt in enumerate(prompts):
            self.input_ids[row, : len(prompt)] = prompt
            self.ends[row] = len(prompt)

    def last(self) -> np.ndarray:
        """Where each row's last token stands: (R,1) int32."""
        return (self.ends - 1)[:, None].astype(np.int32)

    def add(self, tokens: np.ndarray, stop_ids: Collection[int]) -> int:
        """Append a token to every row that has not met one of `stop_ids`; how many there are."""
        self.live &= ~np.isin(tokens, list(stop_ids))
        for row in np.flatnonzero(self.live):
            self.answers[row].append(int(tokens[row]))
            self.input_ids[row, self.ends[row]] = tokens[row]
            self.ends[row] += 1
        return int(self.live.sum())
