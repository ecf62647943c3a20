"""The best weights, an early end, and both after a kill."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from counting import CPU, Counting, Killed, config

from mindrlhf.checkpoint import resume
from mindrlhf.config.schema import build
from mindrlhf.runtime.device import Device
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.metrics import read_metrics
from mindrlhf.trainers import loop
from mindrlhf.trainers.best import Best, recover
from mindrlhf.trainers.loop import train

STEPS = 8
LOSSES = [0.5] * STEPS
#          step 0    1    2    3    4    5    6    7    8
MARGINS = [9.0, 0.1, 0.3, 0.2, 0.7, 0.6, 0.5, 0.9, 0.4]
MARGIN = {"metric_for_best_model": "rewards/margins", "eval_steps": 1}


def run(output: Path, margins: list[float] = MARGINS, dies_after: int | None = None, **settings: Any) -> Counting:
    trainer = Counting(LOSSES, margins=margins, dies_after=dies_after)
    train(trainer, config(output, steps=STEPS, **settings), CPU)
    return trainer


def note(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "best" / "best.json").read_text(encoding="utf-8")))


def weight(folder: Path) -> int:
    return int((folder / "checkpoint_network" / "weight").read_text(encoding="utf-8"))


def left(output: Path) -> dict[str, Any]:
    """All that two runs that did the same must have in common."""
    rows = [
        {name: value for name, value in row.items() if name not in ("step_seconds", "peak_memory_mib")}
        for row in read_metrics(output / "metrics.jsonl")
    ]
    for row in rows:
        row.pop("tokens_per_second", None)
        row.pop("pairs_per_second", None)
    return {"rows": rows, "note": note(output), "best": weight(output / "best"), "last": weight(output)}


@pytest.mark.parametrize(
    ("metric", "greater", "step", "value"),
    [
        ("rewards/margins", None, 7, 0.9),
        ("eval_rewards/margins", None, 7, 0.9),
        ("eval_rewards/margins", False, 1, 0.1),
        ("loss", None, 1, 1.0),  # the loss of an evaluation is its step
        ("eval_loss", None, 1, 1.0),
        ("loss", True, 8, 8.0),
    ],
)
def test_the_weights_of_the_best_evaluation_are_kept(
    tmp_path: Path, metric: str, greater: bool | None, step: int, value: float
) -> None:
    """The evaluation before the first step, with the largest margin and the least loss, does not count."""
    run(tmp_path, eval_steps=1, metric_for_best_model=metric, greater_is_better=greater)
    assert note(tmp_path) == {"step": step, "metric": f"eval_{metric.removeprefix('eval_')}", "value": value}
    assert (weight(tmp_path / "best"), weight(tmp_path)) == (step, STEPS)
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["best.json", "checkpoint_network"]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_never_the_best(tmp_path: Path, value: float) -> None:
    run(tmp_path, [0.0, value, value, 0.2, value, 0.1, 0.1, 0.1, 0.1], **MARGIN)
    assert note(tmp_path) == {"step": 3, "metric": "eval_rewards/margins", "value": 0.2}


def test_without_any_number_there_is_no_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, [math.nan] * 9, early_stopping_patience=3, **MARGIN)
    assert not (tmp_path / "best").exists()
    assert "in 3 evaluation(s) in a row; no evaluation gave a finite eval_rewards/margins" in capsys.readouterr().out


def test_a_metric_that_evaluations_lack_is_refused_before_training(tmp_path: Path) -> None:
    trainer = Counting(LOSSES, margins=MARGINS)
    settings = {**MARGIN, "metric_for_best_model": "eval_reward/margin"}
    with pytest.raises(UserError, match=r"no figure reward/margin; did you mean rewards/margins\?"):
        train(trainer, config(tmp_path, steps=STEPS, **settings), CPU)
    assert trainer.weight == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"metric_for_best_model": "loss"}, "train.metric_for_best_model needs evaluations; give --eval_dataset"),
        ({"early_stopping_patience": 2}, "train.early_stopping_patience needs evaluations; give --eval_dataset"),
    ],
)
def test_without_a_data_set_to_evaluate_on_it_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Best.of(build({"train": settings}))


def test_a_patience_that_could_never_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at the end; set train"):
        Best.of(config(tmp_path, early_stopping_patience=2))
    assert Best.of(config(tmp_path, eval_steps=1, early_stopping_threshold=1.0)) is None


@pytest.mark.parametrize(
    ("patience", "threshold", "stops", "best"),
    [(1, 0.0, 3, 2), (2, 0.0, 6, 4), (3, 0.0, 8, 7), (2, 0.25, 3, 2), (3, 0.25, 7, 7), (4, 0.0, 8, 7)],
)
def test_a_run_that_gains_nothing_stops(
    tmp_path: Path, patience: int, threshold: float, stops: int, best: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a threshold of 0.25 steps 2 (+0.2), 3, 5, 6 and 7 (+0.2) gain nothing; what is the best does not change."""
    settings = {"early_stopping_patience": patience, "early_stopping_threshold": threshold, **MARGIN}
    trainer = run(tmp_path, **settings)
    assert (trainer.weight, weight(tmp_path), weight(tmp_path / "best")) == (stops, stops, best)
    assert trainer.evaluated == list(range(stops + 1))
    said = f"stopped after step {stops}: eval_rewards/margins has not risen"
    assert (said in capsys.readouterr().out) == (stops < STEPS)


def test_patience_alone_looks_at_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, eval_steps=2, early_stopping_patience=2).weight == 6
    assert note(tmp_path) == {"step": 2, "metric": "eval_loss", "value": 2.0}
    assert "eval_loss has not fallen in 2 evaluation(s) in a row" in capsys.readouterr().out


