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

    explicit_reduction False is semi-auto parallel over data_parallel x model_parallel workers; split_vocabulary says
    that the rows of the head are split over the latter. The gradients of this loss are then too large by the number of
    workers, see `TrainStep`.
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
        model_parallel: int = 1,
        split_vocabulary: bool = False,
    ) -> None:
        super().__init__(auto_prefix=False)
        dp = data_parallel
        self.backbone = backbone
        self.head_weight = head_weight
        self.loss = loss
        self.per_token = per_token
        self.beta = beta
        self.mask = SegmentMask(seq_length, dp)
        self.score = ScoreTokens(explicit_reduction, dp, model_parallel if split_vocabulary else 1)
        self.sum_sequences = SumSequences(rows_per_unit, pairs_per_unit, dp)
        self.scored = ops.NotEqual().shard(((dp, 1), ()))
        self.none = 2 * pairs_per_unit
        self.sum_pairs = ops.ReduceSum().shard(((dp, 1),))
        self.join = ops.Concat().shard(((1,), (1,)))
        self.divide = ops.RealDiv().shard(((1,), (1,)))
        self.take = ops.StridedSlice().shard(((1,),))
        self.whole = ops.Identity().shard(((1, 1),))
        self.ones = ms.Tensor([1.0] * (len(SUMS) - 1), ms.float32)
        # Pairs do not meet before their sums: semi-auto parallel need not look into what is done to each, and every
        # operator in there, of whatever loss, works on the pairs of its own worker.
        self.figures = self._figures if explicit_reduction else self._local_figures(dp, model_parallel)

    def can_generate(self) -> bool:
        """False: MindFormers' `build_network` asks every network it builds."""
        return False

    def construct(
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
        token_logps, token_logits = self.score(hidden, self.head_weight, predict_from, targets)
        scored = self.scored(sequence_index, self.none).astype(ms.float32)
        logps = self.sum_sequences(token_logps, sequence_index)
        logits = self.sum_sequences(token_logits, sequence_index)
        counts = self.sum_sequences(scored, sequence_index)
        sums = self.sum_pairs(self.figures(logps, ref_logps, counts, logits, pair_mask), 0)
        # Divided after the sum: the gradient of the sum is then no constant, which could be folded with its AllReduce.
        denominator = num_chosen_tokens if self.per_token else num_pairs
        sums = self.divide(sums, self.join((denominator.reshape(1), self.ones)))
        loss = self.take(sums, (0,), (1,), (1,)).reshape(())
        return loss, ops.stop_gradient(sums), self.whole(ops.stop_gradient(logps))

    def _local_figures(self, data_parallel: int, model_parallel: int) -> ops.Primitive:
        by_pair = ms.Layout((data_parallel, model_parallel), ("dp", "mp"))("dp", "None")
        figures = ops.Morph(self._figures, self._figures_shape, self._figures_dtype)
        return figures.add_prim_attr("self_define_shard", True).shard((by_pair,) * 5, (by_pair,))

    def _figures_shape(self, *shapes):
        return [shapes[4][0] * shapes[4][1], len(SUMS)]

    def _figures_dtype(self, *dtypes):
        return dtypes[0]

    def _figures(self, logps, ref_logps, counts, logits, pair_mask):
        """(U,2K) and (U,K) -> what each pair adds to SUMS (UK,len(SUMS)), the loss yet to be divided."""
        policy, reference, tokens = logps.reshape(-1, 2), ref_logps.reshape(-1, 2), counts.reshape(-1, 2)
        terms = self.loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], tokens[:, 0], tokens[:, 1])
        policy = ops.stop_gradient(policy)
        rewards = self.beta * (policy - reference)
        per_token = policy / ops.maximum(tokens, ops.ones_like(tokens))
        logits = logits.reshape(-1, 2)
        figures = [
            terms,
            rewards[:, 0],
            rewards[:, 1],
            (rewards[:, 0] > rewards[:, 1]).astype(ms.float32),
            policy[:, 0],
            policy[:, 1],
            (per_token[:, 0] > per_token[:, 1]).astype(ms.float32),
            logits[:, 0],
            logits[:, 1],
        ]
        return ops.stack(figures, axis=1) * pair_mask.reshape(-1, 1)
