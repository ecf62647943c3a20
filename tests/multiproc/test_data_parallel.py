"""run_dpo.py through the launcher on one, four and eight workers: the same losses. On two: tests/invariant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mindrlhf.runtime.metrics import read_metrics

pytestmark = pytest.mark.slow

STEPS = 3
SETTINGS = (f"train.steps={STEPS}", "train.global_batch_pairs=8")
FIGURES = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "logits/rejected")


def figures(output: Path) -> np.ndarray:
    """(STEPS, FIGURES)."""
    rows = [row for row in read_metrics(output / "metrics.jsonl") if "loss" in row]
    assert len(rows) == STEPS
    return np.array([[row[name] for name in FIGURES] for row in rows])


@pytest.mark.parametrize("workers", [4, 8])
def test_workers_share_a_batch(workers: int, trained: Callable[..., Path]) -> None:
    one, many = (figures(trained(*SETTINGS, workers=count)) for count in (1, workers))
    difference = np.abs(many - one) / np.maximum(1.0, np.abs(one))
    assert difference[0].max() <= 1e-6
    assert difference.max() <= 1e-4
    # They learn, so that no two steps are the same.
    assert len(np.unique(one[:, 0])) == STEPS