@pytest.mark.parametrize("dies_after", range(2, 8))
@pytest.mark.parametrize("patience", [2, 5])
def test_a_killed_and_resumed_run_does_what_a_whole_one_does(tmp_path: Path, dies_after: int, patience: int) -> None:
    """Evaluated at every step and saved at every second one, it has evaluations that no saved step knows."""
    settings = {"early_stopping_patience": patience, "save_steps": 2, **MARGIN}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole, **settings)
    if dies_after < weight(whole):
        with pytest.raises(Killed):
            run(killed, dies_after=dies_after, **settings)
    else:
        run(killed, **settings)
    run(killed, resume=True, **settings)
    assert left(killed) == left(whole)
    one, other = (resume.read_newest(output, 0) for output in (whole, killed))
    assert one is not None
    assert other is not None
    assert one.state == other.state
    np.testing.assert_equal(one.arrays, other.arrays)


def test_a_stopped_run_stays_stopped_and_goes_on_with_more_patience(tmp_path: Path) -> None:
    settings = {"save_steps": 3, **MARGIN}
    assert run(tmp_path, early_stopping_patience=1, **settings).weight == 3
    again = run(tmp_path, early_stopping_patience=1, resume=True, **settings)
    assert (again.weight, again.evaluated) == (3, [])
    assert run(tmp_path, early_stopping_patience=4, resume=True, **settings).weight == STEPS
    assert note(tmp_path)["step"] == 7


def test_another_metric_is_not_taken_up(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, dies_after=4, save_steps=2, **MARGIN)
    settings = {**MARGIN, "metric_for_best_model": "loss"}
    with pytest.raises(
        UserError, match=r"step-4 is of a run with train.metric_for_best_model rewards/margins, .* loss"
    ):
        run(tmp_path, save_steps=2, resume=True, **settings)


def test_a_step_that_knows_no_best_starts_the_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Killed):
        run(tmp_path, dies_after=4, save_steps=2)
    run(tmp_path, [0.0] * 5 + [0.4, 0.5, 0.6, 0.1], save_steps=2, resume=True, **MARGIN)
    assert note(tmp_path) == {"step": 7, "metric": "eval_rewards/margins", "value": 0.6}
    assert "step-4 names no best evaluation" in capsys.readouterr().out


def test_a_step_of_an_earlier_version_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "EVALUATIONS", "no such key")
    with pytest.raises(Killed):
        run(tmp_path, dies_after=4, save_steps=2, **MARGIN)
    monkeypatch.undo()
    run(tmp_path, save_steps=2, resume=True, **MARGIN)
    assert note(tmp_path)["step"] == 7


def test_all_workers_do_what_rank_0_decides() -> None:
    """Their values differ in the last bit, and rank 0's is not the better one."""

    class Shared(Device):
        def all_sum(self, array: np.ndarray) -> np.ndarray:
            sent.append(array)
            return sent[0] if self.rank else array

    sent: list[np.ndarray] = []
    for rank, value in enumerate((0.5, np.nextafter(0.5, 1))):
        best = Best("rewards/margins", True, 1, step=2, value=0.5)
        assert not best.take(4, float(value), Shared("CPU", rank, 2))
        assert best.exhausted
    assert [array.tolist() for array in sent] == [[0, 1], [0, 0]]


def test_what_an_earlier_run_left_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, **MARGIN)
    assert capsys.readouterr().err == ""
    run(tmp_path, [0.0, 0.2] + [0.1] * 7, **MARGIN)
    assert "best is of an earlier run, until the first evaluation" in capsys.readouterr().err
    assert (note(tmp_path)["step"], weight(tmp_path / "best")) == (1, 1)
    run(tmp_path)
    assert capsys.readouterr().err == f"warning: {tmp_path}/best is of an earlier run\n"
    assert weight(tmp_path / "best") == 1


def test_best_weights_that_are_gone_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Killed):
        run(tmp_path, dies_after=6, save_steps=6, **MARGIN)
    shutil.rmtree(tmp_path / "best")
    run(tmp_path, save_steps=6, resume=True, **MARGIN)
    assert "best, the weights of step 4, is not there any more" in capsys.readouterr().err
    assert note(tmp_path)["step"] == 7


def test_killed_at_any_call_it_leaves_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = ("fsync", "replace", "rename", "mkdir", "rmdir", "unlink")
    originals = {name: getattr(os, name) for name in calls}
    remaining = [0]

    def deadly(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            remaining[0] -= 1
            if remaining[0] < 0:
                raise Killed
            return originals[name](*args, **kwargs)

        return call

    absent = found_new = 0
    for survived in range(1000):
        output = tmp_path / str(survived)
        trainer, best = Counting([]), Best("rewards/margins", True, step=2, value=0.3)
        trainer.weight = 2
        best.keep(trainer, output, CPU)
        trainer.weight = best.step = 4
        with monkeypatch.context() as patch:
            for name in calls:
                patch.setattr(os, name, deadly(name))
            remaining[0] = survived
            try:
                best.keep(trainer, output, CPU)
                break
            except Killed:
                pass
        absent += not (output / "best").exists()
        recover(output, None, start=1)
        assert note(output)["step"] == weight(output / "best")
        found_new += weight(output / "best") == 4
        assert [path.name for path in output.iterdir()] == ["best"]
        best.keep(trainer, output, CPU)
        assert note(output)["step"] == weight(output / "best") == 4
    assert survived > 8
    assert (absent, found_new > 0) == (1, True), "absent between the two renames alone"
