"""Lists of losses and the settings of rlhf that shape them."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from reference_numpy import DIVERGENCES, REFERENCE, policy_weight, shaped
from run_losses import ANSWERS, Given, both_terms, pairs_of, slopes_of

from mindrlhf.losses import Objective, bind, bind_all, get_loss, loss_names, objective
from mindrlhf.losses.divergence import divergence
from mindrlhf.losses.weighting import discount_excess

ON_RATIOS = [name for name in loss_names() if "ratios" in get_loss(name).reads]


def built(*entries: Any, **settings: Any) -> Objective:
    return objective(bind_all([{"type": each} if isinstance(each, str) else each for each in entries]), **settings)


def pairs(count: int = 12, seed: int = 3) -> Given:
    """Answers of 1 to 60 tokens, log-probs of -2 a token or so, ratios of a few."""
    rng = np.random.default_rng(seed)
    given: Given = {f"{answer}_counts": rng.integers(1, 60, count).astype(float) for answer in ANSWERS}
    shortest = np.minimum(given["chosen_counts"], given["rejected_counts"])
    for answer in ANSWERS:
        counts = given[f"{answer}_counts"]
        for who in ("", "ref_"):
            tail = np.where(counts > shortest, -2 * (counts - shortest) + rng.normal(0, 2, count), 0.0)
            shared = np.minimum(-2 * shortest + rng.normal(0, 2, count), -0.1)
            given[f"{who}{answer}_shared_logps"] = shared.astype(np.float32).astype(float)
            given[f"{who}{answer}_logps"] = (shared + tail).astype(np.float32).astype(float)
        given[f"{answer}_log_sum_sq"] = (-1.5 * counts).astype(np.float32).astype(float)
    return pairs_of(**given)


def as_two(terms: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(terms, tuple):
        return terms
    nothing = np.zeros_like(terms)
    return (nothing, terms) if get_loss(name).denominators == ("chosen_tokens",) else (terms, nothing)


LISTS: dict[str, list[dict[str, Any]]] = {
    "sigmoid + sft": [{"type": "sigmoid"}, {"type": "sft"}],
    "sigmoid + 0.1 sft": [{"type": "sigmoid"}, {"type": "sft", "weight": 0.1}],
    "0.5 hinge + 2 cpo - 0.25 aot + orpo": [
        {"type": "hinge", "weight": 0.5, "beta": 0.02},
        {"type": "cpo", "weight": 2, "cpo_alpha": 0.5},
        {"type": "aot", "weight": -0.25},
        {"type": "orpo"},
    ],
    "sigmoid + sigmoid": [{"type": "sigmoid"}, {"type": "sigmoid", "beta": 0.5}],
}


@pytest.mark.parametrize("name", sorted(LISTS))
def test_lists_against_numpy(name: str, mode: str) -> None:
    what, given = built(*LISTS[name]), pairs()
    expected = [np.zeros(12), np.zeros(12)]
    for entry in LISTS[name]:
        parameters = {key: value for key, value in entry.items() if key not in ("type", "weight")}
        terms = as_two(REFERENCE[entry["type"]](given, **parameters), entry["type"])
        expected = [sum_ + entry.get("weight", 1.0) * each for sum_, each in zip(expected, terms)]
    for found, exact in zip(both_terms(what, given), expected):
        np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)
    assert what.name == name


def test_weights_and_denominators_by_hand() -> None:
    """sigmoid at h = 0 has log 2 per pair, sft 3 and 5 in 4 tokens: (2 log 2) / 2 + 0.1 * 8 / 4."""
    what = built("sigmoid", {"type": "sft", "weight": 0.1})
    by_pairs, by_tokens = both_terms(what, pairs_of(chosen_logps=[-3.0, -5.0], rejected_logps=[-3.0, -5.0]))
    assert by_pairs == pytest.approx([np.log(2)] * 2)
    assert by_tokens == pytest.approx([0.3, 0.5])


SETTINGS: list[dict[str, Any]] = [
    {"ld_alpha": 0.5},
    {"ld_alpha": 0.0},
    {"use_weighting": True},
    {"f_divergence_type": "forward_kl"},
    {"f_divergence_type": "js_divergence"},
    {"f_divergence_type": "alpha_divergence"},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.5},
    {"reference_free": True},
    {"ld_alpha": 0.3, "use_weighting": True, "f_divergence_type": "js_divergence"},
]


def expected_terms(name: str, given: Given, settings: dict[str, Any]) -> np.ndarray:
    if settings.get("reference_free"):
        given = {key: np.zeros_like(value) if key.startswith("ref_") else value for key, value in given.items()}
    changed = shaped(
        given,
        settings.get("ld_alpha", 1.0),
        settings.get("f_divergence_type", "reverse_kl"),
        settings.get("f_alpha_divergence_coef", 0.5),
    )
    return REFERENCE[name](changed) * (policy_weight(given) if settings.get("use_weighting") else 1.0)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["sigmoid", "ipo", "aot_unpaired"])
def test_settings_against_numpy(name: str, settings: dict[str, Any], mode: str) -> None:
    what, given = built(name, **settings), pairs()
    found, by_tokens = both_terms(what, given)
    np.testing.assert_allclose(found, expected_terms(name, given, settings), rtol=3e-6, atol=1e-7)
    assert not by_tokens.any()


@pytest.mark.parametrize("name", ON_RATIOS)
def test_every_loss_of_ratios_heeds_the_settings(name: str) -> None:
    given = pairs()
    settings = {"ld_alpha": 0.3, "use_weighting": True, "f_divergence_type": "js_divergence"}
    found, _ = both_terms(built(name, **settings), given)
    np.testing.assert_allclose(found, expected_terms(name, given, settings), rtol=3e-6, atol=1e-7)
    assert not np.allclose(found, both_terms(built(name), given)[0], rtol=1e-3)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradients_of_settings_against_finite_differences(settings: dict[str, Any], mode: str) -> None:
    """By the whole sums and by the shared ones; WPO weights are constants."""
    given, step = pairs(), 1e-3
    weight = policy_weight(given) if settings.get("use_weighting") else 1.0
    settings_without = {key: value for key, value in settings.items() if key != "use_weighting"}
    for kind, found in zip(("logps", "shared_logps"), slopes_of(built("sigmoid", **settings), given)):
        for column, answer in enumerate(ANSWERS):
            key = f"{answer}_{kind}"

            def moved(by: float, key: str = key) -> np.ndarray:
                return weight * expected_terms("sigmoid", {**given, key: given[key] + by}, settings_without)

            expected = (8 * (moved(step) - moved(-step)) - (moved(2 * step) - moved(-2 * step))) / (12 * step)
            if kind == "shared_logps" and settings.get("ld_alpha") is None:
                expected = np.zeros(12)
            np.testing.assert_allclose(found[:, column], expected, rtol=5e-6, atol=1e-7)


def test_other_losses_of_a_list_see_plain_sums() -> None:
    given = pairs()
    settings = {"ld_alpha": 0.3, "use_weighting": True, "f_divergence_type": "js_divergence"}
    found = both_terms(built("sigmoid", "sft", "simpo", **settings), given)
    expected = expected_terms("sigmoid", given, settings) + REFERENCE["simpo"](given)
    np.testing.assert_allclose(found[0], expected, rtol=3e-6)
    np.testing.assert_allclose(found[1], -given["chosen_logps"], rtol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"f_divergence_type": name} for name in DIVERGENCES]
    + [{"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": coef} for coef in (3.0,)]
    + [{"f_divergence_type": "forward_kl", "ld_alpha": 0.5}],
    ids=str,
)
@pytest.mark.slow
@pytest.mark.parametrize("name", ON_RATIOS)
def test_finite_with_every_divergence_at_10000(name: str, settings: dict[str, Any]) -> None:
    """Log-ratios from -10000 to 10000 in all combinations; f is as large as e^80 there."""
    ends = np.array([-1e4, -104, -88, -80, -45, -1, 0, 1, 45, 80, 88, 104, 1e4])
    chosen, rejected = (each.reshape(-1) for each in np.meshgrid(ends, ends))
    given = pairs_of(chosen_logps=chosen, rejected_logps=rejected)
    what = built(name, **settings)
    assert all(np.isfinite(each).all() for each in (*both_terms(what, given), *slopes_of(what, given)))


def test_finite_where_no_pair_is_real(mode: str) -> None:
    """Filler has no tokens and log-prob 0."""
    given = pairs_of(chosen_logps=[0.0, 0.0], chosen_counts=[0.0, 0.0], rejected_counts=[0.0, 0.0], mask=[0.0, 0.0])
    what = built("sigmoid", "ipo", "kto_pair", "sft", ld_alpha=0.5, use_weighting=True, f_divergence_type="forward_kl")
    assert all(np.isfinite(each).all() for each in (*both_terms(what, given), *slopes_of(what, given)))


def apply(name: str, x: np.ndarray, coef: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    f = divergence(name, coef)
    given = Tensor(x.astype(np.float32))
    return f(given).asnumpy(), ms.grad(f)(given).asnumpy()


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
@pytest.mark.parametrize("coef", [0.5, 0.0, -1.0, 2.0])
def test_divergences_against_numpy(name: str, coef: float) -> None:
    x = np.concatenate([np.linspace(-75.1, 75.1, 601), [-1e4, 1e4]]).astype(np.float32).astype(float)
    found, slope = apply(name, x, coef)
    step = 1e-4

    def moved(by: float) -> np.ndarray:
        return DIVERGENCES[name](x + by, coef)

    expected = (8 * (moved(step) - moved(-step)) - (moved(2 * step) - moved(-2 * step))) / (12 * step)
    np.testing.assert_allclose(found, DIVERGENCES[name](x, coef), rtol=1e-6, atol=3e-7)
    tolerance = 1e-9 * np.maximum(1.0, np.abs(found))
    assert (np.abs(slope - expected) <= 1e-6 * np.abs(expected) + tolerance + 1e-7).all()


def test_divergences_by_hand() -> None:
    """At 0 all are 0 with slope 1, but Jensen-Shannon 1/2. At log 2: 1 - 1/2; log 2 + log(2/3); -2 (1/sqrt 2 - 1)."""
    at_zero = {name: apply(name, np.zeros(1)) for name in DIVERGENCES}
    assert {name: float(value[0]) for name, (value, _) in at_zero.items()} == dict.fromkeys(DIVERGENCES, 0.0)
    assert {name: float(slope[0]) for name, (_, slope) in at_zero.items()} == {
        "reverse_kl": 1.0,
        "forward_kl": 1.0,
        "js_divergence": 0.5,
        "alpha_divergence": 1.0,
    }
    at_log_2 = [float(apply(name, np.log([2.0]))[0][0]) for name in ("forward_kl", "js_divergence", "alpha_divergence")]
    assert at_log_2 == pytest.approx([0.5, np.log(4 / 3), 2 - np.sqrt(2)], rel=1e-6)


def test_alpha_divergence_0_is_the_forward_one_and_goes_to_the_reverse_one() -> None:
    x = np.linspace(-5, 5, 101)
    np.testing.assert_allclose(apply("alpha_divergence", x, 0.0)[0], apply("forward_kl", x)[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(apply("alpha_divergence", x, 0.999)[0], x, rtol=5e-3, atol=1e-3)


def test_ld_alpha_by_hand() -> None:
    """-10 of which -6 over the shared length: with alpha 1/4 -6 - 1 = -7; 1 keeps -10 and 0 has -6."""
    both = Tensor([-10.0], ms.float32), Tensor([-6.0], ms.float32)
    assert [float(discount_excess(*both, alpha)[0]) for alpha in (0.25, 1.0, 0.0)] == [-7.0, -10.0, -6.0]


def test_wpo_by_hand() -> None:
    """log pi - log sum pi^2 is -2 in 2 tokens and -1 in 1: weights e^-1 and e^-1, so e^-2 log 2."""
    given = pairs_of(
        chosen_logps=[-5.0],
        chosen_counts=[2.0],
        chosen_log_sum_sq=[-3.0],
        rejected_logps=[-5.0],
        rejected_log_sum_sq=[-4.0],
    )
    assert both_terms(built("sigmoid", use_weighting=True), given)[0] == pytest.approx([np.exp(-2) * np.log(2)])


def test_what_a_trainer_asks_of_an_objective() -> None:
    plain = built("sigmoid")
    assert (plain.name, plain.beta, plain.needs_reference) == ("sigmoid", 0.1, True)
    assert (plain.needs_shared, plain.needs_squares, plain.over_batch) == (False, False, False)
    assert built("sigmoid", ld_alpha=0.5).needs_shared
    assert built("sigmoid", use_weighting=True).needs_squares
    assert built("sft", "kto_pair").over_batch
    assert not built("simpo", "sft").needs_reference
    assert built("simpo", "sigmoid").needs_reference
    assert not built("sigmoid", reference_free=True).needs_reference
    assert not built("aot", reference_free=True).needs_reference


def test_beta_is_that_of_the_first_loss_that_has_one() -> None:
    assert built({"type": "sigmoid", "beta": 0.3}, {"type": "ipo", "beta": 0.5}).beta == 0.3
    assert built("sft", {"type": "ipo", "beta": 0.5}).beta == 0.5
    assert built("sft").beta == 0.1


@pytest.mark.parametrize(
    ("losses", "settings", "sentence"),
    [
        (["sft"], {"ld_alpha": 0.5}, "rlhf.ld_alpha acts on losses of log-ratios, and sft reads none"),
        (["simpo", "sft"], {"use_weighting": True}, "rlhf.use_weighting acts .* and simpo and sft reads? none"),
        (["orpo"], {"f_divergence_type": "forward_kl"}, "rlhf.f_divergence_type acts"),
        (["cpo"], {"reference_free": True}, "rlhf.reference_free acts"),
        (["sigmoid", "aot"], {"ld_alpha": 0.5}, "rlhf.ld_alpha .* leave rlhf.ld_alpha out or take another loss"),
        (["sigmoid"], {"ld_alpha": 1.5}, "rlhf.ld_alpha is 1.5; give a number from 0 to 1"),
        (["sigmoid"], {"ld_alpha": float("nan")}, "rlhf.ld_alpha is nan"),
        (["sigmoid"], {"f_divergence_type": "kl"}, "f_divergence_type is 'kl'; give one of reverse_kl, forward_kl"),
        (
            ["sigmoid"],
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0},
            "f_alpha_divergence_coef must be a number other than 1",
        ),
    ],
)
def test_settings_are_checked(losses: list[str], settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        built(*losses, **settings)


def test_an_objective_is_made_of_bound_losses() -> None:
    loss = bind("sigmoid", beta=0.5)
    assert objective([(loss, 1.0)]).beta == loss.beta == 0.5
