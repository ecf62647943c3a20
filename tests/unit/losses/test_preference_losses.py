"""Every registered loss against figures from elsewhere, against NumPy, and where float32 or graph mode may break it."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import mindspore as ms
import numpy as np
import pytest
from golden_losses import CASES, SFT_OF_MODEL, VARIANTS
from mindspore import Parameter, Tensor, nn
from reference_numpy import REFERENCE

import mindrlhf.losses
from mindrlhf.losses import bind, get_loss, loss_names
from mindrlhf.losses.preference import log_sigmoid

VECTORS = (
    "chosen_logps",
    "rejected_logps",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "chosen_counts",
    "rejected_counts",
)
MODES = {"graph": ms.GRAPH_MODE, "pynative": ms.PYNATIVE_MODE}
# Every loss as it stands, and with other values of what parameters it has.
SETTINGS: list[tuple[str, dict[str, float]]] = [(name, {}) for name in loss_names()] + [
    ("sigmoid", {"beta": 0.5, "label_smoothing": 0.1}),
    ("robust", {"beta": 0.5, "label_smoothing": 0.25}),
    ("hinge", {"beta": 0.02}),
    ("ipo", {"beta": 2.0}),
    ("sigmoid_norm", {"beta": 5.0}),
]

Given = dict[str, np.ndarray]


@pytest.fixture(params=sorted(MODES))
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    before = ms.get_context("mode")
    ms.set_context(mode=MODES[request.param])
    yield request.param
    ms.set_context(mode=before)


class Sum(nn.Cell):
    """The sum of a loss's terms, with a weight between the inputs and the loss as in training."""

    def __init__(self, loss: Callable[..., Tensor], pairs: int) -> None:
        super().__init__()
        self.loss = loss
        self.weight = Parameter(Tensor(np.ones(pairs, np.float32)), name="weight")

    def construct(self, chosen, rejected, ref_chosen, ref_rejected, chosen_counts, rejected_counts):  # type: ignore[no-untyped-def]
        return self.loss(chosen * self.weight, rejected, ref_chosen, ref_rejected, chosen_counts, rejected_counts).sum()


