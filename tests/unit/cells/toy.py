"""A model of four small parameters, in MindSpore and in NumPy float64, and the batches it is fed."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindrlhf.cells.preference import PreferenceCell
from mindrlhf.cells.scoring import ScoreSequences
from mindrlhf.data.records import Pair
from mindrlhf.data.rows import COLLATIONS, padded
from mindrlhf.losses import Objective
from mindrlhf.models.head import Head
from mindrlhf.parallel.layout import ONE_WORKER, Layout

# One worker, with the cells of semi-auto parallel.
SEMI_AUTO = Layout(optimizer_shard=True)
VOCABULARY, WIDTH, LENGTH = 13, 6, 16
NAMES = ("tok_embeddings.weight", "norm.weight", "wq.bias", "lm_head.weight")


def values() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(7)
    shapes = ((VOCABULARY, WIDTH), (WIDTH,), (WIDTH,), (VOCABULARY, WIDTH))
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in zip(NAMES, shapes)}


class Backbone(nn.Cell):
    """hidden = norm * mean of the embeddings that a token sees, each times 1 + its position / 10, + bias."""

    def __init__(self) -> None:
        super().__init__()
        table, norm, bias, _ = values().items()
        self.table = Parameter(Tensor(table[1]), name=table[0])
        self.norm = Parameter(Tensor(norm[1]), name=norm[0])
        self.bias = Parameter(Tensor(bias[1]), name=bias[0])

    def construct(self, input_ids, position_ids, forbidden):  # type: ignore[no-untyped-def]
        scale = 1.0 + position_ids.astype(ms.float32).expand_dims(-1) / 10.0
        seen = 1.0 - forbidden.squeeze(1).astype(ms.float32)
        states = ops.bmm(seen, ops.gather(self.table, input_ids, 0) * scale) / seen.sum(-1, keepdims=True)
        return states * self.norm + self.bias


class RoutedBackbone(Backbone):
    """The same, and a load-balance loss: the share of real tokens times the square sum of the norm."""

    def construct(self, input_ids, position_ids, forbidden, tokens):  # type: ignore[no-untyped-def]
        hidden = super().construct(input_ids, position_ids, forbidden)
        return hidden, tokens.mean() * (self.norm * self.norm).sum()


def head() -> Head:
    return Head(Parameter(Tensor(values()[NAMES[3]]), name=NAMES[3]))


def logps(prompt: Sequence[int], answer: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Log-prob of every token of the answer and the mean of its logits: both (T,) float64."""
    table, norm, bias, weight = (array.astype(np.float64) for array in values().values())
    ids = [*prompt, *answer][:-1]
    scaled = table[ids] * (1.0 + np.arange(len(ids))[:, None] / 10.0)
    hidden = scaled.cumsum(0) / np.arange(1, len(ids) + 1)[:, None] * norm + bias
    logits = hidden[len(prompt) - 1 :] @ weight.T
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return scores[np.arange(len(answer)), answer], logits.mean(-1)


def pairs(count: int) -> list[Pair]:
    """Pairs of unequal lengths with a reference."""
    generator = np.random.default_rng(count)

    def tokens(most: int) -> np.ndarray:
        return generator.integers(0, VOCABULARY, generator.integers(1, most), dtype=np.int32)

    return [
        Pair(number, tokens(6), tokens(8), tokens(8), *generator.uniform(-20, -5, 4).round(2))
        for number in range(count)
    ]


def batch(some: Sequence[Pair | None], num_pairs: float, num_chosen_tokens: float) -> tuple[Tensor, ...]:
    return tuple(map(Tensor, padded(some, LENGTH, LENGTH, num_pairs, num_chosen_tokens)))


def packed(pair: Pair, num_pairs: float, num_chosen_tokens: float) -> tuple[Tensor, ...]:
    """The pair as one row [prompt | chosen | rejected], its positions restarting behind the prompt."""
    padding = [np.zeros((1, LENGTH), np.int32) for _ in range(5)]
    input_ids, position_ids, segment_ids, predict_from, targets = padding
    sequence_index = np.full((1, LENGTH), 2, np.int32)
    prompt = len(pair.prompt_ids)
    input_ids[0, :prompt], position_ids[0, :prompt], segment_ids[0, :prompt] = pair.prompt_ids, np.arange(prompt), 1
    in_shared = np.zeros((1, LENGTH), np.float32)
    start, scored = prompt, 0
    for branch, answer in enumerate((pair.chosen_ids, pair.rejected_ids)):
        stop, behind = start + len(answer), scored + len(answer)
        input_ids[0, start:stop] = answer
        position_ids[0, start:stop] = prompt + np.arange(len(answer))
        segment_ids[0, start:stop] = 2 + branch
        predict_from[0, scored:behind] = [prompt - 1, *range(start, stop - 1)]
        targets[0, scored:behind] = answer
        sequence_index[0, scored:behind] = branch
        in_shared[0, scored : scored + min(len(pair.chosen_ids), len(pair.rejected_ids))] = 1.0
        start, scored = stop, behind
    rest = batch([pair], num_pairs, num_chosen_tokens)[7:]
    fields = (input_ids, position_ids, segment_ids, predict_from, targets, sequence_index, in_shared)
    return (*map(Tensor, fields), *rest)


def cell_of(
    objective: Objective, layout: Layout = ONE_WORKER, aux_loss_coef: float = 0.0, **rows: int
) -> PreferenceCell:
    """The preference cell on the toy; `rows`: rows_per_unit, pairs_per_unit."""
    needs = {"shared": objective.needs_shared, "squares": objective.needs_squares, "balance": bool(aux_loss_coef)}
    backbone = RoutedBackbone() if aux_loss_coef else Backbone()
    score = ScoreSequences(backbone, head(), LENGTH, layout=layout, **{**units(), **rows}, **needs)
    return PreferenceCell(score, objective, layout, aux_loss_coef)


def units() -> dict[str, int]:
    collation = COLLATIONS["padded"]
    return {"rows_per_unit": collation.rows_per_unit, "pairs_per_unit": collation.pairs_per_unit}
