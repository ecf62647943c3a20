"""Decoding, plain and simple: every token costs a forward pass over the whole row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindrlhf.models import ModelFamily

ROW_MULTIPLE = 64  # rows grow in steps of this many tokens, so that few lengths are compiled


class NextTokenLogits(nn.Cell):
    """input_ids (R,S) int32, last (R,1) int32 -> logits (R,V) float32 of the token behind position `last`.

    Rows are padded on the right, so the causal rule alone keeps padding out of sight.
    """

    def __init__(self, backbone: nn.Cell, head_weight: ms.Parameter, rows: int, length: int) -> None:
        super().__init__(auto_prefix=False)
        self.backbone = backbone
        self.head_weight = head_weight
        self.positions = Tensor(np.tile(np.arange(length, dtype=np.int32), (rows, 1)))
        self.forbidden = Tensor(np.tile(np.triu(np.ones((length, length), np.uint8), 1), (rows, 1, 1, 1)))
        self.gather = ops.Gather(batch_dims=1)
        self.product = ops.MatMul(transpose_b=True)

    def construct(self, input_ids, last):  # type: ignore[no-untyped-def]  # graph code
        hidden = self.backbone(input_ids, self.positions, self.forbidden)
        states = self.gather(hidden, last, 1).reshape(input_ids.shape[0], -1)
        return self.product(states, self.head_weight.astype(states.dtype)).astype(ms.float32)


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
    rows, length = len(prompts), row_length(prompts, max_new_tokens)
    cell = NextTokenLogits(family.backbone(model), family.head_weight(model), rows, length).set_train(False)
    input_ids = np.zeros((rows, length), np.int32)
    for row, prompt in enumerate(prompts):
        input_ids[row, : len(prompt)] = prompt
    ends = np.array([len(prompt) for prompt in prompts])
    answers: list[list[int]] = [[] for _ in prompts]
    live = np.ones(rows, bool)
    for _ in range(max_new_tokens):
        tokens = choose(cell(Tensor(input_ids), Tensor((ends - 1)[:, None].astype(np.int32))).asnumpy())
        live &= ~np.isin(tokens, list(stop_ids))
        if not live.any():
            break
        for row in np.flatnonzero(live):
            answers[row].append(int(tokens[row]))
            input_ids[row, ends[row]] = tokens[row]
            ends[row] += 1
        if advance:
            advance(int(live.sum()))
    return answers
