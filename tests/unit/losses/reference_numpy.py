"""The preference losses once more, in float64 NumPy, written from the papers' formulas alone."""

from __future__ import annotations

from typing import Callable

import numpy as np

Vector = np.ndarray


def log_sigmoid(x: Vector) -> Vector:
    return -np.logaddexp(0.0, -x)


def margin(v: dict[str, Vector]) -> Vector:
    """log (pi(y_c) / pi_ref(y_c)) - log (pi(y_r) / pi_ref(y_r))"""
    return v["chosen_logps"] - v["ref_chosen_logps"] - v["rejected_logps"] + v["ref_rejected_logps"]


def margin_per_token(v: dict[str, Vector]) -> Vector:
    chosen = (v["chosen_logps"] - v["ref_chosen_logps"]) / np.clip(v["chosen_counts"], 1, None)
    return chosen - (v["rejected_logps"] - v["ref_rejected_logps"]) / np.clip(v["rejected_counts"], 1, None)


def sigmoid(v: dict[str, Vector], beta: float = 0.1, label_smoothing: float = 0.0) -> Vector:
    h = beta * margin(v)
    return -(1 - label_smoothing) * log_sigmoid(h) - label_smoothing * log_sigmoid(-h)


def robust(v: dict[str, Vector], beta: float = 0.1, label_smoothing: float = 0.1) -> Vector:
    h, flipped = beta * margin(v), label_smoothing
    return ((1 - flipped) * -log_sigmoid(h) - flipped * -log_sigmoid(-h)) / (1 - 2 * flipped)


def hinge(v: dict[str, Vector], beta: float = 0.1) -> Vector:
    return np.maximum(0.0, 1 - beta * margin(v))


def ipo(v: dict[str, Vector], beta: float = 0.1) -> Vector:
    return (margin_per_token(v) - 0.5 / beta) ** 2


def sigmoid_norm(v: dict[str, Vector], beta: float = 0.1) -> Vector:
    return -log_sigmoid(beta * margin_per_token(v))


def sft(v: dict[str, Vector]) -> Vector:
    return -v["chosen_logps"]


REFERENCE: dict[str, Callable[..., Vector]] = {
    "sigmoid": sigmoid,
    "robust": robust,
    "hinge": hinge,
    "ipo": ipo,
    "sigmoid_norm": sigmoid_norm,
    "sft": sft,
}
