"""The distribution a token is drawn from, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mindrlhf.generation.sampling import pick

HALVES = np.log(np.array([[0.125, 0.5, 0.125, 0.25]], np.float32))


class Recorder:
    """Stands for a NumPy generator: keeps the probabilities it was given, and draws the last possible token."""

    def __init__(self) -> None:
        self.given: list[np.ndarray] = []

    def choice(self, size: int, p: np.ndarray) -> int:
        assert size == len(p)
        self.given.append(p)
        return int(np.flatnonzero(p)[-1])


def distribution(logits: np.ndarray, **settings: Any) -> np.ndarray:
    recorder = Recorder()
    pick(logits, recorder, **settings)  # type: ignore[arg-type]
    return np.stack(recorder.given)


def test_greedy_is_the_best() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 30)).astype("f4")
    assert pick(logits).tolist() == logits.argmax(-1).tolist()


def test_without_a_generator_settings_do_nothing() -> None:
    assert pick(HALVES, None, temperature=5.0, top_k=1, top_p=0.1).tolist() == [1]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.125, 0.5, 0.125, 0.25]),
        ({"temperature": 0.5}, [1 / 22, 16 / 22, 1 / 22, 4 / 22]),  # squares: 1, 16, 1, 4
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_k": 4}, [0.125, 0.5, 0.125, 0.25]),
        ({"top_k": 99}, [0.125, 0.5, 0.125, 0.25]),
        # A token stays while those before it do not reach top_p.
        ({"top_p": 1e-6}, [0, 1, 0, 0]),
        ({"top_p": 0.49}, [0, 1, 0, 0]),
        ({"top_p": 0.51}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_p": 0.74}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_p": 0.76}, [1 / 7, 4 / 7, 0, 2 / 7]),
        ({"top_p": 0.9}, [0.125, 0.5, 0.125, 0.25]),
        # top_p sees what top_k has left: of 2/3 and 1/3 the first alone reaches 0.6.
        ({"top_k": 2, "top_p": 0.6}, [0, 1, 0, 0]),
        # and temperature comes before both: 16/22 reaches 0.7.
        ({"temperature": 0.5, "top_p": 0.7}, [0, 1, 0, 0]),
    ],
)
def test_distribution(settings: dict[str, Any], expected: list[float]) -> None:
    np.testing.assert_allclose(distribution(HALVES, **settings), [expected], rtol=1e-6)


def test_equals_of_the_last_of_top_k_stay() -> None:
    logits = np.log(np.array([[0.25, 0.5, 0.125, 0.125]], np.float32))
    np.testing.assert_allclose(distribution(logits, top_k=3), [[0.25, 0.5, 0.125, 0.125]], rtol=1e-6)


def test_each_row_is_cut_by_itself() -> None:
    logits = np.concatenate([HALVES, HALVES[:, ::-1]])
    expected = [[0, 2 / 3, 0, 1 / 3], [1 / 3, 0, 2 / 3, 0]]
    np.testing.assert_allclose(distribution(logits, top_k=2), expected, rtol=1e-6)
    np.testing.assert_allclose(distribution(logits, top_p=0.6), expected, rtol=1e-6)
    assert pick(logits, Recorder(), top_k=2).tolist() == [3, 2]  # type: ignore[arg-type]


def test_huge_logits_are_finite() -> None:
    logits = np.array([[1e30, -1e30, 0.0]], np.float32)
    np.testing.assert_array_equal(distribution(logits, temperature=0.1, top_p=0.9), [[1, 0, 0]])


def test_a_seed_names_the_draws() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 30)).astype("f4")
    same, again, other = (pick(logits, np.random.default_rng(seed)).tolist() for seed in (1, 1, 2))
    assert same == again != other


def test_draws_have_these_frequencies() -> None:
    drawn = pick(np.repeat(HALVES, 20000, axis=0), np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 20000, [0.125, 0.5, 0.125, 0.25], atol=0.01)
