"""Every registered family from a preference file to an answer, with its tiny yaml and the real commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pipeline_shell import ROOT, Shell

from mindrlhf.checkpoint.store import find_weights, read_weights
from mindrlhf.models import families
from mindrlhf.runtime.metrics import read_metrics

pytestmark = pytest.mark.slow

PAIRS, HELD_OUT, SEQ_LEN, STEPS, NEW_TOKENS = 12, 2, 129, 3, 3
ONE_LAYER = "model.config.num_hidden_layers=1"
QUESTIONS = ["1+1=?", "今天天气怎么样？"]


@pytest.mark.parametrize("family", sorted(families()))
def test_whole_path_of_a_family(family: str, tmp_path: Path) -> None:
    (tmp_path / family).mkdir()
    shell = Shell(tmp_path / family)
    tiny = ROOT / "model_configs" / "tiny" / f"{family}.yaml"
    assert tiny.is_file(), f"the family {family} has no {tiny.relative_to(ROOT)}"
    config = ["--config", tiny]

    shell.must("tools/make_tiny_model.py", "--family", family, "--output_path", "model", "--layers", 1)
    counts = ["--pairs", PAIRS, "--held_out", HELD_OUT, "--corpus", 1]
    shell.must("tools/make_preference_data.py", "--output_path", "data", *counts)
    prepared = shell.must(
        *("tools/dpo_preprocess.py", *config, "--src", "data/train.jsonl", "--dst", "train.mindrecord"),
        *("--dataset_type", "cvalues", "--tokenizer", "model", "--load_checkpoint", "model", "--seq_len", SEQ_LEN),
        ONE_LAYER,
    )
    assert f"{PAIRS} rows in = {PAIRS} written" in prepared.out

    shell.must(
        *("run_dpo.py", *config, "--train_dataset", "train.mindrecord", "--load_checkpoint", "model", ONE_LAYER),
        *("output_dir=out", f"train.steps={STEPS}", "train.global_batch_pairs=4", "optimizer.learning_rate=1.0e-3"),
    )
    rows = read_metrics(shell.folder / "out" / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    # Policy and reference are the same weights before the first update, and not after it.
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6)
    assert len(losses) == STEPS
    assert abs(losses[-1] - np.log(2)) > 1e-4

    shell.must(
        "tools/transform_checkpoint.py",
        *("--src_checkpoint=out/checkpoint_network", "--src_strategy=out/strategy", "--dst_checkpoint=merged"),
    )
    trained, merged = (read_weights(find_weights(shell.folder / name)) for name in ("out", "merged"))
    assert trained.keys() == merged.keys()
    assert all(np.array_equal(trained[name], merged[name]) for name in trained)

    (shell.folder / "questions.txt").write_text("\n".join(QUESTIONS), encoding="utf-8")
    shell.must(
        *("run_dpo.py", *config, "--run_mode", "predict", "--load_checkpoint", "merged", ONE_LAYER),
        *("--predict_data", "questions.txt", "--predict_output", "answers.jsonl"),
        f"generation.max_new_tokens={NEW_TOKENS}",
    )
    answers = [json.loads(line) for line in (shell.folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [answer["prompt"] for answer in answers] == QUESTIONS
    assert all(0 < len(answer["answer_ids"]) <= NEW_TOKENS for answer in answers)