class Terms(nn.Cell):
    def __init__(self, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def construct(self, chosen, rejected, ref_chosen, ref_rejected, chosen_counts, rejected_counts):  # type: ignore[no-untyped-def]
        return self.loss(chosen, rejected, ref_chosen, ref_rejected, chosen_counts, rejected_counts)


def pairs_of(**vectors: Any) -> Given:
    """The six vectors from those that matter; the others are log-prob 0 and 1 token."""
    length = max(np.size(vector) for vector in vectors.values())
    given = {name: np.full(length, name.endswith("counts"), np.float32) for name in VECTORS}
    return {**given, **{name: np.asarray(vector, np.float32).reshape(-1) for name, vector in vectors.items()}}


def tensors(given: Given) -> list[Tensor]:
    return [Tensor(np.asarray(given[name], np.float32)) for name in VECTORS]


def terms_of(name: str, given: Given, **parameters: float) -> np.ndarray:
    return Terms(bind(name, **parameters).function)(*tensors(given)).asnumpy()


def gradients_of(name: str, given: Given, **parameters: float) -> tuple[np.ndarray, np.ndarray]:
    """By the chosen and by the rejected log-probs."""
    cell = Sum(bind(name, **parameters).function, len(given["chosen_logps"]))
    chosen, rejected = ms.grad(cell, (0, 1))(*tensors(given))
    return chosen.asnumpy(), rejected.asnumpy()


def random_pairs(count: int, largest: float, seed: int = 7) -> Given:
    """Log-ratios of either sign from 1/64 to `largest`.

    Everything is a multiple of 1/64 below 2^17 and counts are powers of two, so that sums and quotients are exact in
    float32 and a difference between float32 and float64 is the loss's own.
    """
    rng = np.random.default_rng(seed)

    def whole(values: np.ndarray) -> np.ndarray:
        return np.round(values * 64) / 64

    given: Given = {}
    for answer in ("chosen", "rejected"):
        ratios = rng.choice([-1.0, 1.0], count) * np.exp2(rng.uniform(-6, np.log2(largest), count))
        given[f"ref_{answer}_logps"] = whole(rng.uniform(-5000.0, 0.0, count))
        given[f"{answer}_logps"] = given[f"ref_{answer}_logps"] + whole(ratios)
        given[f"{answer}_counts"] = np.exp2(rng.integers(0, 9, count))
    return given


def slopes(name: str, given: Given, answer: str, parameters: dict[str, float], step: float = 1e-3) -> np.ndarray:
    """Central differences of the float64 reference by the log-probs of `answer`: four points, error in step^4."""
    key = f"{answer}_logps"

    def moved(steps: int) -> np.ndarray:
        return REFERENCE[name]({**given, key: given[key] + steps * step}, **parameters)

    return (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * step)


def test_every_loss_has_a_reference() -> None:
    assert set(REFERENCE) == set(loss_names())


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_terms_and_gradients_of_torch(case: str, variant: str, mode: str) -> None:
    name, parameters = VARIANTS[variant]
    figures = CASES[case]
    np.testing.assert_allclose(terms_of(name, figures["given"], **parameters), figures["terms"][variant], rtol=1e-6)
    if figures["gradients"]:
        chosen, rejected = gradients_of(name, pairs_of(**figures["given"]), **parameters)
        np.testing.assert_allclose(chosen, figures["gradients"][variant][0], rtol=1e-6)
        np.testing.assert_allclose(rejected, figures["gradients"][variant][1], rtol=1e-6)


def test_sft_of_torch() -> None:
    given = CASES["model"]["given"]
    assert terms_of("sft", given).sum() / sum(given["chosen_counts"]) == pytest.approx(SFT_OF_MODEL, rel=1e-6)


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
def test_1000_random_pairs_against_numpy(name: str, parameters: dict[str, float], mode: str) -> None:
    given = random_pairs(1000, largest=50_000.0)
    expected = REFERENCE[name](given, **parameters)
    np.testing.assert_allclose(terms_of(name, given, **parameters), expected, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
def test_gradients_against_finite_differences(name: str, parameters: dict[str, float], mode: str) -> None:
    given = random_pairs(1000, largest=50_000.0, seed=8)
    for answer, gradient in zip(("chosen", "rejected"), gradients_of(name, given, **parameters)):
        np.testing.assert_allclose(gradient, slopes(name, given, answer, parameters), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
def test_graph_mode_equals_pynative(name: str, parameters: dict[str, float]) -> None:
    given = random_pairs(64, largest=100.0)
    found = []
    before = ms.get_context("mode")
    for number in MODES.values():
        ms.set_context(mode=number)
        found.append((terms_of(name, given, **parameters), *gradients_of(name, given, **parameters)))
    ms.set_context(mode=before)
    for graph, pynative in zip(*found):
        np.testing.assert_allclose(graph, pynative, rtol=5e-7, atol=1e-9)


@pytest.mark.parametrize("name", loss_names())
def test_gradients_reach_weights(name: str, mode: str) -> None:
    """In graph mode they are silently 0 behind a functools.partial or a NamedTuple."""
    given = random_pairs(8, largest=4.0)
    cell = Sum(bind(name).function, 8)
    gradient = ms.grad(cell, None, cell.trainable_params())(*tensors(given))[0].asnumpy()
    expected = slopes(name, given, "chosen", {}) * given["chosen_logps"]
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(gradient, expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", loss_names())
def test_finite_at_logits_of_10000(name: str, mode: str) -> None:
    """beta x_c - beta x_r from -10000 to 10000, among them where exp and nn.LogSigmoid overflow."""
    logits = np.array([-1e4, -1e3, -104, -90, -88, -1, 0, 1, 88, 90, 104, 1e3, 1e4])
    given = pairs_of(chosen_logps=logits / 0.2, rejected_logps=-logits / 0.2)
    values = [terms_of(name, given), *gradients_of(name, given)]
    assert all(np.isfinite(value).all() for value in values)
    np.testing.assert_allclose(values[0], REFERENCE[name](given), rtol=1e-6, atol=2e-7)


def test_log_sigmoid_to_the_ends() -> None:
    """At 0 its gradient is 1/2: training starts there, and abs, minimum and relu have no say in it."""
    x = Tensor(np.array([0.0, -0.0, 1e4, -1e4, 1e30, -1e30], np.float32))
    np.testing.assert_allclose(log_sigmoid(x).asnumpy(), [-np.log(2), -np.log(2), 0, -1e4, 0, -1e30], rtol=1e-7)
    assert ms.grad(log_sigmoid)(x).asnumpy().tolist() == [0.5, 0.5, 0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "loss", "slope"), [("sigmoid", np.log(2), 0.05), ("hinge", 1.0, 0.1), ("ipo", 25, 10)]
)
def test_first_step(name: str, loss: float, slope: float) -> None:
    """Policy = reference, so x_c = x_r = 0. sigmoid: -log(1/2), slope beta / 2. hinge: 1, slope beta.
    ipo: (0 - 1 / 0.2)^2 = 25, slope 2 * 5 / 1 token."""
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


def test_robust_by_hand() -> None:
    """ls 1/4: (-3/4 log(3/4) + 1/4 log(1/4)) / (1/2) = (0.21576 - 0.34657) * 2 = -0.26162."""
    assert terms_of("robust", log_ratio_three(), label_smoothing=0.25) == pytest.approx([-0.261624], rel=1e-5)


def test_hinge_by_hand() -> None:
    """x_c = 3, x_r = -1. beta 0.1: 1 - 0.4 = 0.6. beta 0.5: 1 - 2 is below 0, and so is its gradient 0."""
    given = pairs_of(chosen_logps=[-4.0], ref_chosen_logps=[-7.0], rejected_logps=[-6.0], ref_rejected_logps=[-5.0])
    assert terms_of("hinge", given) == pytest.approx([0.6])
    assert terms_of("hinge", given, beta=0.5).tolist() == [0.0]
    assert [float(each[0]) for each in gradients_of("hinge", given, beta=0.5)] == [0.0, 0.0]


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


def test_sft_by_hand() -> None:
    """-12 in 4 tokens and -8 in 6: terms 12 and 8, 20 in 10 tokens, a mean of 2."""
    terms = terms_of("sft", pairs_of(chosen_logps=[-12.0, -8.0], chosen_counts=[4.0, 6.0]))
    assert terms.tolist() == [12.0, 8.0]
    assert terms.sum() / 10 == 2.0
    assert get_loss("sft").denominator == "chosen_tokens"


@pytest.mark.parametrize("name", ["ipo", "sigmoid_norm"])
def test_filler_without_tokens_is_finite(name: str) -> None:
    none, one = (pairs_of(chosen_logps=[-2.0], chosen_counts=[n], rejected_counts=[n]) for n in (0.0, 1.0))
    assert terms_of(name, none).tolist() == terms_of(name, one).tolist()


@pytest.mark.parametrize("name", loss_names())
def test_needs_are_what_is_read(name: str) -> None:
    given = random_pairs(16, largest=4.0)
    before = terms_of(name, given)
    for need, keys in (("reference", VECTORS[2:4]), ("counts", VECTORS[4:])):
        moved = {**given, keys[0]: given[keys[0]] * 2, keys[1]: given[keys[1]] * 4}
        assert (terms_of(name, moved) != before).any() == (need in get_loss(name).needs)


def test_losses_know_nothing_of_ours() -> None:
    """Pure maths: mindspore and the registry, no layouts."""
    folder = Path(mindrlhf.losses.__file__).parent
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        nodes = list(ast.walk(ast.parse(text)))
        modules = {each.module or "" for each in nodes if isinstance(each, ast.ImportFrom)}
        modules |= {alias.name for each in nodes if isinstance(each, ast.Import) for alias in each.names}
        ours = {module for module in modules if module.startswith("mindrlhf")}
        assert ours <= {"mindrlhf.losses", "mindrlhf.losses.registry"}, path
        assert not any(module.startswith("mindformers") for module in modules), path
        assert ".shard(" not in text, path


def test_papers_names_every_loss() -> None:
    text = (Path(mindrlhf.__file__).parents[1] / "PAPERS.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for name in loss_names():
        assert any(f"`{name}`" in row and get_loss(name).source in row for row in rows), name
