from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mindrlhf.data.formats import DATASET_TYPES, Preference, Rejected, count_rows, dataset_type, read_rows
from mindrlhf.runtime.errors import UserError

GOOD = {"prompt": "你好", "pos_resp": "yes", "neg_resp": "no"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def line(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}, ensure_ascii=False).encode("utf-8")


def read(folder: Path, *lines: bytes, kind: str = "cvalues", name: str = "x.jsonl") -> list[Preference | Rejected]:
    path = folder / name
    path.write_bytes(b"\n".join(lines) + b"\n")
    return list(read_rows(path, kind))


def read_one(folder: Path, row: Any, kind: str) -> Preference | Rejected:
    return read(folder, json.dumps(row).encode(), kind=kind)[0]


def test_dataset_types_are_these() -> None:
    assert list(DATASET_TYPES) == ["cvalues", "hh_rlhf_cn", "orca_dpo_pairs", "messages"]


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        dataset_type("cvalues")(DATASET_TYPES["cvalues"])


def test_cvalues(tmp_path: Path) -> None:
    assert read(tmp_path, line()) == [Preference(1, (user("你好"),), (assistant("yes"),), (assistant("no"),))]


def test_hh_rlhf_cn_keeps_its_history(tmp_path: Path) -> None:
    context = [{"role": role, "text": text} for role, text in (("human", "a"), ("assistant", "b"), ("human", "c"))]
    row = {
        "context": context,
        "chosen": {"role": "assistant", "text": "d"},
        "rejected": {"role": "assistant", "text": "e"},
    }
    pair = read_one(tmp_path, row, "hh_rlhf_cn")
    assert pair == Preference(1, (user("a"), assistant("b"), user("c")), (assistant("d"),), (assistant("e"),))


@pytest.mark.parametrize("system", [{}, {"system": ""}, {"system": " \n"}, {"system": None}])
def test_orca_without_system_has_no_system_message(tmp_path: Path, system: dict[str, Any]) -> None:
    pair = read_one(tmp_path, {**system, "question": "q", "chosen": "c", "rejected": "r"}, "orca_dpo_pairs")
    assert pair == Preference(1, (user("q"),), (assistant("c"),), (assistant("r"),))


def test_orca_with_system(tmp_path: Path) -> None:
    pair = read_one(tmp_path, {"system": "be", "question": "q", "chosen": "c", "rejected": "r"}, "orca_dpo_pairs")
    assert isinstance(pair, Preference)
    assert pair.prompt == ({"role": "system", "content": "be"}, user("q"))


def test_messages_conversational(tmp_path: Path) -> None:
    row = {"prompt": [user("q")], "chosen": [assistant("c")], "rejected": [assistant("r")]}
    pair = read_one(tmp_path, row, "messages")
    assert pair == Preference(1, (user("q"),), (assistant("c"),), (assistant("r"),))
    assert not pair.plain


def test_messages_plain(tmp_path: Path) -> None:
    pair = read_one(tmp_path, {"prompt": "q", "chosen": "c", "rejected": "r"}, "messages")
    assert pair == Preference(1, "q", "c", "r")
    assert pair.plain


BAD_LINES = [
    (b'{"prompt": "a"', "broken json"),
    (b'{"prompt": "a", "prompt": "b", "pos_resp": "c", "neg_resp": "d"}', "broken json"),
    (line(score=float("nan")), "broken json"),
    (b"[" * 100_000, "broken json"),
    (b"9" * 10_000, "broken json"),
    (b'["a"]', "not an object"),
    (b"null", "not an object"),
    (b'{"prompt": "a", "pos_resp": "b"}', "missing field"),
    (line(neg_resp=None), "null"),
    (line(prompt=3), "wrong type"),
    (line(prompt=["a"]), "wrong type"),
    (line(pos_resp=" \u3000\n"), "empty response"),
    (line(neg_resp=""), "empty response"),
    (line(prompt=""), "empty prompt"),
    (line(pos_resp="no"), "identical responses"),
    ("{\"prompt\": \"你好\"}".encode("gbk"), "wrong encoding"),
    (b'{"prompt": "a", "pos_resp": "\\ud800", "neg_resp": "c"}', "wrong encoding"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "reason"), BAD_LINES, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_line_is_rejected_and_kept(tmp_path: Path, bad: bytes, reason: str) -> None:
    before, rejected, after = read(tmp_path, line(), bad, line())
    assert isinstance(before, Preference)
    assert isinstance(after, Preference)
    assert after.line == 3
    assert isinstance(rejected, Rejected)
    assert (rejected.line, rejected.reason, rejected.raw) == (2, reason, bad)
    assert rejected.sentence


CHAT = {"prompt": [user("q")], "chosen": [assistant("c")], "rejected": [assistant("r")]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": []}, "empty prompt"),
        ({"prompt": [user("q"), assistant("a")]}, "wrong last role"),
        ({"chosen": [user("q")]}, "wrong last role"),
        ({"chosen": []}, "empty response"),
        ({"chosen": [assistant(" ")]}, "empty response"),
        ({"prompt": [{"role": "tool", "content": "q"}]}, "unknown role"),
        ({"prompt": [{"role": None, "content": "q"}]}, "null"),
        ({"prompt": [{"content": "q"}]}, "missing field"),
        ({"prompt": ["q"]}, "wrong type"),
        ({"prompt": "q"}, "wrong type"),
        ({"chosen": "c"}, "wrong type"),
        ({"prompt": {"role": "user"}}, "wrong type"),
        ({"rejected": [assistant("c")]}, "identical responses"),
    ],
)
def test_bad_messages(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    row = read_one(tmp_path, {**CHAT, **changes}, "messages")
    assert isinstance(row, Rejected)
    assert row.reason == reason


def test_unnamed_fields_are_ignored(tmp_path: Path) -> None:
    assert isinstance(read(tmp_path, line(extra=None, other=[1]))[0], Preference)


def test_blank_lines_crlf_and_bom_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line() + b"\r\n\r\n  \n" + b"{\r\n" + line() + b"\n\n")
    first, second, third = read_rows(path, "cvalues")
    assert count_rows(path) == 3
    assert isinstance(first, Preference)
    assert second == Rejected(4, "broken json", second.sentence, b"{")  # type: ignore[union-attr]
    assert isinstance(third, Preference)
    assert third.line == 5


