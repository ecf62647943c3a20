"""A user's mistake is one sentence and exit code 2; anything else keeps its traceback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mindrlhf.runtime.errors import INTERRUPTED, BadRecord, CorruptCheckpoint, IncompleteCheckpoint, UserError, run


def test_exit_code_of_main_is_passed_on() -> None:
    assert run(len, ["a", "b", "c"]) == 3
    assert run(lambda words: None, []) == 0


@pytest.mark.parametrize("kind", [UserError, BadRecord, CorruptCheckpoint, IncompleteCheckpoint])
def test_user_error_is_a_sentence(kind: type[UserError], capsys: pytest.CaptureFixture[str]) -> None:
    def main(words: Sequence[str]) -> int:
        raise kind("a.jsonl line 3: broken json")

    assert run(main, []) == 2
    assert capsys.readouterr() == ("", "error: a.jsonl line 3: broken json\n")


def test_a_fault_of_ours_is_not_hidden() -> None:
    def main(words: Sequence[str]) -> int:
        raise ValueError("shapes")

    with pytest.raises(ValueError, match="shapes"):
        run(main, [])


def test_words_default_to_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["run_dpo.py", "--config", "x"])
    assert run(len) == 2


def test_what_the_system_refuses_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert run(lambda words: (tmp_path / "file" / "below").mkdir(), []) == UserError.exit_code
    assert capsys.readouterr().err == f"error: {tmp_path / 'file' / 'below'}: Not a directory\n"


def test_an_interrupt_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(words: Sequence[str]) -> int:
        raise KeyboardInterrupt

    assert run(interrupted, []) == INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted\n"
