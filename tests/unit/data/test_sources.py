from __future__ import annotations

import gzip
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from handed_over import sent
from hypothesis import given, settings
from hypothesis import strategies as st

from mindrlhf.data.formats import Preference, Rejected
from mindrlhf.data.known_sets import KNOWN_SETS
from mindrlhf.data.sources import Source
from mindrlhf.runtime.errors import UserError


def rows(name: str, count: int) -> bytes:
    made = ({"prompt": f"{name}{index}", "pos_resp": "yes", "neg_resp": "no"} for index in range(count))
    return "".join(json.dumps(row) + "\n" for row in made).encode()


def prompts(source: Source, *span: Any) -> list[str]:
    return [row.prompt[0]["content"] for row in source.read(*span)]  # type: ignore[union-attr,index]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`a.jsonl` with 3 rows, `b.jsonl.gz` with 2, `c.json` with 4, as the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINDRLHF_DATASETS", raising=False)
    (tmp_path / "a.jsonl").write_bytes(rows("a", 3))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(rows("b", 2)))
    (tmp_path / "c.json").write_bytes(b"[" + rows("c", 4).strip().replace(b"\n", b",") + b"]")
    (tmp_path / "notes.md").write_text("no rows")
    (tmp_path / "x.mindrecord.rejected.jsonl").write_text("no rows either\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.jsonl"], "a0 a1 a2"),
        (["b.jsonl.gz", "a.jsonl"], "b0 b1 a0 a1 a2"),
        (["a.jsonl", "a.jsonl"], "a0 a1 a2 a0 a1 a2"),
        (["."], "a0 a1 a2 b0 b1 c0 c1 c2 c3"),
        (["[ab]*.jsonl*"], "a0 a1 a2 b0 b1"),
        (["*.json:cvalues"], "c0 c1 c2 c3"),
        (["a.jsonl#2", "c.json#1"], "a0 a1 c0"),
        ([".#4"], "a0 a1 a2 b0"),
        (["a.jsonl@2"], "a0 a0 a1 a1 a2 a2"),
        (["c.json@0.5"], "c0 c2"),
        (["c.json@.25"], "c0"),
        (["a.jsonl@1.5"], "a0 a0 a1 a2 a2"),
        ([".:cvalues#8@0.4", "a.jsonl#1"], "a0 a2 c0 c2 a0"),
        (["a.jsonl@2#1"], "a0 a0"),
    ],
)  # fmt: skip
def test_words(folder: Path, words: list[str], expected: str) -> None:
    source = Source(words, "cvalues")
    assert prompts(source) == expected.split()
    assert source.total == len(expected.split())
    for start in range(source.total):
        for stop in range(start, source.total + 2):
            assert prompts(source, start, stop) == expected.split()[start:stop]


@pytest.mark.parametrize("name", ["a@2", "a#1", "a:cvalues", "a[0].jsonl", "weird:cvalues#1@2"])
def test_an_existing_path_wins(folder: Path, name: str) -> None:
    (folder / name).write_bytes(rows("z", 2))
    assert prompts(Source([name], "cvalues")) == ["z0", "z1"]
    assert prompts(Source([f"{name}:cvalues#1@3"], None)) == ["z0"] * 3


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    weight=st.sampled_from(["1", "2", "0.5", "0.3", "1.7", "0.01", "10", "0.999"]),
    limit=st.none() | st.integers(1, 40),
)
def test_weights_are_spread_evenly(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], weight: str, limit: int | None
) -> None:
    folder = tmp_path_factory.mktemp("weights")
    for index, count in enumerate(counts):
        (folder / f"{index}.jsonl").write_bytes(rows(f"{index}-", count))
    source = Source([f"{folder}{'' if limit is None else f'#{limit}'}@{weight}"], "cvalues")
    names = [f"{index}-{row}" for index, count in enumerate(counts) for row in range(count)][:limit]
    found = prompts(source)
    factor = Fraction(weight)
    assert source.total == len(found) == math.ceil(len(names) * factor)
    assert [name for name in names for _ in range(found.count(name))] == found
    taken = 0
    for index, name in enumerate(names):
        taken += found.count(name)
        assert 0 <= taken - (index + 1) * factor < 1
    for start in range(0, source.total, 3):
        assert prompts(source, start, start + 4) == found[start : start + 4]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("absent.jsonl", "'absent.jsonl' does not exist; --src takes PATH_OR_GLOB"),
        ("absent*.jsonl", "matches no file"),
        ("absent/", "does not exist"),
        ("a.jsonl:cvalue", "did you mean cvalues"),
        ("a.jsonl#0", "#0 is no count"),
        ("a.jsonl#many", "#many is no count"),
        ("a.jsonl#-1", "is no count"),
        ("a.jsonl@0", "does not say how often"),
        ("a.jsonl@-1", "does not say how often"),
        ("a.jsonl@x", "does not say how often"),
        ("a.jsonl@1e3", "does not say how often"),
        ("a.jsonl@nan", "does not say how often"),
        ("a.jsonl@2@3", "does not exist"),
        ("", "does not exist"),
        ("nothing", "without a file of rows; their names end in .jsonl"),
        ("hh-rlhf-cn:harmless_base_cn", "get it from https://modelscope.cn/.*datasets/hh-rlhf-cn/harmless_base_cn"),
    ],
)
def test_words_that_mean_nothing(folder: Path, word: str, says: str) -> None:
    (folder / "nothing").mkdir()
    with pytest.raises(UserError, match=says) as caught:
        Source([word], "cvalues")
    assert "\n" not in str(caught.value)


