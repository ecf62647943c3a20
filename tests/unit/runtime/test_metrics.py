"""metrics.jsonl: what is written, what a resumed run keeps, and lines that are none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.metrics import MetricsWriter, read_metrics


def write(path: Path, steps: range, resumed_step: int = 0) -> None:
    writer = MetricsWriter(path, resumed_step)
    for step in steps:
        writer.write({"step": step, "loss": step / 3})


def steps_in(path: Path) -> list[int]:
    return [row["step"] for row in read_metrics(path)]


def test_numbers_are_not_rounded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    row = {"step": 1, "loss": 0.1 + 0.2, "rewards/margins": -1e-17, "num_pairs": 3}
    MetricsWriter(path).write(row)
    assert read_metrics(path) == [row]
    assert path.read_text(encoding="utf-8").count("\n") == 1


def test_one_row_a_line_in_the_order_of_writing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 6))
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5] == steps_in(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsWriter(path).write({"step": 1, "loss": value})
    assert path.read_text(encoding="utf-8") == '{"step": 1, "loss": null}\n'


def test_a_run_that_starts_anew_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 6))
    write(path, range(1, 3))
    assert steps_in(path) == [1, 2]
    MetricsWriter(path)
    assert read_metrics(path) == []


def test_a_resumed_run_drops_what_is_beyond_its_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 8))
    write(path, range(5, 7), resumed_step=4)
    assert steps_in(path) == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in read_metrics(path)] == [step / 3 for step in range(1, 7)]


def test_evaluation_rows_up_to_the_step_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    for row in ({"step": 0, "eval_loss": 0.7}, {"step": 1, "loss": 0.6}, {"step": 2, "eval_loss": 0.5}):
        writer.write(row)
    MetricsWriter(path, resumed_step=1)
    assert read_metrics(path) == [{"step": 0, "eval_loss": 0.7}, {"step": 1, "loss": 0.6}]


@pytest.mark.parametrize("rest", ['{"step": 5, "lo', '{"step": 5, "loss": 0.25', "{"])
def test_a_row_cut_off_by_a_dead_run_is_dropped(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 5))
    with path.open("a", encoding="utf-8") as file:
        file.write(rest)
    write(path, range(5, 6), resumed_step=4)
    assert steps_in(path) == [1, 2, 3, 4, 5]


def test_resuming_without_a_file_starts_one(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", range(3, 5), resumed_step=2)
    assert steps_in(tmp_path / "metrics.jsonl") == [3, 4]


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nTraceback\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is not a row of metrics"):
        read_metrics(path)
