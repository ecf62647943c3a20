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
    said = "a file stands where a folder is needed; name another place"
    assert capsys.readouterr().err == f"error: {tmp_path / 'file' / 'below'}: {said}\n"
    assert run(lambda words: len((tmp_path / "absent").read_text(encoding="utf-8")), []) == UserError.exit_code
    assert capsys.readouterr().err == f"error: {tmp_path / 'absent'}: No such file or directory\n"


def test_a_sentence_of_several_lines_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    def main(words: Sequence[str]) -> int:
        raise UserError("x.yaml: broken\nhere")

    run(main, [])
    assert capsys.readouterr().err == "error: x.yaml: broken here\n"


def test_a_package_that_is_not_installed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def main(words: Sequence[str]) -> int:
        raise ModuleNotFoundError("No module named 'mindspore'", name=words[0])

    assert run(main, ["mindspore"]) == UserError.exit_code
    assert capsys.readouterr().err.startswith("error: this python has no mindspore; activate the environment")
    with pytest.raises(ModuleNotFoundError):
        run(main, ["mindrlhf.absent"])


def test_an_interrupt_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(words: Sequence[str]) -> int:
        raise KeyboardInterrupt

    assert run(interrupted, []) == INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted\n"
