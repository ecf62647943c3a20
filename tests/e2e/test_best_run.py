"""Evaluations while training: the best weights, an early end, a kill and its resumption, TensorBoard."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_shell import CONFIG, HELD_OUT, ROOT, TRAINING, Shell

from mindrlhf.checkpoint.store import find_weights, read_weights
from mindrlhf.runtime.metrics import read_metrics

pytestmark = pytest.mark.slow

WORKERS = 2
EVALUATED = ["--eval_dataset", "held_out.mindrecord", "train.metric_for_best_model=eval_rewards/margins"]
TIMED = ("step_seconds", "tokens_per_second", "pairs_per_second", "peak_memory_mib")


def rows(output: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in TIMED}
        for row in read_metrics(output / "metrics.jsonl")
    ]


def scalars(output: Path) -> list[tuple[int, str, float]]:
    """What the one event file of a run holds, without the times."""
    import mindspore  # noqa: F401  (before protobuf, which it configures)
    from tensorboardX.proto.event_pb2 import Event

    (path,) = (output / "tensorboard").iterdir()
    content, place, found = path.read_bytes(), 0, []
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        event = Event.FromString(content[place + 12 : place + 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        place += length + 16
    return [scalar for scalar in found if scalar[1] not in TIMED]


def note(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "best" / "best.json").read_text(encoding="utf-8")))


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = (read_weights(find_weights(path)) for path in (one, other))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


def test_the_best_weights_of_two_workers_are_a_complete_folder(shell: Shell) -> None:
    # Margins rise all the time, but by less than 100: the first evaluation is the last gain, and the newest the best.
    more = ["train.steps=12", "train.eval_steps=2", "train.early_stopping_patience=2"]
    ended = shell.train("best2", *EVALUATED, *more, "train.early_stopping_threshold=100", workers=WORKERS)
    output = shell.folder / "best2"
    assert "stopped after step 6: eval_rewards/margins has not risen by more than 100 in 2" in ended.out
    evaluations = [row for row in rows(output) if "eval_loss" in row]
    assert [row["step"] for row in evaluations] == [0, 2, 4, 6]
    best = max(evaluations[1:], key=lambda row: row["eval_rewards/margins"])
    assert note(output) == {
        "step": best["step"],
        "metric": "eval_rewards/margins",
        "value": best["eval_rewards/margins"],
    }
    for folder in ("checkpoint_network", "strategy"):
        kept, last = ({path.name for path in (place / folder).iterdir()} for place in (output / "best", output))
        assert kept == last
    assert scalars(output) == [
        (row["step"], name, float(np.float32(value)))
        for row in rows(output)
        for name, value in row.items()
        if name != "step"
    ]
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")

    alone = ["--run_mode", "eval", "--eval_dataset", "held_out.mindrecord", "train.global_batch_pairs=4"]
    shell.must("run_dpo.py", *CONFIG, *alone, "--load_checkpoint", "best2/best", "output_dir=best2_eval")
    (found,) = read_metrics(shell.folder / "best2_eval" / "eval_metrics.jsonl")
    assert found["eval_num_pairs"] == HELD_OUT
    assert found["eval_rewards/margins"] == pytest.approx(best["eval_rewards/margins"], rel=1e-4)

    shell.must(
        "tools/transform_checkpoint.py",
        "--src_checkpoint=best2/best/checkpoint_network",
        "--src_strategy=best2/best/strategy",
        "--dst_checkpoint=best2_merged",
    )
    assert_same_weights(output / "best", shell.folder / "best2_merged")
    asked = ["--run_mode", "predict", "--predict_data", "Which way is north?", "--predict_output", "best2.jsonl"]
    for checkpoint in ("best2/best", "best2_merged"):
        words = ["--load_checkpoint", checkpoint, "generation.max_new_tokens=4"]
        shell.must("run_dpo.py", *CONFIG, *asked, *words)


def test_a_killed_run_goes_on_to_the_same_best_and_the_same_end(shell: Shell) -> None:
    # Margins rise, and the lowest is sought: the best and most of the patience are of before the kill.
    stopping = ["train.greater_is_better=false", "train.early_stopping_patience=4"]
    more = [*EVALUATED, *stopping, "train.steps=60", "train.eval_steps=5", "train.save_steps=5"]
    shell.train("whole", *more)
    whole, killed = shell.folder / "whole", shell.folder / "killed"
    given = ["--train_dataset", "train.mindrecord", "--load_checkpoint", "model", "output_dir=killed"]
    words = [*CONFIG, *given, *TRAINING, *more]
    run = subprocess.Popen(
        [sys.executable, str(ROOT / "run_dpo.py"), *words],
        cwd=shell.folder,
        env={"PATH": os.environ["PATH"], "HOME": str(shell.home)},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not (killed / "checkpoint" / "step-10").exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not (killed / "checkpoint_network").exists()
    ended = shell.train("killed", *more, "--resume", "True")
    assert "resumed from killed/checkpoint/step-" in ended.out
    assert "stopped after step 25: eval_rewards/margins has not fallen in 4" in ended.out
    assert note(whole)["step"] == 5
    assert note(killed) == note(whole)
    assert rows(killed) == rows(whole)
    assert scalars(killed) == scalars(whole)
    assert_same_weights(killed, whole)
    assert_same_weights(killed / "best", whole / "best")
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train.metric_for_best_model=loss"], "train.metric_for_best_model needs evaluations; give --eval_dataset"),
        (["train.early_stopping_patience=3"], "train.early_stopping_patience needs evaluations; give --eval_dataset"),
        (
            ["--eval_dataset", "held_out.mindrecord", "train.early_stopping_patience=3"],
            "set train.eval_steps",
        ),
        (
            ["--eval_dataset", "held_out.mindrecord", "train.metric_for_best_model=reward/margin"],
            "evaluations have no figure reward/margin; did you mean rewards/margins?",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(shell: Shell, words: list[str], sentence: str) -> None:
    given = ["--train_dataset", "train.mindrecord", "--load_checkpoint", "model", "output_dir=refused"]
    ended = shell("run_dpo.py", *CONFIG, *given, *TRAINING, *words)
    assert ended.code == 2
    assert sentence in ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
