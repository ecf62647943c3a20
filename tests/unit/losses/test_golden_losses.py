"""Every variant against figures of PyTorch: values of each pair and of the batch, gradients."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from golden_losses import VARIANTS, cases
from run_losses import Given, both_terms, pairs_of, slopes_of

from mindrlhf.losses import Objective, bind_all, loss_names, objective

# -x is up to 83 there, and counts as 80 at most.
CLAMPED = ("extreme", "fdpo_forward_kl")
# Every digit of these is that of PyTorch, however small the gradient.
DIGITS = (
    "sigmoid",
    "sigmoid_beta0.5",
    "cdpo_ls0.1",
    "robust_ls0.1",
    "hinge",
    "ipo",
    "sigmoid_norm",
    "sft",
    "sppo_hard",
)


@cache
def built(name: str) -> Objective:
    return objective(bind_all(VARIANTS[name].losses), **VARIANTS[name].settings)


def given_of(case: str) -> Given:
    return pairs_of(**cases()[case]["given"])


def of_a_pair(variant: str, what: Objective, given: Given) -> np.ndarray:
    """The terms as PyTorch's have them: a mean over tokens is added to each, batch losses stand in their order."""
    by_pairs, by_tokens = both_terms(what, given)
    terms = by_pairs + by_tokens.sum(dtype=np.float64) / given["chosen_counts"].sum()
    if variant.startswith("aot_unpaired"):
        return terms[np.argsort(given["chosen_logps"] - given["ref_chosen_logps"])]
    if variant.startswith("aot"):
        return terms[np.argsort(given["chosen_logps"] - given["rejected_logps"])]
    return terms


def of_torch(variant: str, figures: dict[str, Any]) -> np.ndarray:
    terms = np.asarray(figures["terms"].get(variant, figures["loss"][variant]))
    return terms.reshape(2, -1).mean(0) if variant == "kto_pair" else terms


def atol(case: str, variant: str) -> float:
    """Sums over up to 130 tokens of a model carry 6e-5 already, and a shared sum is another one than PyTorch's."""
    if not case.startswith("micro"):
        return 0.0
    if variant == "ld_dpo_alpha0.5":
        return 1e-5
    return 0.0 if case == "micro-qwen2" else 2e-7


def test_every_loss_has_figures_of_torch() -> None:
    assert {entry["type"] for variant in VARIANTS.values() for entry in variant.losses} == set(loss_names())
    assert all(set(figures["loss"]) >= set(VARIANTS) - {"wpo_sigmoid"} for figures in cases().values())


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_terms_of_torch(variant: str, mode: str) -> None:
    what = built(variant)
    for case, figures in cases().items():
        if variant not in figures["loss"]:
            continue
        given = given_of(case)
        found, expected = of_a_pair(variant, what, given), of_torch(variant, figures)
        if (case, variant) == CLAMPED:
            over = given["ref_chosen_logps"] - given["chosen_logps"] > 80
            assert over.sum() == 1
            assert np.isfinite(found).all()
            found, expected = found[~over], expected[~over]
        else:
            assert found.mean(dtype=np.float64) == pytest.approx(
                figures["loss"][variant], rel=1e-6, abs=atol(case, variant)
            )
        expected = np.broadcast_to(expected, found.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=atol(case, variant), err_msg=case)


@pytest.mark.parametrize("case", ["moderate", "extreme"])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_gradients_of_torch(case: str, variant: str, mode: str) -> None:
    given, figures = given_of(case), cases()[case]["gradients"][variant]
    num_pairs, num_tokens = float(len(given["mask"])), float(given["chosen_counts"].sum())
    by_logps, by_shared = slopes_of(built(variant), given, num_pairs, num_tokens)
    kept = np.ones_like(given["mask"], bool)
    if (case, variant) == CLAMPED:
        kept = given["ref_chosen_logps"] - given["chosen_logps"] <= 80
        assert by_logps[~kept, 0] == 0
    # Of a difference of slopes, such as apo_down's, PyTorch's float32 too has only this.
    close = 0.0 if variant in DIGITS else 2e-9
    for column, answer in enumerate(("chosen", "rejected")):
        found = by_logps[:, column] + by_shared[:, column]
        np.testing.assert_allclose(found[kept], np.asarray(figures[answer])[kept], rtol=1e-6, atol=close)
        if f"{answer}_last" in figures:
            longer = given[f"{answer}_counts"] > np.minimum(given["chosen_counts"], given["rejected_counts"])
            last = np.asarray(figures[f"{answer}_last"])
            assert longer.any()
            np.testing.assert_allclose(by_logps[longer, column], last[longer], rtol=1e-6)
