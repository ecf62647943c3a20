"""Preference losses: one pure function each, of a batch of pairs -> one term per pair.

Shapes: B pairs. A loss says what it reads by the names of its positional arguments, in this order:
  ratios     log-ratios log pi(y|x) - log pi_ref(y|x), or f of them where an f-divergence is set
  policy     log-probs log pi(y|x), sums over the scored tokens of the policy
  reference  the same of the reference
  counts     how many tokens those are
each (chosen, rejected), two (B,) float32 vectors, and, for a loss over a batch,
  mask       (B,) float32, 1 for a real pair, 0 for filler
The terms are (B,) float32. The caller sums them over the real pairs and divides by the pairs, or the scored chosen
tokens, of the global batch; a loss with terms of either kind returns both, in this order.

Below, x_c and x_r are the ratios of the chosen and the rejected answer, h = beta (x_c - x_r), sigma is the logistic
function, |y| the number of scored tokens and ls the label smoothing, the share of labels that are taken for wrong.
"""

from __future__ import annotations

import math

from mindspore import Tensor, ops

from mindrlhf.losses.maths import exp, log_one_minus_exp, log_sigmoid, matched, mean, square
from mindrlhf.losses.maths import sigmoid as logistic
from mindrlhf.losses.registry import Answers, alias, preference_loss


def per_token(sums: Answers, counts: Answers) -> Answers:
    """Means over the scored tokens, each (B,); an answer without one counts as one token."""
    return sums[0] / ops.maximum(counts[0], 1.0), sums[1] / ops.maximum(counts[1], 1.0)


def smoothed(h: Tensor, label_smoothing: float) -> Tensor:
    """-(1 - ls) log sigma(h) - ls log sigma(-h), any shape."""
    return -log_sigmoid(h) * (1 - label_smoothing) - log_sigmoid(-h) * label_smoothing


