"""Preference losses: one pure function each, (policy, reference, counts) -> one term per pair.

Shapes: B pairs. policy and reference are (chosen, rejected), two (B,) float32 vectors of log-probs summed over the
scored tokens of each answer; counts is (chosen, rejected), two (B,) float32 vectors of how many tokens those are. The
terms are (B,) float32. `needs` says which of reference and counts a loss reads. The caller sums the terms over real
pairs and divides by the pairs, or the scored chosen tokens, of the global batch.

Below, x_c and x_r are the log-ratios log pi(y|x) - log pi_ref(y|x) of the chosen and the rejected answer,
h = beta (x_c - x_r), sigma is the logistic function and |y| the number of scored tokens.
"""

from __future__ import annotations

import math

from mindspore import Tensor, ops

from mindrlhf.losses.registry import preference_loss

Answers = tuple[Tensor, Tensor]


def log_sigmoid(x: Tensor) -> Tensor:
    """log sigma(x) = -softplus(-x) = min(x, 0) - log(1 + e^-|x|), any shape; finite with its gradient for any finite x.

    On CPU exp, and with it ops.softplus, is good to 5e-6; pow to 5e-7. Through sign the gradient at 0, where training
    starts, is 1/2 on every backend; through minimum it is whatever the backend does with ties.
    """
    sign = ops.sign(x)
    return x * (1 - sign) / 2 - ops.log1p(ops.pow(math.e, -x * sign))


def log_ratios(policy: Answers, reference: Answers) -> Answers:
    """(x_c, x_r), each (B,)."""
    return policy[0] - reference[0], policy[1] - reference[1]


def mean_log_ratios(policy: Answers, reference: Answers, counts: Answers) -> Answers:
    """(x_c / |y_c|, x_r / |y_r|), each (B,); an answer without a scored token counts as one token."""
    chosen, rejected = log_ratios(policy, reference)
    return chosen / ops.maximum(counts[0], 1.0), rejected / ops.maximum(counts[1], 1.0)


@preference_loss("sigmoid", needs=["reference"], source="arXiv 2305.18290, eq. 7")
def sigmoid(
    policy: Answers, reference: Answers, counts: Answers, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Tensor:
    """DPO; with label smoothing cDPO, which takes a share ls of the labels for wrong.

    -(1 - ls) log sigma(h) - ls log sigma(-h)

    DPO: Rafailov et al., arXiv 2305.18290, eq. 7. cDPO: Mitchell, "A note on DPO with noisy preferences", eq. 3.
    """
    chosen, rejected = log_ratios(policy, reference)
    h = beta * (chosen - rejected)
    return -log_sigmoid(h) * (1 - label_smoothing) - log_sigmoid(-h) * label_smoothing


@preference_loss("robust", needs=["reference"], source="arXiv 2403.00409, section 3.1")
def robust(
    policy: Answers, reference: Answers, counts: Answers, *, beta: float = 0.1, label_smoothing: float = 0.1
) -> Tensor:
    """Robust DPO: unbiased where a share ls of the labels is flipped at random. A term may be negative.

    (-(1 - ls) log sigma(h) + ls log sigma(-h)) / (1 - 2 ls)

    Chowdhury et al., arXiv 2403.00409, section 3.1.
    """
    chosen, rejected = log_ratios(policy, reference)
    h = beta * (chosen - rejected)
    return (-log_sigmoid(h) * (1 - label_smoothing) + log_sigmoid(-h) * label_smoothing) / (1 - 2 * label_smoothing)


@preference_loss("hinge", needs=["reference"], source="arXiv 2309.06657, hinge-norm")
def hinge(policy: Answers, reference: Answers, counts: Answers, *, beta: float = 0.1) -> Tensor:
    """The hinge loss on log-ratios; beta is the reciprocal of the margin. No gradient once h >= 1.

    max(0, 1 - h)

    Liu et al. (RSO), arXiv 2309.06657, "hinge-norm", after SLiC-HF, arXiv 2305.10425.
    """
    chosen, rejected = log_ratios(policy, reference)
    return ops.relu(1 - beta * (chosen - rejected))


@preference_loss("ipo", needs=["reference", "counts"], source="arXiv 2310.12036, eq. 17")
def ipo(policy: Answers, reference: Answers, counts: Answers, *, beta: float = 0.1) -> Tensor:
    """IPO on log-ratios per token, as in TRL from 0.9 on; the printed equation has sums.

    (x_c / |y_c| - x_r / |y_r| - 1 / (2 beta))^2

    Azar et al., arXiv 2310.12036, eq. 17, where beta is called tau.
    """
    chosen, rejected = mean_log_ratios(policy, reference, counts)
    return ops.square(chosen - rejected - 1 / (2 * beta))


@preference_loss("sigmoid_norm", needs=["reference", "counts"], source="arXiv 2411.15124, length-normalized DPO")
def sigmoid_norm(policy: Answers, reference: Answers, counts: Answers, *, beta: float = 0.1) -> Tensor:
    """DPO on log-ratios per token. These are smaller than sums are, and its authors take beta 5.

    -log sigma(beta (x_c / |y_c| - x_r / |y_r|))

    Lambert et al. (Tulu 3), arXiv 2411.15124, "length-normalized DPO".
    """
    chosen, rejected = mean_log_ratios(policy, reference, counts)
    return -log_sigmoid(beta * (chosen - rejected))


@preference_loss("sft", denominator="chosen_tokens", source="cross-entropy")
def sft(policy: Answers, reference: Answers, counts: Answers) -> Tensor:
    """Supervised fine-tuning on the chosen answers: divided by their scored tokens, a mean over tokens, not pairs.

    -log pi(y_c|x)

    Cross-entropy; no reference and no rejected answer has part in it.
    """
    return -policy[0]
