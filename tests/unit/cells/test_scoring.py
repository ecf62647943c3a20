"""The mask, the log-probs of scored tokens with their gradients, and their sums, against NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from toy import SEMI_AUTO

from mindrlhf.cells.scoring import ScoreTokens, SegmentMask, ShardedTokenLogps, SumSequences, TokenLogps
from mindrlhf.parallel.layout import ONE_WORKER, Layout

N, H, V = 40, 8, 24
CLOSE = 1e-5  # of the largest value; exp on CPU is good to 5e-6

pytestmark = pytest.mark.usefixtures("cpu")


class Weighted(nn.Cell):
    """sum(coefficients * log-probs), through one of the ways to compute them."""

    def __init__(self, logps: nn.Cell) -> None:
        super().__init__()
        self.logps = logps

    def construct(self, hidden, weight, targets, coefficients):  # type: ignore[no-untyped-def]
        found = self.logps(hidden, weight, targets)[0]
        return (found * coefficients).sum(), found


class Plain(nn.Cell):
    """The definition, left to MindSpore's own differentiation."""

    def construct(self, hidden, weight, targets):  # type: ignore[no-untyped-def]
        logits = ops.matmul(hidden, weight.T).astype(ms.float32)
        return (ops.gather_elements(ops.log_softmax(logits, -1), 1, targets.expand_dims(-1)).squeeze(-1),)


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """hidden, weight, targets and what the log-probs are multiplied by: 0 for every third token, which is masked."""
    generator = np.random.default_rng(3)
    hidden, weight = generator.normal(size=(N, H)), generator.normal(size=(V, H))
    coefficients = np.where(np.arange(N) % 3 == 0, 0.0, generator.normal(size=N))
    targets = generator.integers(0, V, N)
    return tuple(  # type: ignore[return-value]
        array.astype(kind) for array, kind in ((hidden, "f4"), (weight, "f4"), (targets, "i4"), (coefficients, "f4"))
    )


def expected() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probs, and the gradients of their weighted sum by hidden and weight, in float64."""
    hidden, weight, targets, coefficients = inputs()
    hidden, weight, coefficients = (array.astype(np.float64) for array in (hidden, weight, coefficients))
    exponentials = np.exp(hidden @ weight.T)
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    logps = np.log(probabilities[np.arange(N), targets])
    by_logits = (np.eye(V)[targets] - probabilities) * coefficients[:, None]
    return logps, by_logits @ weight, by_logits.T @ hidden


def computed(cell: nn.Cell, dtype: Any = ms.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hidden, weight, targets, coefficients = map(Tensor, inputs())
    function = ops.value_and_grad(Weighted(cell), (0, 1), has_aux=True)
    (_, logps), gradients = function(hidden.astype(dtype), weight.astype(dtype), targets, coefficients)
    assert logps.dtype == ms.float32
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype]
    return logps.asnumpy(), *(gradient.astype(ms.float32).asnumpy() for gradient in gradients)  # type: ignore[return-value]


def assert_close(ours: np.ndarray, theirs: np.ndarray, bound: float = CLOSE) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= bound * np.abs(theirs).max()


@pytest.mark.parametrize("chunk", [7, 20, 512])
def test_token_logps(chunk: int) -> None:
    found = computed(TokenLogps(chunk))
    for ours, theirs in zip(found, expected()):
        assert_close(ours, theirs)
    assert not found[1][::3].any()


@pytest.mark.parametrize("kind", [Plain, lambda: ShardedTokenLogps(1, 1)], ids=["plain", "sharded"])
def test_other_ways_to_the_same_numbers(kind: Callable[[], nn.Cell]) -> None:
    for other, own, theirs in zip(computed(kind()), computed(TokenLogps(20)), expected()):
        assert_close(other, theirs)
        assert_close(other, own)


def test_token_logps_in_16_bits() -> None:
    """Gradients come in the type of what they belong to, as for any other operator."""
    for ours, theirs in zip(computed(TokenLogps(20), ms.float16), expected()):
        assert_close(ours, theirs, 5e-3)


@pytest.mark.parametrize("layout", [ONE_WORKER, SEMI_AUTO], ids=["whole", "semi-auto"])
def test_scored_tokens_of_rows(layout: Layout) -> None:
    """Each column is gathered from its own row; the logits' mean comes along, and where asked for log sum p^2."""
    generator = np.random.default_rng(5)
    hidden, weight = generator.normal(size=(3, 10, H)), generator.normal(size=(V, H))
    predict_from, targets = generator.integers(0, 10, (3, 7)), generator.integers(0, V, (3, 7))
    arguments = [hidden.astype("f4"), weight.astype("f4"), predict_from.astype("i4"), targets.astype("i4")]
    logps, means, none = ScoreTokens(layout, chunk=8)(*map(Tensor, arguments))
    squares = ScoreTokens(layout, chunk=8, squares=True)(*map(Tensor, arguments))[2]
    logits = np.take_along_axis(hidden, predict_from[..., None], 1) @ weight.T
    theirs = np.take_along_axis(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), targets[..., None], -1)
    assert_close(logps.asnumpy(), theirs[..., 0])
    assert_close(means.asnumpy(), logits.mean(-1))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert_close(squares.asnumpy(), np.log(np.square(probabilities).sum(-1)))
    assert not none.asnumpy().any()


