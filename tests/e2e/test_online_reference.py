"""A reference computed while training goes on, one that follows the policy, and a row of figures per evaluated pair."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_shell import CONFIG, HELD_OUT, SEQ_LEN, Shell

pytestmark = pytest.mark.slow

ONLINE = "rlhf.reference=online"
FOLLOWING = [ONLINE, "rlhf.sync_ref_model=true", "rlhf.ref_model_sync_steps=3", "train.save_steps=4"]


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def steps(output: Path) -> list[dict[str, Any]]:
    return [row for row in rows(output / "metrics.jsonl") if "loss" in row]


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], bound: float) -> None:
    assert len(ours) == len(theirs) > 1
    for mine, other in zip(ours, theirs):
        for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
            assert mine[name] == pytest.approx(other[name], rel=bound, abs=1e-6), name


@pytest.mark.parametrize("workers", [0, 2])
def test_online_trains_as_the_record_does(trained: Callable[..., Path], workers: int) -> None:
    assert_same(steps(trained(ONLINE, workers=workers)), steps(trained()), 1e-4)


def test_online_needs_no_reference_in_the_record(shell: Shell, trained: Callable[..., Path]) -> None:
    files = ["--src", "data/train.jsonl", "--dst", "bare.mindrecord", "--dataset_type", "cvalues"]
    text = ["--tokenizer", "model", "--seq_len", SEQ_LEN]
    shell.must("tools/dpo_preprocess.py", *CONFIG, *files, *text, ONLINE)
    shell.train("from_bare", "train.steps=8", "data.train=bare.mindrecord", ONLINE)
    assert_same(steps(shell.folder / "from_bare"), steps(trained(ONLINE)), 1e-6)


def test_a_following_reference_moves_and_is_resumed(shell: Shell, trained: Callable[..., Path]) -> None:
    """Rewards fall when the reference catches up; a run cut in two is the uninterrupted one, bit for bit."""
    following, fixed = steps(trained(*FOLLOWING)), steps(trained(ONLINE))
    assert_same(following[:3], fixed[:3], 1e-6)
    assert abs(following[3]["rewards/chosen"]) < abs(fixed[3]["rewards/chosen"])
    shell.train("following_halves", "train.steps=4", *FOLLOWING)
    shell.train("following_halves", "train.steps=8", *FOLLOWING, "--resume", "True")
    for mine, whole in zip(steps(shell.folder / "following_halves"), following):
        assert (mine["loss"], mine["grad_norm"]) == (whole["loss"], whole["grad_norm"])


def test_every_pair_has_a_row(shell: Shell, trained: Callable[..., Path]) -> None:
    weights = ["--load_checkpoint", trained(), "--eval_dataset", "held_out.mindrecord", "--run_mode", "eval"]
    found = {}
    for name, workers in (("one", 0), ("two", 2)):
        given = [*weights, f"output_dir={name}", "train.global_batch_pairs=6"]
        shell.must("run_dpo.py", *CONFIG, *given, workers=workers)
        found[name] = rows(shell.folder / name / "eval.jsonl")
    assert [row["pair_id"] for row in found["one"]] == list(range(HELD_OUT))
    for mine, other in zip(found["one"], found["two"]):
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-6)
    (figures,) = rows(shell.folder / "one" / "eval_metrics.jsonl")
    for name in ("loss", "rewards/margins", "rewards/accuracies", "logps/rejected"):
        mean = sum(row[name] for row in found["one"]) / HELD_OUT
        assert figures[f"eval_{name}"] == pytest.approx(mean, rel=1e-5, abs=1e-6), name
    online = [*weights, ONLINE, "output_dir=online"]
    refused = shell("run_dpo.py", *CONFIG, *online)
    assert refused.code == 2
    assert "rlhf.reference_checkpoint" in refused.err
    shell.must("run_dpo.py", *CONFIG, *online, "rlhf.reference_checkpoint=model")
    for mine, other in zip(rows(shell.folder / "online" / "eval.jsonl"), found["one"]):
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-5)
