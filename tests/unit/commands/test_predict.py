"""Questions from words and files, where an answer ends, and what is refused before any work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mindrlhf.commands.predict import predict, read_questions, stop_tokens
from mindrlhf.config.schema import build
from mindrlhf.data.tokenizers import load_tokenizer
from mindrlhf.runtime.errors import UserError
from mindrlhf.trainers.policy import find_source


def test_questions_are_words_or_lines(tmp_path: Path) -> None:
    assert read_questions(["1+1=?", "a.txt"]) == ["1+1=?", "a.txt"]
    (tmp_path / "q.txt").write_text("one\n\ntwo\u2028still two\r\n", encoding="utf-8")
    assert read_questions([str(tmp_path / "q.txt")]) == ["one", "two\u2028still two"]
    (tmp_path / "q.jsonl").write_text('{"prompt": "one"}\n"two"\n', encoding="utf-8")
    assert read_questions([str(tmp_path / "q.jsonl")]) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("q.txt", b"\n \n", "holds no question"),
        ("q.txt", b"\xff\xfe", "not UTF-8 at byte 0"),
        ("q.jsonl", b"one\n", "line 1 is not JSON"),
        ("q.jsonl", b'"one"\n{"question": "two"}\n', 'line 2: there is no question; write .*"prompt"'),
        ("q.jsonl", b'{"prompt": null}\n', "line 1: there is no question"),
    ],
)
def test_what_is_no_question_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_questions([str(tmp_path / name)])
    with pytest.raises(UserError, match="no question"):
        read_questions(None)


def test_an_answer_ends_where_the_model_or_the_tokenizer_says(tiny_folder: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder("qwen2"), tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    source = find_source(build({"model": {"load_checkpoint": str(folder)}}))
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 5]}', encoding="utf-8")
    assert stop_tokens(source, tokenizer) == {3, 5, tokenizer.eos_id}
    (folder / "generation_config.json").unlink()
    assert stop_tokens(source, tokenizer) == {source.hf_config["eos_token_id"], tokenizer.eos_id}
    (folder / "generation_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"generation_config\.json is not JSON"):
        stop_tokens(source, tokenizer)


def test_an_output_that_is_a_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; name a file"):
        predict(build({}), ["one"], str(tmp_path))
