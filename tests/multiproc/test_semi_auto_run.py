"""A whole DPO run whose matrices two workers share, on CPU: from any checkpoint, saved as slices, taken up, merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
from pipeline_shell import CONFIG, ROOT, TRAINING, Shell

from mindrlhf.checkpoint.find import find_weights
from mindrlhf.checkpoint.store import read_weights
from mindrlhf.parallel.gate import PROVEN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(mindspore.__version__ not in PROVEN, reason="the gate is not proven on this MindSpore"),
]

RUN = (Path(__file__).with_name("semi_auto_run.py")).relative_to(ROOT)
STEPS, SEQ_LEN = 4, 65
SPLIT = "parallel.model_parallel=2"
BEST = ("--eval_dataset", "train.mindrecord", "train.eval_steps=2", "train.metric_for_best_model=rewards/margins")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder with a model, a record with its reference, and `one`, what one process trains."""
    shell = Shell(tmp_path_factory.mktemp("shared"))
    shell.must(
        "tools/make_tiny_model.py", "--family", "qwen2", "--output_path", "model", "--hidden_size", 128, "--layers", 1
    )
    shell.must("tools/make_preference_data.py", "--output_path", "data", "--pairs", 16, "--held_out", 4, "--corpus", 10)
    shell.must(
        *("tools/dpo_preprocess.py", *CONFIG, "--src", "data/train.jsonl", "--dataset_type", "cvalues"),
        *("--dst", "train.mindrecord", "--tokenizer", "model", "--load_checkpoint", "model", "--seq_len", SEQ_LEN),
    )
    train(shell, "one", "model", *BEST, workers=0)
    return shell


def train(shell: Shell, output: str, source: str, *more: str, workers: int = 2) -> None:
    given = ["--train_dataset", "train.mindrecord", "--load_checkpoint", source, f"output_dir={output}"]
    steps = [] if any(word.startswith("train.steps") for word in more) else [f"train.steps={STEPS}"]
    script, split = (RUN, [SPLIT]) if workers else ("run_dpo.py", [])
    ended = shell(script, *CONFIG, *given, *TRAINING, *split, *steps, *more, workers=workers)
    assert ended.code == 0, ended.err or ended.out


def steps(shell: Shell, output: str) -> list[dict[str, Any]]:
    return [row for row in rows(shell, output) if "loss" in row]


def rows(shell: Shell, output: str) -> list[dict[str, Any]]:
    lines = (shell.folder / output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def weights(shell: Shell, folder: str) -> dict[str, np.ndarray]:
    return read_weights(find_weights(shell.folder / folder))


@pytest.fixture(scope="module")
def shared(place: Shell) -> Shell:
    """`two`: the same run, the matrices in two parts."""
    train(place, "two", "model", *BEST)
    return place


def test_the_run_is_that_of_one_process(shared: Shell) -> None:
    ours, theirs = steps(shared, "two"), steps(shared, "one")
    assert len(ours) == len(theirs) == STEPS
    for mine, other in zip(ours, theirs):
        for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "logits/rejected"):
            assert mine[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name
    assert ours[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-4)


def test_each_worker_saves_its_half_and_the_merge_is_the_model(shared: Shell) -> None:
    said = shared.must(
        *("tools/transform_checkpoint.py", "--src_checkpoint=two/checkpoint_network", "--src_strategy=two/strategy"),
        "--dst_checkpoint=merged",
    )
    assert "merged 2 rank(s)" in said.out
    merged, one = weights(shared, "merged"), weights(shared, "one")
    network = shared.folder / "two" / "checkpoint_network"
    halves = [network / f"rank_{rank}" / "checkpoint_0.safetensors" for rank in (0, 1)]
    assert max(half.stat().st_size for half in halves) < sum(array.nbytes for array in one.values())
    assert halves[0].read_bytes() != halves[1].read_bytes()
    assert merged.keys() == one.keys()
    for name, array in one.items():
        # AdamW moves every entry by about the learning rate at each step.
        np.testing.assert_allclose(merged[name], array, rtol=0, atol=0.05 * STEPS * 1e-3, err_msg=name)


def test_evaluations_and_the_best_weights(shared: Shell) -> None:
    """They come from a graph of their own, which leaves the layout of the training alone."""
    ours, theirs = ([row for row in rows(shared, name) if "eval_loss" in row] for name in ("two", "one"))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == [0, 2, 4]
    for mine, other in zip(ours, theirs):
        assert mine["eval_loss"] == pytest.approx(other["eval_loss"], rel=1e-4)
    best = shared.folder / "two" / "best"
    strategies = [folder / "strategy" / "ckpt_strategy_rank_1.ckpt" for folder in (shared.folder / "two", best)]
    assert strategies[0].read_bytes() == strategies[1].read_bytes()
    assert weights(shared, "two/best").keys() == weights(shared, "one").keys()


def test_an_evaluation_alone_leaves_the_strategy_alone(shared: Shell) -> None:
    strategy = shared.folder / "two" / "strategy" / "ckpt_strategy_rank_0.ckpt"
    before = strategy.read_bytes()
    given = ["--run_mode", "eval", "--eval_dataset", "train.mindrecord", "--load_checkpoint", "two", "output_dir=two"]
    more = [*TRAINING, SPLIT, "rlhf.other_reference=accept"]
    ended = shared(RUN, *CONFIG, *given, *more, workers=2)
    assert ended.code == 0, ended.err or ended.out
    assert strategy.read_bytes() == before
    (alone,) = (json.loads(line) for line in (shared.folder / "two" / "eval_metrics.jsonl").read_text().splitlines())
    last = [row for row in rows(shared, "two") if "eval_loss" in row][-1]
    assert alone["eval_loss"] == pytest.approx(last["eval_loss"], rel=1e-6)


def test_a_reference_beside_it_in_slices(shared: Shell) -> None:
    train(shared, "online", "model", "rlhf.reference=online")
    for mine, other in zip(steps(shared, "online"), steps(shared, "two")):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_a_run_cut_in_two_is_the_uninterrupted_one(shared: Shell) -> None:
    train(shared, "halves", "model", "train.steps=2", "train.save_steps=2")
    train(shared, "halves", "model", "train.save_steps=2", "--resume", "True")
    assert [row["loss"] for row in steps(shared, "halves")] == [row["loss"] for row in steps(shared, "two")]
    ours, theirs = weights(shared, "halves"), weights(shared, "two")
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, name)


def test_slices_are_where_a_run_may_start(shared: Shell) -> None:
    """By one process and by two workers; both read what they need of what two workers left."""
    accept = "rlhf.other_reference=accept"
    train(shared, "on_one", "two", accept, "train.steps=1", workers=0)
    train(shared, "on_two", "two", accept, "train.steps=1")
    (one,), (two,) = steps(shared, "on_one"), steps(shared, "on_two")
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    assert one["rewards/margins"] != pytest.approx(0.0, abs=1e-2)
