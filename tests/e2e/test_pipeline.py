"""From a preference file to an answering model on one card, through the real commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pipeline_shell import HELD_OUT, PAIRS, Shell

from mindrlhf.checkpoint.store import find_weights, read_weights
from mindrlhf.data.records import PairRecords
from mindrlhf.runtime.metrics import read_metrics

pytestmark = pytest.mark.slow

WORKERS = 2
REFERENCES = ("ref_chosen_logps", "ref_rejected_logps", "ref_chosen_shared_logps", "ref_rejected_shared_logps")


def test_two_workers_and_a_merge_prepare_what_one_process_prepares(shell: Shell) -> None:
    dst = ["--dst", "two.mindrecord"]
    assert shell.preprocess("train", *dst, "--save_interval", 2, workers=WORKERS).code == 0
    parts = shell.folder / "two.parts"
    assert len(list(parts.glob("part-*.mindrecord"))) >= 2 * WORKERS
    merged = shell.must("tools/dpo_preprocess.py", "--merge", "True", "--src", "two.parts", *dst)
    assert f"{PAIRS} rows in = {PAIRS} written + 0 overlong + 0 rejected" in merged.out
    one, two, unmerged = (
        PairRecords(shell.folder / name) for name in ("train.mindrecord", "two.mindrecord", "two.parts")
    )
    assert len(one) == len(two) == len(unmerged) == PAIRS
    for a, b, c in zip(one, two, unmerged):
        for field in ("prompt_ids", "chosen_ids", "rejected_ids"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
            np.testing.assert_array_equal(getattr(a, field), getattr(c, field))
        for field in REFERENCES:
            assert getattr(b, field) == getattr(c, field)
            assert abs(getattr(a, field) - getattr(b, field)) <= 1e-5 * abs(getattr(a, field)) + 1e-3


def test_what_two_workers_trained_runs_on_one_card(shell: Shell, trained: Callable[..., Path]) -> None:
    output = trained("--eval_dataset", "held_out.mindrecord", workers=WORKERS)
    rows = read_metrics(output / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
    first = next(row for row in rows if "loss" in row)
    # Policy and reference are the same weights before the first update.
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, 8]
    assert all(row["eval_num_pairs"] == HELD_OUT for row in rows if "eval_loss" in row)
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")

    shell.must(
        "tools/transform_checkpoint.py",
        f"--src_checkpoint={output}/checkpoint_network",
        f"--src_strategy={output}/strategy",
        "--dst_checkpoint=merged",
    )
    trained_arrays, merged_arrays = (read_weights(find_weights(path)) for path in (output, shell.folder / "merged"))
    assert trained_arrays.keys() == merged_arrays.keys()
    for name, array in trained_arrays.items():
        np.testing.assert_array_equal(array, merged_arrays[name])

    config = ["--config", Path(__file__).parents[2] / "model_configs" / "dpo" / "default.yaml"]
    evaluated = shell.must(
        *("run_dpo.py", *config, "--run_mode", "eval", "--load_checkpoint", "merged"),
        *("--eval_dataset", "held_out.mindrecord", "output_dir=evaluated", "train.global_batch_pairs=4"),
    )
    assert "eval_rewards/accuracies" in evaluated.out
    (alone,) = read_metrics(shell.folder / "evaluated" / "eval_metrics.jsonl")
    for name in ("eval_loss", "eval_rewards/margins", "eval_logps/chosen"):
        assert alone[name] == pytest.approx(rows[-1][name], rel=1e-5)

    questions = ["1+1=?", "Which way is north?"]
    (shell.folder / "questions.txt").write_text("\n".join(questions), encoding="utf-8")
    shell.must(
        *("run_dpo.py", *config, "--run_mode", "predict", "--load_checkpoint", "merged"),
        *("--predict_data", "questions.txt", "--predict_output", "answers.jsonl", "generation.max_new_tokens=4"),
    )
    answers = [json.loads(line) for line in (shell.folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [answer["prompt"] for answer in answers] == questions
    assert all(len(answer["answer_ids"]) <= 4 for answer in answers)


def test_parts_are_read_where_the_merged_record_is_absent(shell: Shell) -> None:
    given = [
        "--train_dataset",
        "parted.mindrecord",
        "--load_checkpoint",
        "model",
        "output_dir=from_parts",
        "train.steps=1",
    ]
    config = Path(__file__).parents[2] / "model_configs" / "dpo" / "default.yaml"
    assert shell.preprocess("train", "--dst", "parted.mindrecord", "--save_interval", 4).code == 0
    ended = shell.must("run_dpo.py", "--config", config, *given)
    assert "parted.parts" in ended.out
