"""The loop on a trainer that only counts: rows, evaluation, checkpoints, resume."""

from __future__ import annotations

from pathlib import Path

import pytest
from counting import CPU, Counting, config

from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.metrics import read_metrics
from mindrlhf.trainers.loop import train


def test_rows_stand_where_they_should(tmp_path: Path) -> None:
    trainer = Counting([0.5, 0.4, 0.3, 0.2, 0.1])
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
    assert trainer.saved == [tmp_path]
    assert (tmp_path / "curves.png").is_file()
    assert not (tmp_path / "best").exists()


def test_a_run_is_taken_up_where_it_was_saved(tmp_path: Path) -> None:
    train(Counting([0.5, 0.4]), config(tmp_path, steps=2, save_steps=2), CPU)
    resumed = Counting([0.5, 0.4, 0.3])
    train(resumed, config(tmp_path, steps=3, save_steps=2, resume=True), CPU)
    assert (resumed.weight, resumed.tokens_seen) == (3, 30)
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row] == [0.5, 0.4, 0.3]


def test_a_run_that_died_before_its_weights_writes_them(tmp_path: Path) -> None:
    train(Counting([0.5, 0.4]), config(tmp_path, steps=2, save_steps=2), CPU)
    resumed = Counting([])
    train(resumed, config(tmp_path, steps=2, save_steps=2, resume=True), CPU)
    assert (resumed.weight, resumed.saved, resumed.evaluated) == (2, [tmp_path], [])


def test_no_step_is_evaluated_twice(tmp_path: Path) -> None:
    whole = Counting([0.5, 0.4, 0.3, 0.2])
    train(whole, config(tmp_path / "whole", steps=4, eval_steps=2), CPU)
    assert whole.evaluated == [0, 2, 4]
    settings = {"eval_steps": 2, "save_steps": 2}
    train(Counting([0.5, 0.4]), config(tmp_path, steps=2, **settings), CPU)
    resumed = Counting([0.5, 0.4, 0.3, 0.2])
    train(resumed, config(tmp_path, steps=4, resume=True, **settings), CPU)
    assert resumed.evaluated == [4]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, 2, 4]


def test_what_cannot_be_resumed_is_refused(tmp_path: Path) -> None:
    train(Counting([0.5, 0.4]), config(tmp_path, steps=2, save_steps=2), CPU)
    with pytest.raises(UserError, match="another run: seed was 0 and is now 1"):
        train(Counting([], seed=1), config(tmp_path, steps=3, resume=True), CPU)
    with pytest.raises(UserError, match="step-2 is beyond step 1"):
        train(Counting([]), config(tmp_path, steps=1, resume=True), CPU)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss is nan at step 2; lower optimizer.learning_rate .* start anew"):
        train(Counting([0.5, float("nan")]), config(tmp_path, steps=2), CPU)
