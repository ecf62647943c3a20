from __future__ import annotations

from pathlib import Path

import pytest

from mindrlhf.data.data_config import HANDLERS, WITHOUT_EFFECT, DataConfig, read_data_config
from mindrlhf.data.formats import DATASET_TYPES
from mindrlhf.runtime.errors import UserError

PAIRWISE = """
input: ./orca_rlhf.jsonl
tokenizer_type: HuggingFaceTokenizer
tokenizer_name_or_path: ./Qwen3-30B-A3B
output_prefix: ./out/orca
workers: 8
prompt_type: qwen3
log_interval: 1000
handler_name: AlpacaStylePairwiseHandler
seq_length: 4096
map_keys: {"prompt": "question", "query": "", "system": "system"}
"""


def read(folder: Path, text: str) -> DataConfig:
    (folder / "d.yaml").write_text(text, encoding="utf-8")
    return read_data_config(folder / "d.yaml")


def test_their_words_in_ours(tmp_path: Path) -> None:
    assert read(tmp_path, PAIRWISE) == DataConfig(
        src=("./orca_rlhf.jsonl",),
        dst="./out/orca.mindrecord",
        dataset_type="alpaca",
        map_keys={"prompt": "question", "query": "", "system": "system"},
        tokenizer="./Qwen3-30B-A3B",
        chat_template="qwen3",
        seq_len=4096,
        workers=8,
        log_interval=1000,
    )


def test_little_may_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read(tmp_path, "input: [a.jsonl, b.jsonl@2]") == DataConfig(src=("a.jsonl", "b.jsonl@2"))
    assert read(tmp_path, "input: a.jsonl, b.jsonl\nseq_length: null").src == ("a.jsonl", "b.jsonl")
    (tmp_path / "a, b.jsonl").touch()
    assert read(tmp_path, f"input: {tmp_path}/a, b.jsonl").src == (f"{tmp_path}/a, b.jsonl",)
    assert read(tmp_path, "vocab_file: v.json\nmerge_file: m.txt") == DataConfig(
        tokenizer="v.json", merges_file="m.txt"
    )
    assert read(tmp_path, "output_prefix: x.mindrecord\nprompt_type: Yi") == DataConfig(
        dst="x.mindrecord", chat_template="chatml"
    )
    assert read(tmp_path, "prompt_type: auto").chat_template == "auto"
    assert read(tmp_path, "prompt_type: my.jinja").chat_template == "my.jinja"
    assert capsys.readouterr() == ("", "")


def test_words_without_effect_get_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(tmp_path, "input: a\n" + "".join(f"{word}: 1\n" for word in WITHOUT_EFFECT))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in WITHOUT_EFFECT)


def test_every_dataset_type_is_a_handler() -> None:
    assert set(DATASET_TYPES) == set(HANDLERS.values())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no mapping"),
        ("- a", "is no mapping"),
        ("inputs: a", "inputs is not a key; did you mean input"),
        ("output: {a: b}", "output is not a key"),
        ("seq_len: 4", "did you mean seq_length"),
        ("input: 3", "input is 3; give a path"),
        ("input: []", "input is"),
        ("input: [a, '']", "input is"),
        ("workers: 0", "workers is 0; give a whole number >= 1"),
        ("workers: true", "workers is true"),
        ("seq_length: 1", "seq_length is 1; give a whole number >= 2"),
        ("log_interval: often", "log_interval is 'often'"),
        ("tokenizer_type: GPTSentencePieceTokenizer", "is not one of HuggingFaceTokenizer, PretrainedFromHF"),
        ("tokenizer_name_or_path: ''", "give a path"),
        ("tokenizer_name_or_path: a\nvocab_file: b", "are one thing here; keep one"),
        ("handler_name: AlpacaStyleInstructionHandler", "makes no pairs here; give one of AlpacaStylePairwiseHandler"),
        ("prompt_type: qwem", "prompt_type: 'qwem' is no chat template; give one of auto, chatml"),
        ("map_keys: prompt", "map_keys is no mapping"),
        ("map_keys: {prompt: 3}", "prompt: 3 is no name"),
        ("interleave_probs: 0.5,0.5", "write weights behind the files"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "d.yaml") in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_data_config(tmp_path / "absent.yaml")