def test_start_and_stop_count_rows_not_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join([line(prompt=str(i)) for i in range(4)]).replace(b"\n", b"\n\n"))
    assert [row.line for row in read_rows(path, "cvalues", 1, 3)] == [3, 5]
    assert [row.line for row in read_rows(path, "cvalues", 3)] == [7]


def test_json_array(tmp_path: Path) -> None:
    elements = [line(), b' {"prompt": "\\ud800"}', b"3", line(prompt='[", ]')]
    rows = read(tmp_path, b"\xef\xbb\xbf [ " + b" ,\n".join(elements) + b"\n] ", name="x.json")
    assert count_rows(tmp_path / "x.json") == 4
    assert [row.line for row in rows] == [1, 2, 3, 4]
    assert [type(row) for row in rows] == [Preference, Rejected, Rejected, Preference]
    assert [row.raw for row in rows if isinstance(row, Rejected)] == [b'{"prompt": "\\ud800"}', b"3"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (line() + b"\n" + line(), "jsonl"),
        (line(), "no JSON array"),
        (b"[1, 2", "no JSON array"),
        (b"[" * 100_000, "no JSON array"),
        ("[\"你\"]".encode("gbk"), "not UTF-8"),
        (b"[]", "holds no rows"),
        (b"", "is empty"),
    ],
)  # fmt: skip
def test_a_json_file_is_a_whole_array(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        count_rows(path)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_text("\n \n")
    for name in ("missing.jsonl", "empty.jsonl", "blank.jsonl", ""):
        with pytest.raises(UserError, match=str(tmp_path)):
            count_rows(tmp_path / name)
    with pytest.raises(UserError, match="missing"):
        read_rows(tmp_path / "missing.jsonl", "cvalues")


def test_unknown_dataset_type_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean cvalues"):
        read_rows(tmp_path, "cvalue")


def damaged(source: bytes, generator: random.Random) -> bytes:
    kind = generator.randrange(6)
    at = generator.randrange(len(source))
    if kind == 0:
        return source[:at] + bytes([generator.randrange(256)]) + source[at + 1 :]
    if kind == 1:
        return source[:at]
    if kind == 2:
        return source[:at] + source[at + generator.randrange(1, 9) :]
    if kind == 3:
        return (
            source[:at]
            + generator.choice([b"\\ud83d", b'"', b"\\", b"\x00", b"\xef\xbb\xbf", b"\r", b"\n"])
            + source[at:]
        )
    key = generator.choice(list(GOOD))
    value: Any = generator.choice([None, "", 1, [], {}, "no", "<|im_end|>"])
    return line(**{key: value}) if kind == 4 else source


def test_every_damaged_line_is_counted_once(tmp_path: Path) -> None:
    generator = random.Random(7)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(damaged(line(prompt=f"第{i}题"), generator) for i in range(600)))
    expected = [(i, each.rstrip(b"\r")) for i, each in enumerate(path.read_bytes().split(b"\n"), 1) if each.strip()]
    rows = list(read_rows(path, "cvalues"))
    assert count_rows(path) == len(rows) == len(expected)
    assert [row.line for row in rows] == [number for number, _ in expected]
    assert rows == list(read_rows(path, "cvalues", 0, 251)) + list(read_rows(path, "cvalues", 251))
    assert 100 < sum(isinstance(row, Rejected) for row in rows) < 500
    for row, (_, raw) in zip(rows, expected):
        if isinstance(row, Rejected):
            assert row.raw == raw
            assert row.sentence
        else:
            fields = json.loads(raw)
            assert [row.prompt[0], row.chosen[0], row.rejected[0]] == [
                user(fields["prompt"]),
                assistant(fields["pos_resp"]),
                assistant(fields["neg_resp"]),
            ]


def test_reading_needs_neither_transformers_nor_mindspore() -> None:
    code = (
        "import sys, mindrlhf.data.formats as f; sys.exit(any(m in sys.modules for m in ('transformers', 'mindspore')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
