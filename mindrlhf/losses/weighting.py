"""How much a token counts in an answer (LD-DPO), and a pair in the loss (WPO). B pairs, all float32."""

from __future__ import annotations

from mindspore import Tensor, ops

from mindrlhf.losses.maths import exp
from mindrlhf.losses.registry import Answers


def discount_excess(logps: Tensor, shared_logps: Tensor, ld_alpha: float) -> Tensor:
    """shared + ld_alpha (all - shared): tokens beyond the shorter answer's length count ld_alpha.

    Any shape. logps are sums over all scored tokens of an answer, shared_logps over its first min(|y_c|, |y_r|). With
    ld_alpha 1 nothing changes, with 0 both answers have the same length. Liu et al. (LD-DPO), arXiv 2409.06411.
    """
    return shared_logps + ld_alpha * (logps - shared_logps)


def policy_weight(logps: Answers, counts: Answers, log_sum_sq: Answers) -> Tensor:
    """w_c w_r (B,), w = exp(mean over the tokens of log pi - log sum_v pi_v^2), without gradient.

    logps and log_sum_sq are (chosen, rejected) sums over the scored tokens, two (B,) vectors each. A pair counts the
    more, the likelier the policy itself is to write it. Zhou et al. (WPO), arXiv 2406.11827, eq. 2, "sampled
    alignment".
    """
    chosen = (logps[0] - log_sum_sq[0]) / ops.maximum(counts[0], 1.0)
    rejected = (logps[1] - log_sum_sq[1]) / ops.maximum(counts[1], 1.0)
    return ops.stop_gradient(exp(chosen + rejected))
