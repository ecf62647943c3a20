"""The three files of the synthetic preference set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mindrlhf.commands.make_pairs import main
from mindrlhf.data.synthetic import preference_rows
from mindrlhf.runtime.errors import run


def test_the_files_hold_the_rows_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    words = ["--output_path", str(folder), "--pairs", "5", "--held_out", "3", "--corpus", "4", "--seed", "9"]
    assert run(main, words) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["corpus.jsonl", "held_out.jsonl", "train.jsonl"]
    for split, count in (("corpus", 4), ("train", 5), ("held_out", 3)):
        lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == list(preference_rows(count, 9, split))


def test_chinese_stays_readable_in_the_file(tmp_path: Path) -> None:
    assert run(main, ["--output_path", str(tmp_path), "--pairs", "40"]) == 0
    assert "？" in (tmp_path / "train.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(("flag", "split"), [("--pairs", "train"), ("--held_out", "held_out"), ("--corpus", "corpus")])
def test_no_rows_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, split: str) -> None:
    assert run(main, ["--output_path", str(tmp_path), flag, "0"]) == 2
    assert f"{split}.jsonl would have 0 rows" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").write_text("", encoding="utf-8")
    assert run(main, ["--output_path", str(tmp_path / "data")]) == 2
    assert "is a file: name a folder" in capsys.readouterr().err
