"""The one preference cell: a model, the scored tokens, what a run minimises."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from mindrlhf.cells.scoring import ScoreSequences
from mindrlhf.losses import Objective
from mindrlhf.parallel.layout import ONE_WORKER, Layout

# What the cell returns of each pair beside its loss; they add up over pairs, micro-batches and workers. The loss is the
# sum of the first two, of which the one is divided by the pairs and the other by the scored chosen tokens of the batch.
SUMS = (
    "loss/pairs",
    "loss/chosen_tokens",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "logps/accuracies_per_token",
    "logits/chosen",
    "logits/rejected",
)
# What the cell adds to its sums where a router's load-balance loss is minimised too.
AUX_LOSS = "aux_loss"


class PreferenceCell(nn.Cell):
    """A batch (fields of `mindrlhf.data.rows.Rows`) -> (loss (), sums, logps (U,2K), figures (UK,F)), all float32,
    F = len(SUMS); sums are (F,), and (F+1,) where aux_loss_coef is not 0.

    loss is the sum over the cell's real pairs divided by the batch's global denominators, so that losses and gradients
    add up to the global batch's. figures has what each pair adds to the sums, its loss not yet divided. rewards are
    beta (logp - ref), or of losses such as simpo beta times the mean logp per token; here and in logps/chosen and
    logps/rejected tokens weigh what they do in the objective, elsewhere they weigh the same.
    logps/accuracies_per_token counts pairs whose chosen answer has the higher mean log-prob per token. logits/* are
    sums over scored tokens of the mean over the vocabulary. The last of F+1 is the router's load-balance loss
    times the cell's real pairs; aux_loss_coef times its mean over the batch's pairs is minimised too, and is no part of
    the first two sums. The cell adds no prefix: parameter names stay
    MindFormers' own.

    Under a layout of semi-auto parallel the gradients of this loss are too large by the number of workers, see
    `TrainStep`.
    """

    def __init__(
        self,
        score: ScoreSequences,
        objective: Objective,
        layout: Layout = ONE_WORKER,
        aux_loss_coef: float = 0.0,
    ) -> None:
        super().__init__(auto_prefix=False)
        dp = layout.data_parallel
        self.score = score
        self.aux_loss_coef = aux_loss_coef
        self.num_sums = len(SUMS) + bool(aux_loss_coef)
        self.weigh = objective.weigh
        self.terms = objective.terms
        self.beta = objective.beta
        self.mean_rewards = objective.mean_rewards
        self.sum_pairs = ops.ReduceSum().shard(((dp, 1),))
        self.join = ops.Concat().shard(((1,), (1,), (1,)))
        self.divide = ops.RealDiv().shard(((1,), (1,)))
        self.take = ops.StridedSlice().shard(((1,),))
        self.count = ops.ReduceSum().shard(((dp, 1),))
        self.append = ops.Concat().shard(((1,), (1,)))
        self.whole = ops.Identity().shard(((1, 1),))
        self.ones = ms.Tensor([1.0] * (len(SUMS) - 2), ms.float32)
        # Pairs do not meet before their sums: semi-auto parallel need not look into what is done to each, and every
        # operator in there, of whatever loss, works on the pairs of its own worker.
        self.figures = self._local_figures(layout) if layout.semi_auto else self._figures

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
        in_shared,
        ref_logps,
        ref_shared_logps,
        pair_mask,
        num_pairs,
        num_chosen_tokens,
    ):
        logps, shared_logps, counts, logits, squares, balance = self.score(
            input_ids, position_ids, segment_ids, predict_from, targets, sequence_index, in_shared
        )
        figures = self.figures(logps, shared_logps, ref_logps, ref_shared_logps, counts, logits, squares, pair_mask)
        # Divided after the sum: the gradient of the sum is then no constant, which could be folded with its AllReduce.
        denominators = self.join((num_pairs.reshape(1), num_chosen_tokens.reshape(1), self.ones))
        sums = self.divide(self.sum_pairs(figures, 0), denominators)
        by_pairs = self.take(sums, (0,), (1,), (1,)).reshape(())
        by_tokens = self.take(sums, (1,), (2,), (1,)).reshape(())
        per_pair = self.whole(ops.stop_gradient(figures))
        loss = by_pairs + by_tokens
        if self.aux_loss_coef:
            balance = balance * self.count(pair_mask)
            loss = loss + self.aux_loss_coef * balance / num_pairs
            sums = self.append((sums, balance.reshape(1)))
        return loss, ops.stop_gradient(sums), self.whole(ops.stop_gradient(logps)), per_pair

    def _local_figures(self, layout: Layout) -> ops.Primitive:
        sharing = layout.per_stage // layout.data_parallel
        by_pair = ms.Layout((layout.data_parallel, sharing), ("dp", "sharing"))("dp", "None")
        figures = ops.Morph(self._figures, self._figures_shape, self._figures_dtype)
        return figures.add_prim_attr("self_define_shard", True).shard((by_pair,) * 8, (by_pair,))

    def _figures_shape(self, *shapes):
        return [shapes[7][0] * shapes[7][1], len(SUMS)]

    def _figures_dtype(self, *dtypes):
        return dtypes[0]

    def _figures(self, logps, shared_logps, ref_logps, ref_shared_logps, counts, logits, squares, pair_mask):
        """(U,2K) and, the mask, (U,K) -> what each pair adds to SUMS (UK,len(SUMS)), the loss yet to be divided."""
        plain, tokens, mask = logps.reshape(-1, 2), counts.reshape(-1, 2), pair_mask.reshape(-1)
        policy = self.weigh(plain, shared_logps.reshape(-1, 2))
        reference = self.weigh(ref_logps.reshape(-1, 2), ref_shared_logps.reshape(-1, 2))
        by_pairs, by_tokens = self.terms(plain, policy, reference, tokens, squares.reshape(-1, 2), mask)
        policy, plain = ops.stop_gradient(policy), ops.stop_gradient(plain)
        per_token = plain / ops.maximum(tokens, ops.ones_like(tokens))
        rewards = self.beta * (per_token if self.mean_rewards else policy - reference)
        logits = logits.reshape(-1, 2)
        figures = [
            by_pairs,
            by_tokens,
            rewards[:, 0],
            rewards[:, 1],
            (rewards[:, 0] > rewards[:, 1]).astype(ms.float32),
            policy[:, 0],
            policy[:, 1],
            (per_token[:, 0] > per_token[:, 1]).astype(ms.float32),
            logits[:, 0],
            logits[:, 1],
        ]
        return ops.stack(figures, axis=1) * mask.reshape(-1, 1)
