"""The one preference cell: a model, the scored tokens, a loss."""

from __future__ import annotations

from typing import Callable

import mindspore as ms
from mindspore import nn, ops

from mindrlhf.cells.scoring import ScoreTokens, SegmentMask, SumSequences

# What the cell returns beside the loss: sums over its real pairs, which add up over micro-batches and workers.
SUMS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "logps/accuracies_per_token",
    "logits/chosen",
    "logits/rejected",
)


class PreferenceCell(nn.Cell):
    """A batch (fields of `mindrlhf.data.rows.Rows`) -> (loss (), sums (len(SUMS),), logps (U,2K)), all float32.

    loss is the sum over the cell's real pairs divided by the batch's global denominator, so that losses and gradients
    add up to the global batch's. rewards are beta (logp - ref). logps/accuracies_per_token counts pairs whose chosen
    answer has the higher mean log-prob per token. logits/* are sums over scored tokens of the mean over the vocabulary.
    The cell adds no prefix: parameter names stay MindFormers' own.
    """

    num_sums = len(SUMS)

    def __init__(
        self,
        backbone: nn.Cell,
        head_weight: ms.Parameter,
        loss: Callable[..., ms.Tensor],
        per_token: bool,
        beta: float,
        seq_length: int,
        rows_per_unit: int,
        pairs_per_unit: int,
        explicit_reduction: bool = True,
        data_parallel: int = 1,
        vocab_parallel: int = 1,
    ) -> None:
        super().__init__(auto_prefix=False)
        dp = data_parallel
        self.backbone = backbone
        self.head_weight = head_weight
        self.loss = loss
        self.per_token = per_token
        self.beta = beta
        self.mask = SegmentMask(seq_length, dp)
        self.score = ScoreTokens(explicit_reduction, dp, vocab_parallel)
        self.sum_sequences = SumSequences(rows_per_unit, pairs_per_unit, dp)
        self.scored = ops.NotEqual().shard(((dp, 1), ()))
        self.none = 2 * pairs_per_unit
        self.mean_logits = ops.ReduceSum().shard(((dp, 1, 1),))

    def can_generate(self) -> bool:
        """False: MindFormers' `build_network` asks every network it builds."""
        return False

    def construct(  # type: ignore[no-untyped-def]  # graph code
        self,
        input_ids,
        position_ids,
        segment_ids,
        predict_from,
        targets,
        sequence_index,
        ref_logps,
        ref_shared_logps,
        pair_mask,
        num_pairs,
        num_chosen_tokens,
    ):
        hidden = self.backbone(input_ids, position_ids, self.mask(segment_ids))
        token_logps = self.score(hidden, self.head_weight, predict_from, targets)
        logps = self.sum_sequences(token_logps, sequence_index)
        counts = self.sum_sequences(ops.ones_like(token_logps), sequence_index)
        # From here on everything is (B,), and small.
        policy, reference, tokens = logps.reshape(-1, 2), ref_logps.reshape(-1, 2), counts.reshape(-1, 2)
        real = pair_mask.reshape(-1)
        terms = self.loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], tokens[:, 0], tokens[:, 1])
        loss = (terms * real).sum() / (num_chosen_tokens if self.per_token else num_pairs)
        return loss, self._sums(loss, policy, reference, tokens, real, hidden, predict_from, sequence_index), logps

    def _sums(self, loss, policy, reference, tokens, real, hidden, predict_from, sequence_index):  # type: ignore[no-untyped-def]
        policy = ops.stop_gradient(policy)
        rewards = self.beta * (policy - reference)
        per_token = policy / ops.maximum(tokens, ops.ones_like(tokens))
        logits = self._mean_logits(ops.stop_gradient(hidden), predict_from, sequence_index).reshape(-1, 2)
        return ops.stack(
            [
                ops.stop_gradient(loss),
                (rewards[:, 0] * real).sum(),
                (rewards[:, 1] * real).sum(),
                ((rewards[:, 0] > rewards[:, 1]).astype(ms.float32) * real).sum(),
                (policy[:, 0] * real).sum(),
                (policy[:, 1] * real).sum(),
                ((per_token[:, 0] > per_token[:, 1]).astype(ms.float32) * real).sum(),
                (logits[:, 0] * real).sum(),
                (logits[:, 1] * real).sum(),
            ]
        )

    def _mean_logits(self, hidden, predict_from, sequence_index):  # type: ignore[no-untyped-def]
        """Sums per sequence (U,2K) of each scored token's mean logit: hidden times the mean row of the head."""
        mean_row = ops.stop_gradient(self.head_weight).astype(ms.float32).mean(axis=0)
        means = ops.matmul(hidden.astype(ms.float32), mean_row)
        return self.sum_sequences(ops.gather_elements(means, 1, predict_from), sequence_index)
