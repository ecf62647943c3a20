"""What a run minimises: a sum of losses with their weights, and the settings that shape log-ratios.

Shapes: B pairs. Columns of a (B,2) array are the chosen and the rejected answer. All float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable

from mindspore import Tensor, ops

from mindrlhf.losses.divergence import divergence
from mindrlhf.losses.registry import DEFAULT_BETA, Answers, BoundLoss, Terms
from mindrlhf.losses.weighting import discount_excess, policy_weight

# The settings, and what each does; docs and the list of losses show them.
SETTINGS = {
    "ld_alpha": "LD-DPO: tokens beyond the shorter answer's length count ld_alpha, 0 to 1 (arXiv 2409.06411)",
    "use_weighting": "WPO: pairs that the policy itself would write count more (arXiv 2406.11827)",
    "f_divergence_type": "f-DPO: another divergence from the reference, in place of reverse_kl (arXiv 2309.16240)",
    "f_alpha_divergence_coef": "the coefficient of alpha_divergence, any but 1",
    "reference_free": "the reference log-probs count as 0",
}

Part = Callable[[Answers, Answers, Answers, Answers, Tensor, Tensor], Terms]


@dataclass(frozen=True)
class Objective:
    """What a run minimises; `weigh` and `terms` are made for graph mode.

    name: such as "sigmoid + 0.1 sft". beta: factor of the rewards in the metrics.
    mean_rewards: rewards are beta times the policy's mean log-prob per token (simpo, orpo).
    needs_reference, needs_shared, needs_squares: whether `terms` reads reference log-probs at all, `weigh` sums over
    the shared length, `terms` log_sum_sq; where it does not, give zeros.
    over_batch: a pair's term depends on the other pairs of its micro-batch on its worker.
    weigh: (logps, shared_logps) of any shape, the same -> the sums that count, that shape; for policy and reference.
    terms: (logps, weighted, reference, counts, log_sum_sq, mask), five times (B,2), then (B,) -> (terms to be divided
    by the pairs, terms to be divided by the scored chosen tokens, of the global batch), both (B,). logps are the
    policy's sums of log-probs, weighted the same after `weigh`, reference the reference's after `weigh`, counts the
    scored tokens, log_sum_sq the sums over them of log sum_v p_v^2. mask is 1 for a real pair and 0 for filler, whose
    terms are finite numbers that the caller multiplies by 0.
    """

    name: str
    beta: float
    mean_rewards: bool
    needs_reference: bool
    needs_shared: bool
    needs_squares: bool
    over_batch: bool
    weigh: Callable[[Tensor, Tensor], Tensor]
    terms: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Terms]


def objective(
    losses: Sequence[tuple[BoundLoss, float]],
    *,
    ld_alpha: float | None = None,
    use_weighting: bool = False,
    f_divergence_type: str = "reverse_kl",
    f_alpha_divergence_coef: float = 0.5,
    reference_free: bool = False,
) -> Objective:
    """The sum of `losses`, each times its weight.

    The settings act on the losses that read `ratios`: these are f(weighted - reference), and the terms are multiplied
    by the WPO weight. Other losses see the policy's plain sums. The reference of all of them is 0 with reference_free.
    Raises ValueError for a value out of range, or a setting that no loss of the list heeds.
    """
    assert losses
    _check(losses, ld_alpha, use_weighting, f_divergence_type, reference_free)
    shape = divergence(f_divergence_type, f_alpha_divergence_coef)
    total = _part(*losses[0], use_weighting)
    for loss, weight in losses[1:]:
        total = _sum(total, _part(loss, weight, use_weighting))

    def terms(
        logps: Tensor, weighted: Tensor, reference: Tensor, counts: Tensor, log_sum_sq: Tensor, mask: Tensor
    ) -> Terms:
        if reference_free:
            reference = ops.zeros_like(reference)
        policy, apart, tokens = (logps[:, 0], logps[:, 1]), weighted - reference, (counts[:, 0], counts[:, 1])
        weight = mask
        if use_weighting:
            weight = policy_weight(policy, tokens, (log_sum_sq[:, 0], log_sum_sq[:, 1]))
        ratios = (shape(apart[:, 0]), shape(apart[:, 1]))
        return total(ratios, policy, (reference[:, 0], reference[:, 1]), tokens, mask, weight)

    leading = next((loss for loss, _ in losses if "beta" in loss.parameters), None)
    return Objective(
        name=_name(losses),
        beta=leading.beta if leading else DEFAULT_BETA,
        mean_rewards=bool(leading and not leading.needs_reference and "counts" in leading.spec.reads),
        needs_reference=not reference_free and any(loss.needs_reference for loss, _ in losses),
        needs_shared=ld_alpha is not None,
        needs_squares=use_weighting,
        over_batch=any(loss.spec.over_batch for loss, _ in losses),
        weigh=_weigh(ld_alpha),
        terms=terms,
    )


def _weigh(ld_alpha: float | None) -> Callable[[Tensor, Tensor], Tensor]:
    if ld_alpha is None:

        def weigh(logps: Tensor, shared_logps: Tensor) -> Tensor:
            return logps
    else:
        alpha = ld_alpha

        def weigh(logps: Tensor, shared_logps: Tensor) -> Tensor:
            return discount_excess(logps, shared_logps, alpha)

    return weigh


def _part(loss: BoundLoss, factor: float, use_weighting: bool) -> Part:
    function = loss.function
    weighted = use_weighting and "ratios" in loss.spec.reads

    def part(
        ratios: Answers, policy: Answers, reference: Answers, counts: Answers, mask: Tensor, weight: Tensor
    ) -> Terms:
        by_pairs, by_tokens = function(ratios, policy, reference, counts, mask)
        if weighted:
            by_pairs, by_tokens = by_pairs * weight, by_tokens * weight
        if factor != 1:
            by_pairs, by_tokens = by_pairs * factor, by_tokens * factor
        return by_pairs, by_tokens

    return part


def _sum(first: Part, second: Part) -> Part:
    # Two at a time: graph mode does not loop over a tuple of functions.
    def both(
        ratios: Answers, policy: Answers, reference: Answers, counts: Answers, mask: Tensor, weight: Tensor
    ) -> Terms:
        by_pairs, by_tokens = first(ratios, policy, reference, counts, mask, weight)
        more_by_pairs, more_by_tokens = second(ratios, policy, reference, counts, mask, weight)
        return by_pairs + more_by_pairs, by_tokens + more_by_tokens

    return both


def _name(losses: Sequence[tuple[BoundLoss, float]]) -> str:
    words = [loss.spec.name if weight == 1 else f"{weight:g} {loss.spec.name}" for loss, weight in losses]
    return " + ".join(words).replace("+ -", "- ")


def _check(
    losses: Sequence[tuple[BoundLoss, float]],
    ld_alpha: float | None,
    use_weighting: bool,
    f_divergence_type: str,
    reference_free: bool,
) -> None:
    if ld_alpha is not None and not 0 <= ld_alpha <= 1:
        raise ValueError(f"rlhf.ld_alpha is {ld_alpha}; give a number from 0 to 1, or leave it out")
    reads = {name for loss, _ in losses for name in loss.spec.reads}
    names = " and ".join(dict.fromkeys(loss.spec.name for loss, _ in losses))
    given = {
        "ld_alpha": ld_alpha is not None,
        "use_weighting": use_weighting,
        "f_divergence_type": f_divergence_type != "reverse_kl",
        "reference_free": reference_free and "reference" not in reads,
    }
    for key, is_on in given.items():
        if is_on and "ratios" not in reads:
            raise ValueError(
                f"rlhf.{key} acts on losses of log-ratios, and {names} reads none; leave rlhf.{key} out or take "
                f"another loss"
            )
    if ld_alpha is not None and "reference" in reads and not reference_free:
        raise ValueError(
            f"rlhf.ld_alpha weighs the reference's log-probs, and {names} reads them beside the policy's plain ones; "
            f"leave rlhf.ld_alpha out or take another loss"
        )
