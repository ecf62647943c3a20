"""The README's first command, without the installation: a model is aligned and the verdict says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pipeline_shell import Shell

from mindrlhf.commands.quickstart import LEAST_ACCURACY, SHARE, report
from mindrlhf.runtime.metrics import read_metrics

pytestmark = pytest.mark.slow


def test_quickstart_aligns_a_model(tmp_path: Path) -> None:
    ended = Shell(tmp_path).must("tools/quickstart.py", "--output_path", "out", timeout=1800)
    before, *_, after = [row for row in read_metrics(tmp_path / "out/dpo/metrics.jsonl") if "eval_loss" in row]
    assert after[SHARE] > before[SHARE]
    assert after["eval_rewards/accuracies"] >= LEAST_ACCURACY
    assert f"{after['eval_rewards/margins']:.3f}" in ended.out
    for name in ("answers_before", "answers_after"):
        for line in (tmp_path / "out" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            assert json.loads(line)["answer"] in ended.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    # The verdict is read from the figures: with those of before as those of after it is another.
    row = {**after, SHARE: before[SHARE]}
    assert report(tmp_path / "out", {}) == 0
    metrics = tmp_path / "out/dpo/metrics.jsonl"
    metrics.write_text(metrics.read_text(encoding="utf-8") + json.dumps(row) + "\n", encoding="utf-8")
    assert report(tmp_path / "out", {}) == 1
