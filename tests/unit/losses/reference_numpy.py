"""The preference losses once more, in float64 NumPy, written from the papers' formulas alone.

A loss takes vectors of B pairs by name and returns B terms; with terms of two kinds a tuple: those to be divided by the
pairs, and those by the chosen tokens.
"""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

Vector = np.ndarray
Vectors = dict[str, Vector]
Terms = Any


def log_sigmoid(x: Vector) -> Vector:
    return -np.logaddexp(0.0, -x)


def logistic(x: Vector) -> Vector:
    return np.exp(log_sigmoid(x))


def ratio(v: Vectors, answer: str) -> Vector:
    """log (pi(y) / pi_ref(y))"""
    return v[f"{answer}_logps"] - v[f"ref_{answer}_logps"]


def margin(v: Vectors) -> Vector:
    """log (pi(y_c) / pi_ref(y_c)) - log (pi(y_r) / pi_ref(y_r))"""
    return ratio(v, "chosen") - ratio(v, "rejected")


def length(v: Vectors, answer: str) -> Vector:
    return np.clip(v[f"{answer}_counts"], 1, None)


def margin_per_token(v: Vectors) -> Vector:
    return ratio(v, "chosen") / length(v, "chosen") - ratio(v, "rejected") / length(v, "rejected")


def cross_entropy(h: Vector, label_smoothing: float) -> Vector:
    return -(1 - label_smoothing) * log_sigmoid(h) - label_smoothing * log_sigmoid(-h)


def sigmoid(v: Vectors, beta: float = 0.1, label_smoothing: float = 0.0) -> Terms:
    return cross_entropy(beta * margin(v), label_smoothing)


def cdpo(v: Vectors, beta: float = 0.1, label_smoothing: float = 0.1) -> Terms:
    return cross_entropy(beta * margin(v), label_smoothing)


def robust(v: Vectors, beta: float = 0.1, label_smoothing: float = 0.1) -> Terms:
    h, flipped = beta * margin(v), label_smoothing
    return ((1 - flipped) * -log_sigmoid(h) - flipped * -log_sigmoid(-h)) / (1 - 2 * flipped)


def hinge(v: Vectors, beta: float = 0.1) -> Terms:
    return np.maximum(0.0, 1 - beta * margin(v))


def ipo(v: Vectors, beta: float = 0.1) -> Terms:
    return (margin_per_token(v) - 0.5 / beta) ** 2


def sigmoid_norm(v: Vectors, beta: float = 0.1) -> Terms:
    return -log_sigmoid(beta * margin_per_token(v))


def exo_pair(v: Vectors, beta: float = 0.1, label_smoothing: float = 1e-3) -> Terms:
    """KL(p || q), p the policy's preference over the two answers and q the smoothed labels."""
    h = beta * margin(v)
    return sum(
        logistic(s * h) * (log_sigmoid(s * h) - np.log(q)) for s, q in ((1, 1 - label_smoothing), (-1, label_smoothing))
    )


def nca_pair(v: Vectors, beta: float = 0.1) -> Terms:
    chosen, rejected = beta * ratio(v, "chosen"), beta * ratio(v, "rejected")
    return -log_sigmoid(chosen) - 0.5 * (log_sigmoid(-chosen) + log_sigmoid(-rejected))


def bco_pair(v: Vectors, beta: float = 0.1) -> Terms:
    return -log_sigmoid(beta * ratio(v, "chosen")) - log_sigmoid(-beta * ratio(v, "rejected"))


def sppo_hard(v: Vectors, beta: float = 0.1) -> Terms:
    return (ratio(v, "chosen") - 0.5 / beta) ** 2 + (ratio(v, "rejected") + 0.5 / beta) ** 2


def given_back(first: Vector, second: Vector) -> Vector:
    """sort(first) - sort(second), each difference where its part of first stood."""
    found = np.empty_like(first)
    found[np.argsort(first, kind="stable")] = np.sort(first) - np.sort(second)
    return found


def aot(v: Vectors, beta: float = 0.1, label_smoothing: float = 0.0) -> Terms:
    policy = v["chosen_logps"] - v["rejected_logps"]
    reference = v["ref_chosen_logps"] - v["ref_rejected_logps"]
    return cross_entropy(beta * given_back(policy, reference), label_smoothing)


