"""The loop on a trainer that only counts: rows, evaluation, checkpoints, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindrlhf.config.schema import Config, build
from mindrlhf.runtime.device import Device
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.metrics import read_metrics
from mindrlhf.trainers.loop import train

CPU = Device("CPU")
FIGURES = {"rewards/accuracies": 0.5, "rewards/margins": 0.0, "num_pairs": 4, "grad_norm": 1.0}


class Counting:
    """Its weight is the number of updates; its loss is a list's."""

    steps_per_epoch = 2

    def __init__(self, output: Path, losses: list[float], seed: int = 0) -> None:
        self.output, self.losses, self.seed = output, losses, seed
        self.weight, self.tokens_seen, self.saved = 0, 0, 0

    def train_step(self, step: int) -> dict[str, float]:
        assert step == self.weight
        self.weight += 1
        self.tokens_seen += 10
        return {"loss": self.losses[step], **FIGURES}

    def evaluate(self) -> dict[str, float]:
        return {"loss": float(self.weight), **FIGURES}

    def state(self) -> dict[str, np.ndarray]:
        return {"weight": np.array([self.weight, self.tokens_seen])}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.weight, self.tokens_seen = arrays["weight"].tolist()

    def save(self) -> Path:
        self.saved += 1
        return self.output

    def identity(self) -> dict[str, Any]:
        return {"seed": self.seed}


def config(output: Path, **settings: Any) -> Config:
    return build({"output_dir": str(output), "train": settings})


def test_rows_stand_where_they_should(tmp_path: Path) -> None:
    trainer = Counting(tmp_path, [0.5, 0.4, 0.3, 0.2, 0.1])
    train(trainer, config(tmp_path, steps=5, logging_steps=2, eval_steps=2, save_steps=2), CPU)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row.get("loss"), row.get("eval_loss")) for row in rows] == [
        (0, None, 0.0),
        (2, 0.4, None),
        (2, None, 2.0),
        (4, 0.2, None),
        (4, None, 4.0),
        (5, 0.1, None),
        (5, None, 5.0),
    ]
    assert [row["num_tokens"] for row in rows if "loss" in row] == [20, 40, 50]
    assert [row["epoch"] for row in rows if "loss" in row] == [1.0, 2.0, 2.5]
    # Two are kept: the newest, which is the end of the run, and the one before.
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == ["step-4", "step-5"]
    assert trainer.saved == 1
    assert (tmp_path / "curves.png").is_file()


def test_a_run_is_taken_up_where_it_was_saved(tmp_path: Path) -> None:
    train(Counting(tmp_path, [0.5, 0.4]), config(tmp_path, steps=2, save_steps=2), CPU)
    resumed = Counting(tmp_path, [0.5, 0.4, 0.3])
    train(resumed, config(tmp_path, steps=3, save_steps=2, resume=True), CPU)
    assert (resumed.weight, resumed.tokens_seen) == (3, 30)
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row] == [0.5, 0.4, 0.3]


def test_a_run_that_died_before_its_weights_writes_them(tmp_path: Path) -> None:
    train(Counting(tmp_path, [0.5, 0.4]), config(tmp_path, steps=2, save_steps=2), CPU)
    resumed = Counting(tmp_path, [])
    train(resumed, config(tmp_path, steps=2, save_steps=2, resume=True), CPU)
    assert (resumed.weight, resumed.saved) == (2, 1)


def test_what_cannot_be_resumed_is_refused(tmp_path: Path) -> None:
    train(Counting(tmp_path, [0.5, 0.4]), config(tmp_path, steps=2, save_steps=2), CPU)
    with pytest.raises(UserError, match="another run: seed was 0 and is now 1"):
        train(Counting(tmp_path, [], seed=1), config(tmp_path, steps=3, resume=True), CPU)
    with pytest.raises(UserError, match="step-2 is beyond step 1"):
        train(Counting(tmp_path, []), config(tmp_path, steps=1, resume=True), CPU)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss is nan at step 2; lower optimizer.learning_rate .* start anew"):
        train(Counting(tmp_path, [0.5, float("nan")]), config(tmp_path, steps=2), CPU)
