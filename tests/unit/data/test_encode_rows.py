from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from handed_over import sent

from mindrlhf.data.encode_rows import (
    BYTES_PER_TASK,
    ROWS_PER_TASK,
    TASKS_AHEAD,
    Outcome,
    RowEncoder,
    encode_rows,
    tasks,
)
from mindrlhf.data.formats import Rejected
from mindrlhf.data.preference import EncodedPair, encode_pair, fit
from mindrlhf.data.row_file import RawRow
from mindrlhf.data.sources import Preference, Source
from mindrlhf.runtime.errors import UserError

SEQ_LEN = 40
# Says which heavy modules a process that tokenizes has loaded after its first row.
CHILD = """
import sys
from mindrlhf.data.encode_rows import RowEncoder
from mindrlhf.data.sources import Source
encoder = RowEncoder(Source([sys.argv[1]], "cvalues"), sys.argv[2], None, "auto", 40, "drop")
assert type(encoder.encode(next(encoder.source.raw(1)))).__name__ == "EncodedPair"
print(*(name for name in ("mindspore", "mindformers", "torch", "matplotlib") if name in sys.modules))
"""


def row(number: int) -> dict[str, str]:
    answer = "the model answers " + "in a few words " * (number % 7)
    return {"prompt": f"question {number}", "pos_resp": answer + "yes", "neg_resp": answer + "no"}


@pytest.fixture
def encoder(tmp_path: Path, tokenizer_folder: Path) -> RowEncoder:
    """400 rows: every 50th is broken, some are overlong."""
    lines = [json.dumps(row(number)) if number % 50 else "{" for number in range(400)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    source = Source([str(tmp_path / "in.jsonl")], "cvalues")
    return RowEncoder(source, str(tokenizer_folder), None, "auto", SEQ_LEN, "drop")


def comparable(outcome: Outcome) -> object:
    if isinstance(outcome, EncodedPair):
        return [ids.tolist() for ids in (outcome.prompt_ids, outcome.chosen_ids, outcome.rejected_ids)]
    return outcome


def test_a_row_becomes_what_reading_encoding_and_fitting_make_of_it(encoder: RowEncoder) -> None:
    made = list(encode_rows(encoder, encoder.source.raw(), 1))
    assert len(made) == 400
    kinds = {type(each) for each in made}
    assert kinds == {EncodedPair, Rejected, type(None)}
    for outcome, read in zip(made, encoder.source.read()):
        encoded = isinstance(read, Preference) and fit(encode_pair(encoder.tokenizer, read), SEQ_LEN, "drop")
        assert comparable(outcome) == (read if isinstance(read, Rejected) else comparable(encoded or None))


def test_what_the_template_refuses_is_rejected_with_its_file(tmp_path: Path, tokenizer_folder: Path) -> None:
    for name in "ab":
        fields = {"prompt": "x", "chosen": "yes", "rejected": "yes<|im_end|>"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(fields) + "\n")
    source = Source([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], "messages")
    encoder = RowEncoder(source, str(tokenizer_folder), None, "auto", SEQ_LEN, "drop")
    outcomes = list(encode_rows(encoder, source.raw(), 1))
    assert [type(each) for each in outcomes] == [Rejected, Rejected]
    (first, second) = (each for each in outcomes if isinstance(each, Rejected))
    assert (first.reason, first.line, first.file) == ("identical responses", 1, str(tmp_path / "a.jsonl"))
    assert second.file == str(tmp_path / "b.jsonl")


def test_a_row_that_cannot_fit_is_not_tokenized(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = {"prompt": "x", "pos_resp": "y " * 1_000_000, "neg_resp": "z"}
    (tmp_path / "in.jsonl").write_text(json.dumps(long) + "\n" + json.dumps(row(1)))
    source = Source([str(tmp_path / "in.jsonl")], "cvalues")
    encoder = RowEncoder(source, str(tokenizer_folder), None, "auto", SEQ_LEN, "drop")
    seen = []

    def encode(tokenizer: object, preference: Preference) -> EncodedPair:
        seen.append(preference.line)
        return encode_pair(encoder.tokenizer, preference)

    monkeypatch.setattr("mindrlhf.data.encode_rows.encode_pair", encode)
    overlong, pair = encode_rows(encoder, source.raw(), 1)
    assert overlong is None
    assert isinstance(pair, EncodedPair)
    assert seen == [2]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_make_the_same_in_the_same_order(encoder: RowEncoder, processes: int) -> None:
    alone = list(encode_rows(encoder, encoder.source.raw(), 1))
    together = list(encode_rows(encoder, encoder.source.raw(), processes))
    assert list(map(comparable, together)) == list(map(comparable, alone))
    pair = next(each for each in together if isinstance(each, EncodedPair))
    assert pair.prompt_ids.dtype == np.int32


@pytest.mark.slow
def test_reading_runs_ahead_by_a_few_tasks_and_no_more(encoder: RowEncoder) -> None:
    taken = 0

    def rows() -> Iterator[RawRow]:
        nonlocal taken
        while True:
            for raw in encoder.source.raw():
                taken += 1
                yield raw

    outcomes = encode_rows(encoder, rows(), 2)
    for _ in range(10 * ROWS_PER_TASK):
        next(outcomes)
    assert taken <= (10 + 2 * TASKS_AHEAD + 1) * ROWS_PER_TASK
    outcomes.close()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_mistake_found_while_tokenizing_arrives_as_its_sentence(encoder: RowEncoder, tmp_path: Path) -> None:
    gone = RowEncoder(encoder.source, str(tmp_path / "gone"), None, "auto", SEQ_LEN, "drop")
    with pytest.raises(UserError, match="gone does not exist"):
        list(encode_rows(gone, encoder.source.raw(), 2))


class Deadly(RowEncoder):
    """Takes its process down, by the signal that stands in the place of the template; 9 is that of no memory."""

    def encode(self, row: RawRow) -> Outcome:
        os.kill(os.getpid(), int(self.chat_template))
        return None


@pytest.mark.slow
@pytest.mark.parametrize(("number", "said"), [(9, "SIGKILL; run again with fewer"), (15, "SIGTERM; run again$")])
def test_a_process_that_was_killed_is_a_sentence(encoder: RowEncoder, number: int, said: str) -> None:
    deadly = Deadly(encoder.source, encoder.tokenizer_path, None, str(number), SEQ_LEN, "drop")
    with pytest.raises(UserError, match=f"a process that tokenizes was ended by {said}"):
        list(encode_rows(deadly, encoder.source.raw(), 2))


def test_a_process_that_tokenizes_imports_no_framework(encoder: RowEncoder) -> None:
    said = encoder.tokenizer.vocab_size
    assert said
    assert "tokenizer" not in sent(encoder).__dict__
    done = subprocess.run(
        [sys.executable, "-c", CHILD, encoder.source.files[0], encoder.tokenizer_path],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "TRANSFORMERS_VERBOSITY": "error", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"},
    )
    assert (done.stdout, done.stderr) == ("\n", "")


def test_tasks_keep_the_rows_and_stay_small() -> None:
    rows = [RawRow(0, line, b"x" * (1000 if line % 100 else 700_000)) for line in range(1, 1001)]
    made = list(tasks(rows))
    assert [raw for task in made for raw in task] == rows
    for task in made:
        assert len(task) <= ROWS_PER_TASK
        assert sum(len(raw.data) for raw in task[:-1]) < BYTES_PER_TASK
    assert list(tasks([])) == []
