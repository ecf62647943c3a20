"""The command line of preprocessing, and what becomes of rows, in one process without a reference model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mindrlhf.commands import preprocess
from mindrlhf.data.records import PairRecords
from mindrlhf.data.rejected import rejected_file
from mindrlhf.data.sidecar import verify
from mindrlhf.runtime.errors import UserError

ROWS, BAD = 20, (4, 11)


def row(number: int) -> str:
    return json.dumps({"prompt": f"Question {number}?", "pos_resp": f"Yes, {number}.", "neg_resp": f"No, {number}!"})


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: good.jsonl, and bad.jsonl, where two of the same rows are broken."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny_folder("qwen2"))
    lines = [row(number) for number in range(ROWS)]
    (tmp_path / "good.jsonl").write_text("\n".join(lines))
    (tmp_path / "bad.jsonl").write_text("\n".join("{" if n in BAD else line for n, line in enumerate(lines)))
    return tmp_path


def run(*more: str, src: str = "good.jsonl", without: Sequence[str] = ()) -> int:
    """Preprocess into x.mindrecord; `more` wins."""
    usual = {
        "--src": src,
        "--dst": "x.mindrecord",
        "--dataset_type": "cvalues",
        "--tokenizer": "model",
        "--seq_len": "65",
    }
    words = [part for pair in usual.items() if pair[0] not in (*more, *without) for part in pair]
    return preprocess.main([*words, *more, "rlhf.reference=none"])


@pytest.mark.parametrize("override", ["rlhf.reference=online", "rlhf.reference_free=true", "rlhf.reference=none"])
def test_no_weights_are_needed_where_no_reference_is_to_be_recorded(place: Path, override: str) -> None:
    words = ["--src", "good.jsonl", "--dst", "x.mindrecord", "--dataset_type", "cvalues", "--tokenizer", "model"]
    assert preprocess.main([*words, "--seq_len", "65", override]) == 0
    records = PairRecords(place / "x.mindrecord")
    assert len(records) == ROWS
    assert (records.has_reference, records.provenance["reference"]) == (False, "none")


def test_several_words_with_formats_counts_and_weights(place: Path) -> None:
    renamed = {"question": "Why?", "better": "Because.", "neg_resp": "No."}
    (place / "other.jsonl").write_text(json.dumps(renamed) + "\n")
    words = ["--src", "good.jsonl:cvalues#3@2", "other.jsonl:cvalues", "--map_keys", "prompt=question,pos_resp=better"]
    assert run(*words, "--max_rejected", "1", without=["--dataset_type"]) == 0
    assert [pair.pair_id for pair in PairRecords(place / "x.mindrecord")] == [6]
    rejected = rejected_file("x.mindrecord").read_text().splitlines()
    assert {json.loads(line)["file"] for line in rejected} == {"good.jsonl"}


def test_a_yaml_of_the_data_set_says_what_flags_do_not(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "set.yaml").write_text(
        "input: good.jsonl\noutput_prefix: ./from_yaml\nhandler_name: cvalues\ntokenizer_name_or_path: model\n"
        "seq_length: 64\nworkers: 1\nlog_interval: 5\nprompt_type: empty\n"
    )
    assert preprocess.main(["--data_config", "set.yaml", "--seq_len", "65", "rlhf.reference=none"]) == 0
    records = PairRecords(place / "from_yaml.mindrecord")
    assert records.seq_len == 65
    said = capsys.readouterr().out
    assert [row for row in range(1, 21) if f"row {row}\n" in said] == [5, 10, 15, 20]
    assert run() == 0
    assert records.provenance["template_hash"] != PairRecords(place / "x.mindrecord").provenance["template_hash"]


def test_what_decides_the_ids_stands_in_the_provenance(place: Path) -> None:
    def provenance(*more: str) -> dict[str, object]:
        assert run(*more) == 0
        return dict(verify("x.mindrecord").provenance)

    usual = provenance()
    (place / "map.jsonl").write_text((place / "good.jsonl").read_text())
    for key, more in {
        "dataset_sha256": ["--src", "good.jsonl#19"],
        "seq_len": ["--seq_len", "66"],
        "overlong": ["data.overlong=truncate_end"],
        "template_hash": ["tokenizer.chat_template=empty"],
    }.items():
        other = provenance(*more)
        differing = [name for name in usual if usual[name] != other[name]]
        assert differing == (["template", key] if key == "template_hash" else [key])
    assert provenance("--src", "good.jsonl@2")["dataset_sha256"] != usual["dataset_sha256"]
    assert provenance() == usual


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--workers", "0"], "--workers is 0; give a whole number of processes, 1 or more"),
        (["--log_interval", "0"], "--log_interval is 0; give a whole number of rows, 1 or more"),
        (["--save_interval", "-1"], "--save_interval is -1; give a whole number of batches, 1 or more"),
        (["--dst", "folder.parts"], "--dst is folder.parts; a MindRecord's name ends in .mindrecord"),
        (["--map_keys", "prompt"], "--map_keys: 'prompt' is no field=column; write prompt=question,chosen=better"),
        (
            ["--check_dataset_strategy", "discard", "--max_rejected", "0.1"],
            "--max_rejected and --check_dataset_strategy discard contradict each other; give one",
        ),
        (["--merge", "True", "--src", "a", "b"], "--merge joins the parts of one folder, and --src names 2; give one"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(place: Path, more: list[str], sentence: str) -> None:
    before = sorted(place.iterdir())
    with pytest.raises(UserError) as said:
        run(*more)
    assert str(said.value) == sentence
    assert sorted(place.iterdir()) == before


def test_bad_rows_end_the_command_after_the_record_is_written(place: Path) -> None:
    with pytest.raises(UserError, match=r"2 of 20 rows were rejected .*more than --max_rejected 0.05 allows"):
        run(src="bad.jsonl")
    assert len(PairRecords("x.mindrecord")) == ROWS - len(BAD)


@pytest.mark.parametrize("save_interval", [[], ["--save_interval", "1"]])
@pytest.mark.parametrize("strategy", ["discard", "warning"])
def test_bad_rows_are_dropped_however_many(
    place: Path, strategy: str, save_interval: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    check = ["--check_dataset_strategy", strategy]
    assert run(*check, *save_interval, src="bad.jsonl") == 0
    if save_interval:
        assert preprocess.main(["--merge", "--src", "x.parts", "--dst", "x.mindrecord", *check]) == 0
    assert len(PairRecords("x.mindrecord")) == ROWS - len(BAD)
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    said = "warning: 2 of 20 rows were rejected (broken json 2); the rejected lines are in x.mindrecord.rejected.jsonl"
    assert [line.startswith(said) for line in warned] == [True] * (strategy == "warning")


def test_the_first_bad_row_ends_everything_where_that_is_wanted(place: Path) -> None:
    before = sorted(place.iterdir())
    with pytest.raises(UserError, match=r"^bad.jsonl line 5: it is not JSON.*; mend it, or take it out$"):
        run("--check_dataset_strategy", "error", src="bad.jsonl")
    assert sorted(place.iterdir()) == before
    assert run("--check_dataset_strategy", "error") == 0


def test_a_record_without_any_pair_is_not_written(place: Path) -> None:
    assert run() == 0
    before = verify("x.mindrecord")
    with pytest.raises(UserError, match=r"no row could be used.*: 20 rows in = 0 written \+ 20 overlong \+ 0 rejected"):
        run("--seq_len", "2")
    assert verify("x.mindrecord") == before


def test_what_a_killed_run_left_beside_the_record_is_cleared(place: Path) -> None:
    left = place / ".x.mindrecord.ab12.tmp"
    left.mkdir()
    (left / "x.mindrecord").write_bytes(b"half")
    (place / ".y.mindrecord.ab12.tmp").mkdir()
    assert run() == 0
    assert [path.name for path in place.iterdir() if path.name.startswith(".")] == [".y.mindrecord.ab12.tmp"]
