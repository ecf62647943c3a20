"""Every registered loss against NumPy, among fillers, and where float32 or graph mode may break it."""

from __future__ import annotations

import ast
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from reference_numpy import REFERENCE
from run_losses import ANSWERS, MODES, VECTORS, Given, Loss, gradients_of, only, pairs_of, tensors, terms_of

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

# Values or slopes of these are differences of numbers near 1, of which float32 leaves 6e-8.
BALANCED = ("exo_pair", "nca_pair", "apo_zero", "apo_down", "kto_pair")
# 1 / tau = 20 stands before what rounding leaves of a difference.
STEEP = {"discopop": 3e-7}


def random_pairs(name: str, count: int, largest: float, seed: int = 7, longest: float = 5000.0) -> Given:
    """Log-ratios of either sign from 1/64 to `largest`; for a loss over a batch no two alike and with means above 0;
    without a reference log-probs from -1/2 to -`largest`.

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
            ratios = rng.choice(np.arange(-32 * largest, 96 * largest), count, replace=False) / 64
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


def count_of(name: str) -> int:
    """How many pairs are differentiated, which NumPy does one by one for a loss over a batch."""
    return 64 if get_loss(name).over_batch else 1000


def test_every_loss_has_a_reference() -> None:
    assert set(REFERENCE) == set(loss_names())


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
def test_1000_random_pairs_against_numpy(name: str, parameters: dict[str, float], mode: str) -> None:
    # The mean of 1000 ratios would lose digits that are no fault of the loss.
    given = random_pairs(name, 1000, largest=400.0 if name == "kto_pair" else 50_000.0)
    expected = REFERENCE[name](given, **parameters)
    np.testing.assert_allclose(terms_of(name, given, **parameters), expected, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
def test_gradients_against_finite_differences(name: str, parameters: dict[str, float], mode: str) -> None:
    given = random_pairs(name, count_of(name), 100.0 if get_loss(name).over_batch else 50_000.0, seed=8)
    for answer, gradient in zip(ANSWERS, gradients_of(name, given, **parameters)):
        expected = slopes(name, given, answer, parameters)
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=STEEP.get(name, 1e-7), err_msg=answer)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
def test_graph_mode_equals_pynative(name: str, parameters: dict[str, float]) -> None:
    given = random_pairs(name, count_of(name), largest=100.0)
    found = []
    before = ms.get_context("mode")
    for number in MODES.values():
        ms.set_context(mode=number)
        found.append((terms_of(name, given, **parameters), *gradients_of(name, given, **parameters)))
    ms.set_context(mode=before)
    for graph, pynative in zip(*found):
        np.testing.assert_allclose(graph, pynative, rtol=5e-7, atol=STEEP.get(name, 1e-7 if name in BALANCED else 1e-9))


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
    logits = np.tile(EXTREMES, len(EXTREMES))
    given = pairs_of(chosen_logps=logits / 0.2, rejected_logps=-logits / 0.2)
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
    np.testing.assert_allclose(terms_of(name, mixed)[..., places], REFERENCE[name](given), rtol=1e-6, atol=2e-7)
    others = np.setdiff1d(np.arange(24), places)
    for answer, gradient in zip(ANSWERS, gradients_of(name, mixed)):
        expected = slopes(name, given, answer, {})
        np.testing.assert_allclose(gradient[places], expected, rtol=1e-6, atol=STEEP.get(name, 1e-7))
        assert not gradient[others].any()


@pytest.mark.parametrize("name", loss_names())
def test_no_real_pair_is_finite(name: str, mode: str) -> None:
    given = pairs_of(**{**random_pairs(name, 24, largest=40.0), "mask": np.zeros(24)})
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
