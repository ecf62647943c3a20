"""Which folders the quickstart replaces, and what it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mindrlhf.commands import quickstart
from mindrlhf.commands.quickstart import ROOT, Stage, main
from mindrlhf.runtime.errors import UserError


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stage ends with an error, as one that was interrupted."""
    monkeypatch.setattr(quickstart, "stages", lambda out: [Stage("make a model", ("-c", "raise SystemExit(3)"))])


@pytest.mark.usefixtures("failing")
def test_a_run_stopped_in_its_first_stage_does_not_block_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    out.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(quickstart.subprocess, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(["--output_path", str(out)])
    with pytest.raises(UserError, match="'make a model' ended with exit code 3"):
        main(["--output_path", str(out)])


@pytest.mark.usefixtures("failing")
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(UserError, match="not a former quickstart's"):
        main(["--output_path", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_json_line_may_hold_a_line_separator(tmp_path: Path) -> None:
    row = {"prompt": "one\u2028two"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert quickstart._rows(tmp_path / "x.jsonl") == [row]


@pytest.mark.parametrize(("prefix", "told"), [(ROOT / ".venv", True), (Path("/usr"), False)])
def test_how_to_go_on_is_told_where_the_quickstart_made_the_environment(
    tmp_path: Path, prefix: Path, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = {"eval_loss": 0.5, quickstart.SHARE: 0.5, "eval_rewards/accuracies": 1.0, "eval_rewards/margins": 1.0}
    rows = [{"step": 0, **evaluation}, {"step": 1, "loss": 0.7}, {"step": 1, **evaluation, quickstart.SHARE: 0.9}]
    (tmp_path / "dpo").mkdir()
    (tmp_path / "dpo" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("answers_before.jsonl", "answers_after.jsonl"):
        (tmp_path / name).touch()
    monkeypatch.setattr(quickstart.sys, "prefix", str(prefix))
    assert quickstart.report(tmp_path, {}) == 0
    said = capsys.readouterr().out
    assert (f"to run these commands yourself: source {prefix}/bin/activate" in said) is told