def aot_unpaired(v: Vectors, beta: float = 0.1, label_smoothing: float = 0.0) -> Terms:
    return cross_entropy(beta * given_back(ratio(v, "chosen"), ratio(v, "rejected")), label_smoothing)


def apo_zero(v: Vectors, beta: float = 0.1) -> Terms:
    return 1 - logistic(beta * ratio(v, "chosen")) + logistic(beta * ratio(v, "rejected"))


def apo_down(v: Vectors, beta: float = 0.1) -> Terms:
    return logistic(beta * ratio(v, "chosen")) + 1 - logistic(beta * margin(v))


def discopop(v: Vectors, beta: float = 0.1, discopop_tau: float = 0.05) -> Terms:
    h = beta * margin(v)
    exponential = np.exp(log_sigmoid(h / discopop_tau) - h)
    return -log_sigmoid(h) * logistic(-h / discopop_tau) + exponential


def kto_pair(v: Vectors, beta: float = 0.1) -> Terms:
    chosen, rejected = ratio(v, "chosen"), ratio(v, "rejected")
    of_chosen = 1 - logistic(beta * (chosen - max(0.0, rejected.mean())))
    of_rejected = 1 - logistic(beta * (max(0.0, chosen.mean()) - rejected))
    return (of_chosen + of_rejected) / 2


def simpo(v: Vectors, beta: float = 2.0, simpo_gamma: float = 1.0, label_smoothing: float = 0.0) -> Terms:
    per_token = v["chosen_logps"] / length(v, "chosen") - v["rejected_logps"] / length(v, "rejected")
    return cross_entropy(beta * per_token - simpo_gamma, label_smoothing)


def cpo(v: Vectors, beta: float = 0.1, cpo_alpha: float = 1.0) -> Terms:
    return -log_sigmoid(beta * (v["chosen_logps"] - v["rejected_logps"])), -cpo_alpha * v["chosen_logps"]


def orpo(v: Vectors, beta: float = 0.1) -> Terms:
    def log_odds(answer: str) -> Vector:
        mean = v[f"{answer}_logps"] / length(v, answer)
        return mean - np.log(-np.expm1(np.minimum(mean, -1e-6)))

    return -beta * log_sigmoid(log_odds("chosen") - log_odds("rejected")), -v["chosen_logps"]


def sft(v: Vectors) -> Terms:
    return -v["chosen_logps"]


REFERENCE: dict[str, Callable[..., Terms]] = {
    each.__name__: each
    for each in (
        sigmoid, cdpo, robust, hinge, ipo, sigmoid_norm, exo_pair, nca_pair, bco_pair, sppo_hard, aot, aot_unpaired,
        apo_zero, apo_down, discopop, kto_pair, simpo, cpo, orpo, sft,
    )
}  # fmt: skip


DIVERGENCES: dict[str, Callable[..., Vector]] = {
    "reverse_kl": lambda x, coef: x,
    "forward_kl": lambda x, coef: 1 - np.exp(np.minimum(-x, 80.0)),
    "js_divergence": lambda x, coef: np.log(2.0) + log_sigmoid(x),
    "alpha_divergence": lambda x, coef: np.expm1(np.minimum((coef - 1) * x, 80.0)) / (coef - 1),
}


def shaped(v: Vectors, ld_alpha: float = 1.0, f: str = "reverse_kl", coef: float = 0.5) -> Vectors:
    """Vectors whose plain ratios are f of those of length-desensitised log-probs."""
    found = dict(v)
    for answer in ("chosen", "rejected"):
        sums = {}
        for who in ("", "ref_"):
            shared = v[f"{who}{answer}_shared_logps"]
            sums[who] = shared + ld_alpha * (v[f"{who}{answer}_logps"] - shared)
        found[f"{answer}_logps"] = DIVERGENCES[f](sums[""] - sums["ref_"], coef)
        found[f"ref_{answer}_logps"] = np.zeros_like(found[f"{answer}_logps"])
    return found


def policy_weight(v: Vectors) -> Vector:
    """exp(mean over tokens of log pi - log sum pi^2), the product over the two answers."""
    return np.prod(
        [
            np.exp((v[f"{answer}_logps"] - v[f"{answer}_log_sum_sq"]) / length(v, answer))
            for answer in ("chosen", "rejected")
        ],
        axis=0,
    )