def test_a_dataset_type_must_come_from_somewhere(folder: Path) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl has no dataset type; give --dataset_type, or write a\.jsonl:FORMAT"):
        Source(["c.json:cvalues", "a.jsonl"])
    with pytest.raises(UserError, match="names nothing"):
        Source([], "cvalues")


def test_fewer_rows_than_the_count_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Source(["a.jsonl#7"], "cvalues").total == 3
    assert "a.jsonl#7 has 3 rows, fewer than #7" in capsys.readouterr().err


@pytest.mark.parametrize("variable", [False, True])
def test_a_known_set_is_resolved_to_local_files(folder: Path, variable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder / ("shelf" if variable else "datasets") / "cvalues"
    if variable:
        monkeypatch.setenv("MINDRLHF_DATASETS", str(folder / "shelf"))
    place.mkdir(parents=True)
    for name in ("one_train.jsonl", "one_test.jsonl", "two.jsonl"):
        (place / name).write_bytes(rows(name[:3], 1))
    assert prompts(Source(["cvalues:one"])) == ["one0"]
    assert prompts(Source(["cvalues:one_test#1@2"])) == ["one0", "one0"]
    assert prompts(Source(["cvalues"], "messages")) == ["one0", "two0"]
    assert isinstance(next(iter(Source(["cvalues:two:hh_rlhf"]).read())), Rejected)
    (place / "sub").mkdir()
    (place / "sub" / "train.jsonl").write_bytes(rows("sub", 2))
    (place / "sub" / "test.jsonl").write_bytes(rows("sub", 5))
    assert prompts(Source(["cvalues:sub"])) == ["sub0", "sub1"]


def test_known_sets_have_known_formats() -> None:
    from mindrlhf.data.formats import DATASET_TYPES

    assert {known.dataset_type for known in KNOWN_SETS.values()} <= set(DATASET_TYPES)


def test_a_file_is_named_where_there_is_more_than_one(folder: Path) -> None:
    (folder / "bad.jsonl").write_bytes(b"\n{\n")
    alone = next(iter(Source(["bad.jsonl"], "cvalues").read()))
    assert (alone.file, alone.line) == ("", 2)
    first, *_, last = Source(["a.jsonl", "bad.jsonl"], "cvalues").read()
    assert isinstance(first, Preference)
    assert isinstance(last, Rejected)
    assert (first.file, last.file, last.line) == ("a.jsonl", "bad.jsonl", 2)


def test_raw_rows_are_parsed_anywhere(folder: Path) -> None:
    source = Source([".", "c.json@0.5"], "cvalues")
    elsewhere = sent(source)
    assert list(source.read()) == [elsewhere.parse(sent(row)) for row in source.raw()]
    assert [Path(file).name for file in source.files] == ["a.jsonl", "b.jsonl.gz", "c.json", "c.json"]


def test_digest_is_of_what_decides_the_pairs(folder: Path) -> None:
    def digest(*words: str, kind: str = "cvalues", **options: Any) -> str:
        return Source(words, kind, **options).sha256

    plain = digest("a.jsonl")
    (folder / "copy.jsonl.gz").write_bytes(gzip.compress(rows("a", 3).replace(b"\n", b"\r\n\n")))
    (folder / "more.jsonl").write_bytes(rows("a", 5))
    assert digest("copy.jsonl.gz") == digest("more.jsonl#3") == digest("a.jsonl@1.0") == plain
    assert digest("a.jsonl", map_keys={"neg_resp": "neg_resp"}) != plain
    others = [
        digest("more.jsonl"),
        digest("a.jsonl@2"),
        digest("a.jsonl", kind="messages"),
        digest("a.jsonl", "c.json"),
    ]
    assert len({plain, *others}) == 5
    assert digest("c.json", "a.jsonl") != digest("a.jsonl", "c.json")


QUESTION = {"query_text": "q", "good": "c", "bad": "r", "who": "be"}
ASKED = ({"role": "system", "content": "be"}, {"role": "user", "content": "q"})


def one(folder: Path, row: Any, kind: str, **map_keys: str) -> Preference | Rejected:
    (folder / "one.jsonl").write_text(json.dumps(row) + "\n")
    return next(iter(Source(["one.jsonl"], kind, map_keys).read()))


def test_map_keys_of_any_format(folder: Path) -> None:
    pair = one(folder, QUESTION, "orca_dpo_pairs", question="query_text", chosen="good", rejected="bad", system="who")
    assert isinstance(pair, Preference)
    assert pair.prompt == ASKED
    turns = {"talk": [{"from": "human", "value": "q"}], "chosen": "c", "rejected": "r"}
    assert isinstance(one(folder, turns, "sharegpt", conversations="talk"), Preference)
    # A field that is mapped away is not there, whatever the file has under its name.
    hidden = one(folder, {**QUESTION, "system": "no"}, "orca_dpo_pairs", question="query_text", chosen="good",
                 rejected="bad", system="")  # fmt: skip
    assert isinstance(hidden, Preference)
    assert len(hidden.prompt) == 1


@pytest.mark.parametrize("kind", ["orca_dpo_pairs", "alpaca"])
def test_map_keys_in_the_words_of_mindspeed_rl(folder: Path, kind: str) -> None:
    row = {"question": "q", "more": "m", "answers": ["c", "r"], "who": "be", "none": ""}
    words = {"prompt": "question", "query": "more", "response": "answers", "system": "who"}
    pair = one(folder, row, kind, **words)
    assert isinstance(pair, Preference)
    assert [message["content"] for message in pair.prompt] == ["be", "q\nm"]  # type: ignore[index]
    assert (pair.chosen[0]["content"], pair.rejected[0]["content"]) == ("c", "r")  # type: ignore[index]
    for absent in (
        {"query": "", "system": ""},
        {"query": "none", "system": "none"},
        {"query": "gone", "system": "gone"},
    ):
        pair = one(folder, row, kind, **{**words, **absent})
        assert isinstance(pair, Preference)
        assert pair.prompt == ({"role": "user", "content": "q"},)
    # The published yaml of orca_dpo_pairs.
    orca = {"system": "be", "question": "q", "chosen": "c", "rejected": "r"}
    pair = one(folder, orca, kind, prompt="question", query="", system="system")
    assert isinstance(pair, Preference)
    assert pair.prompt == ASKED


def test_a_missing_field_is_called_as_the_file_calls_it(folder: Path) -> None:
    row = one(folder, QUESTION, "cvalues", prompt="frage", pos_resp="good", neg_resp="bad")
    assert isinstance(row, Rejected)
    assert (row.reason, row.sentence) == ("missing field", "field 'frage' (map_keys: prompt) is missing")
    null = one(folder, {**QUESTION, "good": None}, "cvalues", prompt="query_text", pos_resp="good", neg_resp="bad")
    assert isinstance(null, Rejected)
    assert null.sentence == "field 'good' (map_keys: pos_resp) is null"


def test_a_mapping_to_what_no_row_has_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    orca = {"question": "q", "chosen": "c", "rejected": "r"}
    assert isinstance(one(folder, orca, "orca_dpo_pairs", system="sytem", question="question"), Preference)
    said = "warning: map_keys: no row at the beginning of one.jsonl has a field 'sytem', which is to be system\n"
    assert capsys.readouterr().err == said
    one(folder, orca, "orca_dpo_pairs", system="")
    assert capsys.readouterr().err == ""


def test_a_key_that_no_format_has_names_the_nearest(folder: Path) -> None:
    with pytest.raises(UserError, match=r"map_keys: cvalues has no field 'promt'; did you mean prompt\? There are"):
        one(folder, QUESTION, "cvalues", promt="query_text")
    (folder / "two.jsonl").write_text(json.dumps(QUESTION) + "\n")
    both = Source(["one.jsonl:cvalues", "two.jsonl:orca_dpo_pairs"], None, {"question": "query_text"})
    assert both.total == 2
