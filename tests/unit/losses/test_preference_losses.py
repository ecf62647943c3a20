"""Every registered loss against NumPy, by hand, and where float32 or graph mode may break it."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from conftest import MODES
from mindspore import Tensor
from reference_numpy import REFERENCE
from run_losses import ANSWERS, VECTORS, Given, Loss, both_terms, only, pairs_of, slopes_of, tensors

import mindrlhf.losses
from mindrlhf.losses import get_loss, loss_names
from mindrlhf.losses.maths import log_one_minus_exp, log_sigmoid

# Every loss as it stands, and with other values of what parameters it has.
SETTINGS: list[tuple[str, dict[str, float]]] = [(name, {}) for name in loss_names()] + [
    ("sigmoid", {"beta": 0.5, "label_smoothing": 0.1}),
    ("robust", {"beta": 0.5, "label_smoothing": 0.25}),
    ("hinge", {"beta": 0.02}),
    ("ipo", {"beta": 2.0}),
    ("sigmoid_norm", {"beta": 5.0}),
    ("exo_pair", {"beta": 0.5, "label_smoothing": 0.25}),
    ("nca_pair", {"beta": 0.01}),
    ("sppo_hard", {"beta": 2.0}),
    ("aot", {"beta": 0.5, "label_smoothing": 0.25}),
    ("aot_unpaired", {"beta": 0.5, "label_smoothing": 0.25}),
    ("discopop", {"beta": 0.05, "discopop_tau": 1.0}),
    ("kto_pair", {"beta": 0.01}),
    ("simpo", {"beta": 10.0, "simpo_gamma": 3.0, "label_smoothing": 0.1}),
    ("cpo", {"beta": 0.01, "cpo_alpha": 0.25}),
    ("orpo", {"beta": 2.0}),
]

# 1 / tau = 20 stands before what rounding leaves of a difference.
STEEP = {"discopop": 3e-7}


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


def random_pairs(name: str, count: int, largest: float, seed: int = 7, longest: float = 5000.0) -> Given:
    """Log-ratios of either sign from 1/64 to `largest`, no two alike for a loss over a batch; without a reference
    log-probs from -1/2 to -`largest`.

    Everything is a multiple of 1/64 below 2^17 and counts are powers of two, so that sums and quotients are exact in
    float32 and a difference between float32 and float64 is the loss's own.
    """
    rng = np.random.default_rng(seed)

    def whole(values: np.ndarray) -> np.ndarray:
        return np.round(values * 64) / 64

    given: Given = {}
    for answer in ANSWERS:
        ratios = rng.choice([-1.0, 1.0], count) * np.exp2(rng.uniform(-6, np.log2(largest), count))
        if get_loss(name).over_batch:
            ratios = rng.choice(np.arange(-64 * largest, 64 * largest), count, replace=False) / 64
        given[f"ref_{answer}_logps"] = whole(rng.uniform(-longest, 0.0, count))
        given[f"{answer}_logps"] = given[f"ref_{answer}_logps"] + whole(ratios)
        if not get_loss(name).needs_reference:
            given[f"{answer}_logps"] = -whole(np.maximum(0.5, np.abs(ratios)))
        given[f"{answer}_counts"] = np.exp2(rng.integers(0, 9, count))
    return given


def slopes(name: str, given: Given, answer: str, parameters: dict[str, float]) -> np.ndarray:
    """Central differences of the float64 reference by the log-probs of `answer`: four points, error in step^4."""
    key, step = f"{answer}_logps", 2.0**-10

    def moved(by: np.ndarray | float) -> np.ndarray:
        terms = REFERENCE[name]({**given, key: given[key] + by}, **parameters)
        return terms[0] + terms[1] if isinstance(terms, tuple) else terms

    def difference(unit: np.ndarray | float) -> np.ndarray:
        return (8 * (moved(step * unit) - moved(-step * unit)) - (moved(2 * step * unit) - moved(-2 * step * unit))) / (
            12 * step
        )

    if not get_loss(name).over_batch:
        return difference(1.0)
    # One log-prob at a time, for it moves the terms of all pairs; the small differences are summed, not the terms.
    return np.array([difference(unit).sum() for unit in np.eye(len(given[key]))])


def test_every_loss_has_a_reference() -> None:
    assert set(REFERENCE) == set(loss_names())


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
def test_1000_random_pairs_against_numpy(name: str, parameters: dict[str, float], mode: str) -> None:
    given = random_pairs(name, 1000, largest=50_000.0)
    expected = REFERENCE[name](given, **parameters)
    np.testing.assert_allclose(terms_of(name, given, **parameters), expected, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
def test_gradients_against_finite_differences(name: str, parameters: dict[str, float], mode: str) -> None:
    count, largest = (64, 100.0) if get_loss(name).over_batch else (1000, 50_000.0)
    given = random_pairs(name, count, largest, seed=8)
    for answer, gradient in zip(ANSWERS, gradients_of(name, given, **parameters)):
        expected = slopes(name, given, answer, parameters)
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=STEEP.get(name, 1e-7), err_msg=answer)


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
def test_graph_mode_equals_pynative(name: str, parameters: dict[str, float]) -> None:
    given = random_pairs(name, 64, largest=100.0)
    found = []
    before = ms.get_context("mode")
    for number in MODES.values():
        ms.set_context(mode=number)
        found.append((terms_of(name, given, **parameters), *gradients_of(name, given, **parameters)))
    ms.set_context(mode=before)
    for graph, pynative in zip(*found):
        np.testing.assert_allclose(graph, pynative, rtol=5e-7, atol=STEEP.get(name, 1e-9))


@pytest.mark.parametrize("name", loss_names())
def test_gradients_reach_weights(name: str, mode: str) -> None:
    """In graph mode they are silently 0 behind a functools.partial or a NamedTuple."""
    given = random_pairs(name, 8, largest=4.0, longest=4.0)
    cell = Loss(only(name), 8)
    gradient = ms.grad(cell, None, cell.trainable_params())(*tensors(pairs_of(**given)))[0].asnumpy()
    for column, answer in enumerate(ANSWERS):
        expected = slopes(name, given, answer, {}) * given[f"{answer}_logps"]
        assert np.abs(expected).max() > 0 or (name, answer) == ("sft", "rejected")
        np.testing.assert_allclose(gradient[:, column], expected, rtol=2e-6, atol=1e-7)


EXTREMES = np.array([-1e4, -1e3, -104, -90, -88, -1, 0, 1, 88, 90, 104, 1e3, 1e4])


@pytest.mark.parametrize("name", loss_names())
def test_finite_at_logits_of_10000(name: str, mode: str) -> None:
    """beta x_c - beta x_r from -10000 to 10000, among them where exp and nn.LogSigmoid overflow."""
    given = pairs_of(chosen_logps=EXTREMES / 0.2, rejected_logps=-EXTREMES / 0.2)
    values = [terms_of(name, given), *gradients_of(name, given)]
    assert all(np.isfinite(value).all() for value in values)
    if name != "orpo":  # log-probs above 0 are none, and odds of them neither
        np.testing.assert_allclose(values[0], REFERENCE[name](given), rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("name", loss_names())
def test_finite_at_every_corner(name: str, mode: str) -> None:
    """x_c and x_r, then beta x_c and beta x_r, in all combinations of the same numbers; below 0 without a reference."""
    for scale in (1.0, 10.0):
        chosen, rejected = (each.reshape(-1) for each in np.meshgrid(EXTREMES * scale, EXTREMES * scale))
        if not get_loss(name).needs_reference:
            chosen, rejected = -np.abs(chosen), -np.abs(rejected)
        given = pairs_of(chosen_logps=chosen, rejected_logps=rejected)
        values = [terms_of(name, given), *gradients_of(name, given)]
        assert all(np.isfinite(value).all() for value in values)
        np.testing.assert_allclose(values[0], REFERENCE[name](given), rtol=1e-6, atol=5e-7)


def test_log_sigmoid_to_the_ends() -> None:
    """At 0 its gradient is 1/2: training starts there, and abs, minimum and relu have no say in it."""
    x = Tensor(np.array([0.0, -0.0, 1e4, -1e4, 1e30, -1e30], np.float32))
    np.testing.assert_allclose(log_sigmoid(x).asnumpy(), [-np.log(2), -np.log(2), 0, -1e4, 0, -1e30], rtol=1e-7)
    assert ms.grad(log_sigmoid)(x).asnumpy().tolist() == [0.5, 0.5, 0.0, 1.0, 0.0, 1.0]


def test_log_one_minus_exp_keeps_its_digits_near_0() -> None:
    x = -np.exp2(np.arange(-19, 7, 0.25)).astype(np.float32)
    found, slope = (each(Tensor(x)).asnumpy() for each in (log_one_minus_exp, ms.grad(log_one_minus_exp)))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found, np.log(-np.expm1(exact)), rtol=5e-7, atol=2e-7)
    np.testing.assert_allclose(slope, np.exp(exact) / np.expm1(exact), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize(
    ("name", "loss", "slope"),
    [
        ("sigmoid", np.log(2), 0.05),
        ("hinge", 1.0, 0.1),
        ("ipo", 25, 10),
        ("aot", np.log(2), 0.05),
        ("aot_unpaired", np.log(2), 0.05),
        ("apo_zero", 1.0, 0.025),
        ("discopop", 0.5 * np.log(2) + 0.5, 0.1 * (0.25 + 0.5 - 5 * (1 - np.log(2)))),
        ("kto_pair", 0.5, 0.025),
    ],
)
def test_first_step(name: str, loss: float, slope: float) -> None:
    """Policy = reference, so x_c = x_r = 0. sigmoid: -log(1/2), slope beta / 2. hinge: 1, slope beta.
    ipo: (0 - 1 / 0.2)^2 = 25, slope 2 * 5 / 1 token. aot: one pair, as sigmoid. apo_zero: 1/2 + 1/2, slope beta / 4.
    discopop: m = 1/2, so (log 2 + 1) / 2; by h -(1/4 + 1/2) + m' (1 - log 2), m' = 1 / (4 tau) = 5.
    kto_pair: (1/2 + 1/2) / 2; half of beta / 4 through each answer's own term, half through the other's mean."""
    given = pairs_of(chosen_logps=[-7.5], rejected_logps=[-9.25], ref_chosen_logps=[-7.5], ref_rejected_logps=[-9.25])
    chosen, rejected = gradients_of(name, given)
    assert terms_of(name, given) == pytest.approx([loss])
    assert chosen == pytest.approx([-slope])
    assert rejected == pytest.approx([slope])


def log_ratio_three(beta: float = 0.1) -> Given:
    """beta x_c = ln 3 and x_r = 0: sigma(h) = 3/4 and sigma(-h) = 1/4."""
    return pairs_of(chosen_logps=[math.log(3) / beta - 40], ref_chosen_logps=[-40.0])


def test_sigmoid_by_hand() -> None:
    """-log(3/4) = 0.28768; with ls 1/4: -3/4 log(3/4) - 1/4 log(1/4) = 0.21576 + 0.34657 = 0.56234."""
    assert terms_of("sigmoid", log_ratio_three()) == pytest.approx([0.287682], rel=1e-5)
    assert terms_of("sigmoid", log_ratio_three(), label_smoothing=0.25) == pytest.approx([0.562335], rel=1e-5)


def test_cdpo_by_hand() -> None:
    """ls 1/10: -0.9 log(3/4) - 0.1 log(1/4) = 0.25891 + 0.13863 = 0.39754."""
    assert terms_of("cdpo", log_ratio_three()) == pytest.approx([0.397543], rel=1e-5)


def test_robust_by_hand() -> None:
    """ls 1/4: (-3/4 log(3/4) + 1/4 log(1/4)) / (1/2) = (0.21576 - 0.34657) * 2 = -0.26162."""
    assert terms_of("robust", log_ratio_three(), label_smoothing=0.25) == pytest.approx([-0.261624], rel=1e-5)


def test_exo_pair_by_hand() -> None:
    """ls 1/4: the policy prefers as the labels do, so 0. ls 1/8: 3/4 log(6/7) + 1/4 log 2 = -0.11561 + 0.17329."""
    assert terms_of("exo_pair", log_ratio_three(), label_smoothing=0.25) == pytest.approx([0.0], abs=1e-6)
    assert terms_of("exo_pair", log_ratio_three(), label_smoothing=0.125) == pytest.approx([0.057674], rel=1e-4)


def test_nca_pair_by_hand() -> None:
    """-log(3/4) - (log(1/4) + log(1/2)) / 2 = 0.28768 + (1.38629 + 0.69315) / 2 = 1.32740."""
    assert terms_of("nca_pair", log_ratio_three()) == pytest.approx([1.327403], rel=1e-5)


def test_bco_pair_by_hand() -> None:
    """-log(3/4) - log(1/2) = 0.28768 + 0.69315 = 0.98083."""
    assert terms_of("bco_pair", log_ratio_three()) == pytest.approx([0.980829], rel=1e-5)


def test_apo_by_hand() -> None:
    """zero: 1 - 3/4 + 1/2 = 3/4. down: 3/4 + 1 - 3/4 = 1."""
    assert terms_of("apo_zero", log_ratio_three()) == pytest.approx([0.75])
    assert terms_of("apo_down", log_ratio_three()) == pytest.approx([1.0])


def test_discopop_by_hand() -> None:
    """tau 1: m = 3/4, exp(-h) = 1/3, so 1/4 * 0.28768 + 1/3 * 3/4 = 0.07192 + 0.25."""
    assert terms_of("discopop", log_ratio_three(), discopop_tau=1.0) == pytest.approx([0.321920], rel=1e-5)


THREE_LESS_ONE = pairs_of(
    chosen_logps=[-4.0], ref_chosen_logps=[-7.0], rejected_logps=[-6.0], ref_rejected_logps=[-5.0]
)


def test_hinge_by_hand() -> None:
    """x_c = 3, x_r = -1. beta 0.1: 1 - 0.4 = 0.6. beta 0.5: 1 - 2 is below 0, and so is its gradient 0."""
    assert terms_of("hinge", THREE_LESS_ONE) == pytest.approx([0.6])
    assert terms_of("hinge", THREE_LESS_ONE, beta=0.5).tolist() == [0.0]
    assert [float(each[0]) for each in gradients_of("hinge", THREE_LESS_ONE, beta=0.5)] == [0.0, 0.0]


def test_sppo_hard_by_hand() -> None:
    """beta 1/4, so 1 / (2 beta) = 2: (3 - 2)^2 + (-1 + 2)^2 = 2."""
    assert terms_of("sppo_hard", THREE_LESS_ONE, beta=0.25) == pytest.approx([2.0])


SIX_IN_THREE = pairs_of(
    chosen_logps=[-4.0],
    ref_chosen_logps=[-10.0],
    chosen_counts=[3.0],
    rejected_logps=[-9.0],
    ref_rejected_logps=[-5.0],
    rejected_counts=[4.0],
)


def test_ipo_by_hand() -> None:
    """x_c = 6 in 3 tokens, x_r = -4 in 4: (2 + 1 - 1 / 0.2)^2 = 4."""
    assert terms_of("ipo", SIX_IN_THREE) == pytest.approx([4.0])


def test_sigmoid_norm_by_hand() -> None:
    """2 + 1 = 3 as above; with beta = ln 3 / 3 h = ln 3, so -log(3/4)."""
    assert terms_of("sigmoid_norm", SIX_IN_THREE, beta=math.log(3) / 3) == pytest.approx([0.287682], rel=1e-5)


FOUR_AND_TWENTY = pairs_of(chosen_logps=[-4.0], chosen_counts=[2.0], rejected_logps=[-20.0], rejected_counts=[4.0])


def test_simpo_by_hand() -> None:
    """-2 and -5 per token: 2 * 3 - gamma; with gamma 6 - ln 3 h = ln 3, and the rest is as for sigmoid."""
    gamma = 6 - math.log(3)
    assert terms_of("simpo", FOUR_AND_TWENTY, simpo_gamma=gamma) == pytest.approx([0.287682], rel=1e-5)
    smooth = terms_of("simpo", FOUR_AND_TWENTY, simpo_gamma=gamma, label_smoothing=0.25)
    assert smooth == pytest.approx([0.562335], rel=1e-5)


def test_cpo_by_hand() -> None:
    """beta = ln 3 / 16: h = ln 3, so -log(3/4) for the pair; 1/2 * 4 for the tokens."""
    by_pairs, by_tokens = terms_of("cpo", FOUR_AND_TWENTY, beta=math.log(3) / 16, cpo_alpha=0.5)
    assert by_pairs == pytest.approx([0.287682], rel=1e-5)
    assert by_tokens.tolist() == [2.0]


def test_orpo_by_hand() -> None:
    """p_c = 3/4 and p_r = 1/2: odds 3 and 1, so -beta log(3/4); the tokens have 2 log(4/3)."""
    given = pairs_of(
        chosen_logps=[2 * math.log(3 / 4)], chosen_counts=[2.0], rejected_logps=[math.log(1 / 2)], rejected_counts=[1.0]
    )
    by_pairs, by_tokens = terms_of("orpo", given, beta=0.5)
    assert by_pairs == pytest.approx([0.143841], rel=1e-5)
    assert by_tokens == pytest.approx([0.575364], rel=1e-5)


def test_sft_by_hand() -> None:
    """-12 in 4 tokens and -8 in 6: terms 12 and 8, 20 in 10 tokens, a mean of 2."""
    terms = terms_of("sft", pairs_of(chosen_logps=[-12.0, -8.0], chosen_counts=[4.0, 6.0]))
    assert terms.tolist() == [12.0, 8.0]
    assert terms.sum() / 10 == 2.0
    assert get_loss("sft").denominators == ("chosen_tokens",)


def test_aot_unpaired_by_hand() -> None:
    """x_c = 2, 1 and x_r = -3, 1: sorted 1, 2 and -3, 1, so h = 4 beta for the second pair and 1 beta for the first."""
    given = pairs_of(chosen_logps=[2.0, 1.0], rejected_logps=[-3.0, 1.0])
    terms = terms_of("aot_unpaired", given, beta=math.log(3))
    assert terms == pytest.approx([math.log(4 / 3), math.log(82 / 81)], rel=1e-4)


def test_aot_by_hand() -> None:
    """Leads 5 and 1 of the policy, 2 and 4 of the reference: 5 - 4 for the first pair, 1 - 2 for the second."""
    given = pairs_of(chosen_logps=[5.0, 1.0], ref_chosen_logps=[2.0, 4.0])
    assert terms_of("aot", given, beta=math.log(3)) == pytest.approx([math.log(4 / 3), math.log(4)], rel=1e-5)


def test_kto_pair_by_hand() -> None:
    """x_c = 2, 4 with mean 3; x_r = -1, -3 with a mean below 0, which counts as 0. beta = ln 3:
    1 - sigma(beta 2) = 1/10, 1 - sigma(beta 4) = 1/82; 1 - sigma(beta 4) = 1/82, 1 - sigma(beta 6) = 1/730."""
    given = pairs_of(chosen_logps=[2.0, 4.0], rejected_logps=[-1.0, -3.0])
    expected = [(1 / 10 + 1 / 82) / 2, (1 / 82 + 1 / 730) / 2]
    assert terms_of("kto_pair", given, beta=math.log(3)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["ipo", "sigmoid_norm", "simpo", "orpo"])
def test_filler_without_tokens_is_finite(name: str) -> None:
    none, one = (pairs_of(chosen_logps=[-2.0], chosen_counts=[n], rejected_counts=[n]) for n in (0.0, 1.0))
    assert terms_of(name, none).tolist() == terms_of(name, one).tolist()


def among_fillers(given: Given) -> tuple[Given, np.ndarray]:
    """The same pairs with fillers before, between and behind them, full of other numbers; where the pairs stand."""
    count = len(given["chosen_logps"])
    places = np.sort(np.random.default_rng(5).choice(np.arange(1, 2 * count - 1), count, replace=False))
    fill = {name: np.random.default_rng(6).uniform(-900.0, 0.0, 2 * count) for name in VECTORS}
    fill = {name: np.where(name.endswith("counts"), 0.0, values) for name, values in fill.items()}
    mask = np.zeros(2 * count)
    mask[places] = 1.0
    for name in VECTORS:
        fill[name][places] = given[name]
    return {**fill, "mask": mask}, places


@pytest.mark.parametrize("name", loss_names())
def test_fillers_do_not_count(name: str, mode: str) -> None:
    given = random_pairs(name, 12, largest=40.0)
    mixed, places = among_fillers(given)
    np.testing.assert_allclose(terms_of(name, mixed)[..., places], terms_of(name, given), rtol=1e-6)
    others = np.setdiff1d(np.arange(24), places)
    for alone, among in zip(gradients_of(name, given), gradients_of(name, mixed)):
        np.testing.assert_allclose(among[places], alone, rtol=2e-6, atol=1e-9)
        assert not among[others].any()


@pytest.mark.parametrize("name", loss_names())
def test_no_real_pair_is_finite(name: str, mode: str) -> None:
    given = pairs_of(**{**random_pairs(name, 4, largest=40.0), "mask": np.zeros(4)})
    assert np.isfinite(terms_of(name, given)).all()
    assert not any(each.any() for each in gradients_of(name, given))


@pytest.mark.parametrize("name", [each for each in loss_names() if get_loss(each).over_batch])
def test_a_loss_over_a_batch_gives_each_pair_its_term(name: str) -> None:
    """In another order of the pairs, the terms come in that order too."""
    given = random_pairs(name, 16, largest=40.0)
    order = np.random.default_rng(9).permutation(16)
    turned = {key: values[order] for key, values in given.items()}
    np.testing.assert_allclose(terms_of(name, turned), terms_of(name, given)[order], rtol=1e-6)


@pytest.mark.parametrize("name", loss_names())
def test_what_is_read_is_what_the_arguments_say(name: str) -> None:
    given = random_pairs(name, 16, largest=4.0)
    before = terms_of(name, given)
    spec = get_loss(name)
    for reads, keys in ((spec.needs_reference, VECTORS[2:4]), ("counts" in spec.reads, VECTORS[4:])):
        moved = {**given, keys[0]: given[keys[0]] * 2, keys[1]: given[keys[1]] * 4}
        assert (terms_of(name, moved) != before).any() == reads


def test_losses_know_nothing_of_ours() -> None:
    """Pure maths: mindspore and the package itself, no layouts."""
    folder = Path(mindrlhf.losses.__file__).parent
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        nodes = list(ast.walk(ast.parse(text)))
        modules = {each.module or "" for each in nodes if isinstance(each, ast.ImportFrom)}
        modules |= {alias.name for each in nodes if isinstance(each, ast.Import) for alias in each.names}
        ours = {module for module in modules if module.startswith("mindrlhf")}
        assert all(f"{module}.".startswith("mindrlhf.losses.") for module in ours), path
        assert not any(module.startswith("mindformers") for module in modules), path
        assert ".shard(" not in text, path


def test_papers_names_every_loss() -> None:
    text = (Path(mindrlhf.__file__).parents[1] / "PAPERS.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for name in loss_names():
        assert any(f"`{name}`" in row and get_loss(name).source in row for row in rows), name