class Scored(nn.Cell):
    """Sums per sequence, each with a weight of its own, as a loss has."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.score, self.sum = ScoreTokens(layout), SumSequences(rows_per_unit=1, pairs_per_unit=2)

    def construct(self, hidden, weight, predict_from, targets, sequence_index):  # type: ignore[no-untyped-def]
        logps, _, _ = self.score(hidden, weight, predict_from, targets)
        return (self.sum(logps, sequence_index) * Tensor([1.0, -2.0, 0.5, 3.0])).sum()


@pytest.mark.parametrize("layout", [ONE_WORKER, SEMI_AUTO], ids=["whole", "semi-auto"])
def test_what_is_not_scored_gets_no_gradient(layout: Layout) -> None:
    generator = np.random.default_rng(9)
    hidden, weight = generator.normal(size=(2, 20, H)).astype("f4"), generator.normal(size=(V, H)).astype("f4")
    predict_from = np.zeros((2, 16), np.int32)
    predict_from[:, :10] = np.arange(3, 13)
    sequence_index = np.full((2, 16), 4, np.int32)
    sequence_index[:, :10] = np.repeat([0, 1, 2, 3], [3, 2, 4, 1])
    targets = generator.integers(0, V, (2, 16)).astype("i4")
    fields = tuple(map(Tensor, (hidden, weight, predict_from, targets, sequence_index)))
    by_hidden = ops.grad(Scored(layout), 0)(*fields).asnumpy()
    scored = np.zeros(20, bool)
    scored[3:13] = True
    assert not by_hidden[:, ~scored].any()
    assert by_hidden[:, scored].all()


@pytest.mark.parametrize(("rows_per_unit", "pairs_per_unit"), [(2, 1), (1, 3)])
def test_sums_per_sequence(rows_per_unit: int, pairs_per_unit: int) -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(size=(4, 32)).astype("f4")
    index = generator.integers(0, 2 * pairs_per_unit + 1, (4, 32)).astype("i4")
    theirs = np.zeros((4 // rows_per_unit, 2 * pairs_per_unit + 1))
    np.add.at(theirs, (np.arange(4)[:, None] // rows_per_unit, index), values)
    ours = SumSequences(rows_per_unit, pairs_per_unit)(Tensor(values), Tensor(index)).asnumpy()
    assert_close(ours, theirs[:, :-1], 1e-6)


def test_a_long_sum_is_as_good_as_its_type() -> None:
    values = np.random.default_rng(2).uniform(-8, 0, (2, 2048)).astype("f4")
    ours = SumSequences(1, 1)(Tensor(values), Tensor(np.zeros((2, 2048), np.int32))).asnumpy()[:, 0]
    theirs = values.sum(-1, dtype=np.float64)
    assert (np.abs(ours - theirs) <= np.spacing(-theirs.astype("f4"))).all()


def visible(segments: np.ndarray) -> np.ndarray:
    """i sees j: j <= i, the same pair, and j is prompt or of i's branch; padding sees padding."""
    seen = np.zeros((len(segments), len(segments)), bool)
    for i, mine in enumerate(segments):
        for j, other in enumerate(segments[: i + 1]):
            if mine == 0 or other == 0:
                seen[i, j] = mine == other
            else:
                same_pair = (mine - 1) // 3 == (other - 1) // 3
                seen[i, j] = same_pair and (other - 1) % 3 in (0, (mine - 1) % 3)
    return seen


def test_the_mask() -> None:
    rows = [
        np.repeat([1, 2, 0], [5, 6, 5]),  # padded, a chosen answer
        np.repeat([1, 3, 0], [3, 13, 0]),  # padded, a rejected answer that fills the row
        np.repeat([0, 1, 2], [4, 8, 4]),  # padding on the left
        np.repeat([1, 2, 3, 0], [4, 3, 5, 4]),  # packed: one prompt, both answers
        np.repeat([1, 2, 3, 4, 5, 6, 7, 8, 9, 0], [2, 1, 2, 1, 3, 1, 2, 1, 1, 2]),  # packed: three pairs
        np.zeros(16),  # filler
        *np.random.default_rng(0).integers(0, 10, (10, 16)),
    ]
    segments = np.stack(rows).astype(np.int32)
    forbidden = SegmentMask(16)(Tensor(segments))
    assert (forbidden.shape, forbidden.dtype) == ((16, 1, 16, 16), ms.uint8)
    expected_seen = np.stack([visible(row) for row in segments])
    np.testing.assert_array_equal(forbidden.asnumpy()[:, 0], 1 - expected_seen)
    assert expected_seen.any(-1).all()
