"""Configurations that must give the same trajectory, through the real commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pipeline_shell import Shell

from mindrlhf.runtime.metrics import read_metrics

pytestmark = pytest.mark.slow

FIGURES = (
    *("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen"),
    *("logits/chosen", "logits/rejected"),  # read the head beside the gradients, and must not see its update
)
SAME = {
    "accumulation": (("train.micro_batch_pairs=1",), 0),
    "two workers": ((), 2),
    "two workers, accumulation": (("train.micro_batch_pairs=1",), 2),
}


def steps(output: Path) -> list[dict[str, float]]:
    return [row for row in read_metrics(output / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize("name", SAME)
def test_workers_and_accumulation_change_nothing(name: str, trained: Callable[..., Path]) -> None:
    more, workers = SAME[name]
    one, other = steps(trained()), steps(trained(*more, workers=workers))
    difference = np.array([[(b[key] - a[key]) / max(1.0, abs(a[key])) for key in FIGURES] for a, b in zip(one, other)])
    assert len(one) == len(other) == 8
    assert np.abs(difference[0]).max() <= 1e-6
    assert np.abs(difference).max() <= 1e-4
    # One-sided drift would show in the mean long before it shows in the largest.
    assert abs(difference.mean()) <= 1e-5
    assert [row["num_tokens"] for row in one] == [row["num_tokens"] for row in other]


TIMED = ("step_seconds", "tokens_per_second", "pairs_per_second", "peak_memory_mib")


def untimed(output: Path) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key not in TIMED} for row in steps(output)]


def test_a_resumed_run_is_bit_equal_to_one_that_went_through(shell: Shell, trained: Callable[..., Path]) -> None:
    through = trained("train.save_steps=4", "data.shuffle=true", "optimizer.weight_decay=0.1")
    more = ["train.save_steps=4", "data.shuffle=true", "optimizer.weight_decay=0.1"]
    shell.train("halves", "train.steps=4", *more)
    ended = shell.train("halves", "train.steps=8", "--resume", "True", *more)
    assert "resumed from" in ended.out
    assert "step-4" in ended.out
    assert json.dumps(untimed(shell.folder / "halves")) == json.dumps(untimed(through))
    ranks = [path / "checkpoint_network" / "rank_0" for path in (through, shell.folder / "halves")]
    assert len({tuple(sorted(file.name for file in rank.iterdir())) for rank in ranks}) == 1
    one, other = ((rank / "checkpoint_0.safetensors").read_bytes() for rank in ranks)
    assert one == other
    # The manifests differ in what tells the two saves apart.
    one, other = (json.loads((rank / "manifest.json").read_text(encoding="utf-8")) for rank in ranks)
    assert one.pop("save") != other.pop("save")
    assert one == other


def test_resume_refuses_another_run(shell: Shell, trained: Callable[..., Path]) -> None:
    output = trained("train.save_steps=4", "data.shuffle=true", "optimizer.weight_decay=0.1")
    root = Path(__file__).parents[2]
    ended = shell(
        *(
            "run_dpo.py",
            "--config",
            root / "model_configs" / "dpo" / "default.yaml",
            "--train_dataset",
            "train.mindrecord",
        ),
        *("--load_checkpoint", "model", f"output_dir={output}", "--resume", "True", "train.steps=12"),
        *("train.global_batch_pairs=8", "data.shuffle=true", "optimizer.learning_rate=1.0e-3"),
    )
    assert ended.code == 2
    assert "is of another run" in ended.err
    assert "Traceback" not in ended.err
