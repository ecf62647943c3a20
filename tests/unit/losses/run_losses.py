"""Objectives on vectors of pairs, as the cell calls them: terms and gradients as NumPy arrays."""

from __future__ import annotations

from functools import cache
from typing import Any, Callable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from mindrlhf.losses import Objective, bind, get_loss, objective

MODES = {"graph": ms.GRAPH_MODE, "pynative": ms.PYNATIVE_MODE}
ANSWERS = ("chosen", "rejected")
# The arguments of the cells below: columns are the two answers.
COLUMNS = ("{}_logps", "{}_shared_logps", "ref_{}_logps", "ref_{}_shared_logps", "{}_counts", "{}_log_sum_sq")
VECTORS = (
    "chosen_logps",
    "rejected_logps",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "chosen_counts",
    "rejected_counts",
)

Given = dict[str, np.ndarray]


class Terms(nn.Cell):
    """-> both kinds of terms, each (B,)."""

    def __init__(self, what: Objective) -> None:
        super().__init__()
        self.weigh = what.weigh
        self.terms = what.terms

    def construct(self, logps, shared, ref_logps, ref_shared, counts, log_sum_sq, mask):  # type: ignore[no-untyped-def]
        weighted, reference = self.weigh(logps, shared), self.weigh(ref_logps, ref_shared)
        return self.terms(logps, weighted, reference, counts, log_sum_sq, mask)


class Loss(nn.Cell):
    """-> the sum over real pairs, with a weight between the inputs and the loss as in training."""

    def __init__(self, what: Objective, pairs: int, num_pairs: float = 1.0, num_tokens: float = 1.0) -> None:
        super().__init__()
        self.terms = Terms(what)
        self.weight = Parameter(Tensor(np.ones((pairs, 2), np.float32)), name="weight")
        self.num_pairs, self.num_tokens = num_pairs, num_tokens

    def construct(self, logps, shared, ref_logps, ref_shared, counts, log_sum_sq, mask):  # type: ignore[no-untyped-def]
        by_pairs, by_tokens = self.terms(logps * self.weight, shared, ref_logps, ref_shared, counts, log_sum_sq, mask)
        return (by_pairs * mask).sum() / self.num_pairs + (by_tokens * mask).sum() / self.num_tokens


def pairs_of(**vectors: Any) -> Given:
    """The vectors from those that matter; others are log-prob 0 and 1 token, shared sums are the whole ones."""
    count = max(np.size(vector) for vector in vectors.values())
    given = {name: np.full(count, float(name.endswith("counts"))) for name in VECTORS}
    given |= {name: np.asarray(vector, np.float64).reshape(-1) for name, vector in vectors.items()}
    for answer in ANSWERS:
        for who in ("", "ref_"):
            given.setdefault(f"{who}{answer}_shared_logps", given[f"{who}{answer}_logps"])
        given.setdefault(f"{answer}_log_sum_sq", np.zeros(count))
    given.setdefault("mask", np.ones(count))
    return given


def tensors(given: Given) -> list[Tensor]:
    columns = [np.stack([given[name.format(answer)] for answer in ANSWERS], 1) for name in COLUMNS]
    return [Tensor(np.asarray(each, np.float32)) for each in (*columns, given["mask"])]


@cache
def only(name: str, **parameters: float) -> Objective:
    return objective([(bind(name, **parameters), 1.0)])


# What graph mode has compiled serves all tests with as many pairs.
@cache
def _terms(what: Objective, mode: int) -> Terms:
    return Terms(what)


@cache
def _gradient(what: Objective, mode: int, pairs: int, num_pairs: float, num_tokens: float) -> Callable[..., Any]:
    return ms.grad(Loss(what, pairs, num_pairs, num_tokens), (0, 1))


def both_terms(what: Objective, given: Given) -> tuple[np.ndarray, np.ndarray]:
    by_pairs, by_tokens = _terms(what, ms.get_context("mode"))(*tensors(pairs_of(**given)))
    return by_pairs.asnumpy(), by_tokens.asnumpy()


def slopes_of(
    what: Objective, given: Given, num_pairs: float = 1.0, num_tokens: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of the loss by log-probs and by shared log-probs of the policy, each (B,2)."""
    given = pairs_of(**given)
    gradient = _gradient(what, ms.get_context("mode"), len(given["mask"]), num_pairs, num_tokens)
    by_logps, by_shared = gradient(*tensors(given))
    return by_logps.asnumpy(), by_shared.asnumpy()


def terms_of(name: str, given: Given, **parameters: float) -> np.ndarray:
    """(B,), or (2,B) of a loss with terms of two kinds."""
    terms = both_terms(only(name, **parameters), given)
    denominators = get_loss(name).denominators
    if len(denominators) > 1:
        return np.stack(terms)
    empty = terms[denominators[0] == "pairs"]
    assert not empty.any()
    return terms[denominators[0] == "chosen_tokens"]


def gradients_of(name: str, given: Given, **parameters: float) -> tuple[np.ndarray, np.ndarray]:
    """Of the sum of all terms, by the chosen and by the rejected log-probs."""
    by_logps, _ = slopes_of(only(name, **parameters), given)
    return by_logps[:, 0], by_logps[:, 1]