@preference_loss("sigmoid", source="arXiv 2305.18290, eq. 7")
def sigmoid(ratios: Answers, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """DPO; with label smoothing cDPO, which takes a share ls of the labels for wrong.

    -(1 - ls) log sigma(h) - ls log sigma(-h)

    DPO: Rafailov et al., arXiv 2305.18290, eq. 7. cDPO: Mitchell, "A note on DPO with noisy preferences", eq. 3.
    """
    return smoothed(beta * (ratios[0] - ratios[1]), label_smoothing)


alias("cdpo", "sigmoid", source="Mitchell, A note on DPO with noisy preferences, eq. 3", label_smoothing=0.1)


@preference_loss("robust", source="arXiv 2403.00409, section 3.1")
def robust(ratios: Answers, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Tensor:
    """Robust DPO: unbiased where a share ls of the labels is flipped at random. A term may be negative.

    (-(1 - ls) log sigma(h) + ls log sigma(-h)) / (1 - 2 ls)

    Chowdhury et al., arXiv 2403.00409, section 3.1.
    """
    h = beta * (ratios[0] - ratios[1])
    return (-log_sigmoid(h) * (1 - label_smoothing) + log_sigmoid(-h) * label_smoothing) / (1 - 2 * label_smoothing)


@preference_loss("hinge", source="arXiv 2309.06657, hinge-norm")
def hinge(ratios: Answers, *, beta: float = 0.1) -> Tensor:
    """The hinge loss on log-ratios; beta is the reciprocal of the margin. No gradient once h >= 1.

    max(0, 1 - h)

    Liu et al. (RSO), arXiv 2309.06657, "hinge-norm", after SLiC-HF, arXiv 2305.10425.
    """
    return ops.relu(1 - beta * (ratios[0] - ratios[1]))


@preference_loss("ipo", source="arXiv 2310.12036, eq. 17")
def ipo(ratios: Answers, counts: Answers, *, beta: float = 0.1) -> Tensor:
    """IPO on log-ratios per token, as in TRL from 0.9 on; the printed equation has sums.

    (x_c / |y_c| - x_r / |y_r| - 1 / (2 beta))^2

    Azar et al., arXiv 2310.12036, eq. 17, where beta is called tau.
    """
    chosen, rejected = per_token(ratios, counts)
    return square(chosen - rejected - 1 / (2 * beta))


@preference_loss("sigmoid_norm", source="arXiv 2411.15124, length-normalized DPO")
def sigmoid_norm(ratios: Answers, counts: Answers, *, beta: float = 0.1) -> Tensor:
    """DPO on log-ratios per token. These are smaller than sums are, and its authors take beta 5.

    -log sigma(beta (x_c / |y_c| - x_r / |y_r|))

    Lambert et al. (Tulu 3), arXiv 2411.15124, "length-normalized DPO".
    """
    chosen, rejected = per_token(ratios, counts)
    return -log_sigmoid(beta * (chosen - rejected))


@preference_loss("exo_pair", source="arXiv 2402.00856, eq. 16", positive=["label_smoothing"])
def exo_pair(ratios: Answers, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> Tensor:
    """EXO: the reverse KL divergence of the policy's preference from the smoothed labels; DPO has the forward one.

    sigma(h) (log sigma(h) - log(1 - ls)) + sigma(-h) (log sigma(-h) - log ls); ls above 0

    Ji et al., arXiv 2402.00856, eq. 16.
    """
    h = beta * (ratios[0] - ratios[1])
    agreed = logistic(h) * (log_sigmoid(h) - math.log1p(-label_smoothing))
    return agreed + logistic(-h) * (log_sigmoid(-h) - math.log(label_smoothing))


@preference_loss("nca_pair", source="arXiv 2402.05369, section 4.1")
def nca_pair(ratios: Answers, *, beta: float = 0.1) -> Tensor:
    """NCA: the chosen answer's own ratio is raised, not only its lead, which keeps its likelihood from falling.

    -log sigma(beta x_c) - (log sigma(-beta x_c) + log sigma(-beta x_r)) / 2

    Chen et al., arXiv 2402.05369, section 4.1, with two answers.
    """
    chosen, rejected = beta * ratios[0], beta * ratios[1]
    return -log_sigmoid(chosen) - log_sigmoid(-chosen) / 2 - log_sigmoid(-rejected) / 2


@preference_loss("bco_pair", source="arXiv 2404.04656, section 4")
def bco_pair(ratios: Answers, *, beta: float = 0.1) -> Tensor:
    """BCO: a classifier of chosen against rejected answers; as in TRL 1, without the running mean delta of the rewards.

    -log sigma(beta x_c) - log sigma(-beta x_r)

    Jung et al., arXiv 2404.04656, section 4.
    """
    return -log_sigmoid(beta * ratios[0]) - log_sigmoid(-beta * ratios[1])


@preference_loss("sppo_hard", source="arXiv 2405.00675, eq. 4.7")
def sppo_hard(ratios: Answers, *, beta: float = 0.1) -> Tensor:
    """SPPO with hard labels: the chosen answer wins with probability 1; beta is 1 / eta.

    (x_c - 1 / (2 beta))^2 + (x_r + 1 / (2 beta))^2

    Wu et al., arXiv 2405.00675, eq. 4.7, with P = 1 for the chosen and 0 for the rejected answer.
    """
    return square(ratios[0] - 0.5 / beta) + square(ratios[1] + 0.5 / beta)


@preference_loss("aot", source="arXiv 2406.05882, section 3, paired")
def aot(
    policy: Answers, reference: Answers, mask: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Tensor:
    """AOT, paired: the policy's lead of chosen over rejected is to exceed the reference's as a distribution.

    h_i = beta (d_(i) - e_(i)), d = log pi(y_c) - log pi(y_r), e the same of pi_ref, each sorted by itself;
    then -(1 - ls) log sigma(h_i) - ls log sigma(-h_i)

    A term belongs to the pair whose d it has. Sorted are the pairs of one micro-batch of one worker: a larger
    micro-batch is another loss. Melnyk et al., arXiv 2406.05882, section 3, "paired".
    """
    lead, reference_lead = policy[0] - policy[1], reference[0] - reference[1]
    return smoothed(beta * (lead - matched(lead, reference_lead, mask)), label_smoothing)


@preference_loss("aot_unpaired", source="arXiv 2406.05882, section 3, unpaired")
def aot_unpaired(ratios: Answers, mask: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """AOT, unpaired: the ratios of chosen answers are to exceed those of rejected ones as a distribution.

    h_i = beta (x_c(i) - x_r(i)), each sorted by itself; then -(1 - ls) log sigma(h_i) - ls log sigma(-h_i)

    A term belongs to the pair whose x_c it has. Sorted are the pairs of one micro-batch of one worker: a larger
    micro-batch is another loss. Melnyk et al., arXiv 2406.05882, section 3,
    "unpaired"; aot_pair in TRL before 1.0.
    """
    return smoothed(beta * (ratios[0] - matched(ratios[0], ratios[1], mask)), label_smoothing)


@preference_loss("apo_zero", source="arXiv 2408.06266, eq. 7")
def apo_zero(ratios: Answers, *, beta: float = 0.1) -> Tensor:
    """APO-zero raises the chosen answers and lowers the rejected ones: for data better than the model.

    1 - sigma(beta x_c) + sigma(beta x_r)

    D'Oosterlinck et al., arXiv 2408.06266, eq. 7.
    """
    return logistic(-beta * ratios[0]) + logistic(beta * ratios[1])


@preference_loss("apo_down", source="arXiv 2408.06266, eq. 8")
def apo_down(ratios: Answers, *, beta: float = 0.1) -> Tensor:
    """APO-down lowers both answers, the rejected one more: for a model better than the data.

    sigma(beta x_c) + 1 - sigma(beta (x_c - x_r))

    D'Oosterlinck et al., arXiv 2408.06266, eq. 8.
    """
    return logistic(beta * ratios[0]) + logistic(-beta * (ratios[0] - ratios[1]))


@preference_loss("discopop", source="arXiv 2406.08414, section 3, log-ratio modulated loss")
def discopop(ratios: Answers, *, beta: float = 0.1, discopop_tau: float = 0.05) -> Tensor:
    """DiscoPOP, found by search: the logistic loss where h is negative, the exponential one where it is positive.

    -log sigma(h) (1 - m) + exp(-h) m, m = sigma(h / tau); exp(-h) m counts as e^80 at most

    Lu et al., arXiv 2406.08414, section 3, "log-ratio modulated loss". With tau above 1 it grows exponentially for
    pairs in the wrong order.
    """
    h = beta * (ratios[0] - ratios[1])
    exponential = exp(log_sigmoid(h / discopop_tau) - h)
    return -log_sigmoid(h) * logistic(-h / discopop_tau) + exponential


@preference_loss("kto_pair", source="arXiv 2402.01306, eq. 7")
def kto_pair(ratios: Answers, mask: Tensor, *, beta: float = 0.1) -> Tensor:
    """KTO on pairs, as in TRL before 0.9: each half is measured against the mean ratio of the other.

    half of 1 - sigma(beta (x_c - k_r)) and 1 - sigma(beta (k_c - x_r)), k = max(0, mean of x over the batch)

    The k are means over the pairs of one micro-batch of one worker, and carry a gradient: a larger micro-batch is
    another loss. Ethayarajh et al., arXiv 2402.01306, eq. 7.
    """
    chosen, rejected = _not_negative(mean(ratios[0], mask)), _not_negative(mean(ratios[1], mask))
    return (logistic(beta * (rejected - ratios[0])) + logistic(beta * (ratios[1] - chosen))) / 2


def _not_negative(x: Tensor) -> Tensor:
    # At 0, where training starts, the gradient passes whole, as through torch.clamp; not so through relu or maximum.
    return x * ops.stop_gradient((x >= 0).astype(x.dtype))


@preference_loss("simpo", source="arXiv 2405.14734, eq. 6")
def simpo(
    policy: Answers, counts: Answers, *, beta: float = 2.0, simpo_gamma: float = 1.0, label_smoothing: float = 0.0
) -> Tensor:
    """SimPO: log-probs per token with a margin, no reference.

    h = beta (log pi(y_c) / |y_c| - log pi(y_r) / |y_r|) - gamma; then -(1 - ls) log sigma(h) - ls log sigma(-h)

    Meng et al., arXiv 2405.14734, eq. 6.
    """
    chosen, rejected = per_token(policy, counts)
    return smoothed(beta * (chosen - rejected) - simpo_gamma, label_smoothing)


@preference_loss("cpo", denominator=("pairs", "chosen_tokens"), source="arXiv 2401.08417, section 3")
def cpo(policy: Answers, *, beta: float = 0.1, cpo_alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """CPO: DPO with a uniform reference, and alpha times the negative log-likelihood of the chosen answers.

    -log sigma(beta (log pi(y_c) - log pi(y_r))), and -alpha log pi(y_c), a mean over tokens

    Xu et al., arXiv 2401.08417, section 3; alpha is TRL's.
    """
    return -log_sigmoid(beta * (policy[0] - policy[1])), -cpo_alpha * policy[0]


@preference_loss("orpo", denominator=("pairs", "chosen_tokens"), source="arXiv 2403.07691, eq. 6")
def orpo(policy: Answers, counts: Answers, *, beta: float = 0.1) -> tuple[Tensor, Tensor]:
    """ORPO: the negative log-likelihood of the chosen answers, and beta times the log odds ratio's loss; no reference.

    -beta log sigma(log odds(p_c) - log odds(p_r)), and -log pi(y_c), a mean over tokens; odds(p) = p / (1 - p), log p
    the mean log-prob per token, where 1 - p is 1e-6 at least

    Hong et al., arXiv 2403.07691, eq. 6, where beta is called lambda. The likelihood is that of the response; TRL's
    includes the prompt.
    """
    chosen, rejected = per_token(policy, counts)
    log_odds_ratio = chosen - rejected - (log_one_minus_exp(chosen) - log_one_minus_exp(rejected))
    return -beta * log_sigmoid(log_odds_ratio), -policy[0]


@preference_loss("sft", denominator="chosen_tokens", source="cross-entropy")
def sft(policy: Answers) -> Tensor:
    """Supervised fine-tuning on the chosen answers: divided by their scored tokens, a mean over tokens, not pairs.

    -log pi(y_c|x)

    Cross-entropy; no reference and no rejected answer has part in it.
    """
    return -policy[0]
