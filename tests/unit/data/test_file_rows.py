from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from handed_over import sent

from mindrlhf.data import row_file, table_rows
from mindrlhf.data.formats import Preference, Rejected
from mindrlhf.data.sources import Source
from mindrlhf.runtime.errors import UserError

FIELDS = ("prompt", "pos_resp", "neg_resp")


def pair(index: int) -> dict[str, str]:
    return {"prompt": f'第{index}题, “quoted” "so"\nand on', "pos_resp": f"yes {index}", "neg_resp": "no"}


ROWS = [pair(index) for index in range(10)]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def as_csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def write_parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)


def write(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return str(path)


def source(path: str | Path, dataset_type: str = "cvalues") -> Source:
    return Source([str(path)], dataset_type)


def prompts(rows: Any) -> list[str]:
    return [row.prompt[0]["content"] for row in rows]


@pytest.mark.parametrize(
    "name",
    [
        "x.jsonl",
        "x.jsonl.gz",
        "x.json",
        "x.json.gz",
        "lines.json",
        "x.csv",
        "x.csv.gz",
        "x.parquet",
        "x.txt",
        "X.JSONL",
    ],
)
@pytest.mark.parametrize("marks", [3, 4096])
def test_every_kind_of_file_has_the_same_rows(
    tmp_path: Path, name: str, marks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_file, "ROWS_BETWEEN_MARKS", marks)
    monkeypatch.setattr(table_rows, "TABLE_ROWS", 4)
    if name == "x.parquet":
        write_parquet(tmp_path / name, ROWS, row_group_size=5)
    else:
        array = json.dumps(ROWS, indent=1).encode()
        content = {"x.json": array, "x.json.gz": array, "x.csv": as_csv(ROWS), "x.csv.gz": as_csv(ROWS)}
        write(tmp_path, name, content.get(name, JSONL))
    rows = source(tmp_path / name)
    assert rows.total == 10
    assert prompts(rows.read()) == [row["prompt"] for row in ROWS]
    again = sent(rows)
    for start in range(11):
        for stop in range(start, 12):
            assert prompts(again.read(start, stop)) == [row["prompt"] for row in ROWS[start:stop]]


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + JSONL.replace(b"\n", b"\r\n\r\n \n", 3) + b"{\n" + json.dumps(ROWS[0]).encode()
    rows = list(source(write(tmp_path, "x.jsonl", content)).read())
    assert [row.line for row in rows] == [1, 4, 7, *range(10, 19)]
    assert isinstance(rows[10], Rejected)
    assert (rows[10].reason, rows[10].raw) == ("broken json", b"{")
    table = list(source(write(tmp_path, "x.csv", b"\xef\xbb\xbf" + as_csv(ROWS[:3]))).read())
    assert [row.line for row in table] == [2, 4, 6]  # a prompt has two lines


def test_a_json_array_keeps_its_elements_as_written(tmp_path: Path) -> None:
    good = json.dumps(ROWS[0]).encode()
    elements = [good, b' {"prompt": "\\ud800"}', b"3", json.dumps({**ROWS[0], "prompt": '[", ]'}).encode(), b"nope"]
    rows = source(write(tmp_path, "x.json", b"\xef\xbb\xbf [ " + b" ,\n".join(elements) + b"\n] "))
    read = list(rows.read())
    assert [row.line for row in read] == [1, 2, 3, 4, 5]
    assert [type(row) for row in read] == [Preference, Rejected, Rejected, Preference, Rejected]
    assert [row.raw for row in read if isinstance(row, Rejected)] == [b'{"prompt": "\\ud800"}', b"3", b"nope"]


def test_reading_a_slice_decodes_no_row_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = source(write(tmp_path, "x.jsonl", JSONL))
    decoded: list[Any] = []
    real = json.loads
    monkeypatch.setattr(json, "loads", lambda text, **options: decoded.append(text) or real(text, **options))
    list(rows.raw(7, 9))
    assert decoded == []
    list(rows.read(7, 9))
    assert len(decoded) == 2


def test_marks_lead_to_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_file, "ROWS_BETWEEN_MARKS", 4)
    path = write(tmp_path, "x.jsonl", JSONL)
    rows = source(path)
    # What stands before the mark is not looked at any more.
    changed = JSONL.replace("第1题".encode(), b"\xff" * len("第1题".encode()))
    status = os.stat(path)
    Path(path).write_bytes(changed)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert prompts(rows.read(5)) == [row["prompt"] for row in ROWS[5:]]


BROKEN = [
    ("empty.jsonl", b"", "is empty"),
    ("blank.jsonl", b"\n \n", "holds no rows"),
    ("none.json", b"[]", "holds no rows"),
    ("header.csv", b"prompt,pos_resp\n", "holds no rows"),
    ("twice.csv", b"prompt,prompt\na,b\n", "header row has an empty name, or one twice"),
    ("unnamed.csv", b"prompt,\na,b\n", "header row has an empty name"),
    ("gbk.csv", "题,b\n1,2\n".encode("gbk"), "header row cannot be read"),
    ("cut.json", b'[{"a": 1}, {"a"', "ends within the array, after 1 whole elements"),
    ("number.json", b"[1, 2", "ends within"),
    ("deep.json", b"[" * 100_000, "ends within"),
    ("gbk.json", "[\"你\"]".encode("gbk"), "not UTF-8"),
    ("object.json", b'{\n "data": [1]\n}', "its first line is no whole object"),
    ("array.jsonl", b'[\n{"a": 1}\n]', "let its name end in .json"),
    ("utf16.jsonl", JSONL.decode().encode("utf-16"), "UTF-16 text; save it as UTF-8"),
    ("utf16be.csv", b"\xfe\xff" + "a,b".encode("utf-16-be"), "UTF-16"),
    ("no-mark.jsonl", "{}\n".encode("utf-16-le"), "binary file"),
    ("model.jsonl", b"\x00\x01binary", "binary file"),
    ("zipped.jsonl", b"PK\x03\x04rest", "zip archive"),
    ("compressed.jsonl", gzip.compress(JSONL), "let its name end in .gz"),
    ("table.jsonl", b"PAR1rest", "let its name end in .parquet"),
    ("table.parquet", b"no table", "no parquet file"),
    ("half.parquet", b"PAR1" + b"\x00" * 50, "no parquet file"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "says"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        list(source(tmp_path / name).read())
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.json.gz", "x.csv.gz"])
def test_broken_gz(tmp_path: Path, name: str) -> None:
    content = {"x.jsonl.gz": JSONL, "x.json.gz": json.dumps(ROWS).encode(), "x.csv.gz": as_csv(ROWS)}[name]
    whole = gzip.compress(content)
    path = tmp_path / name
    path.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=f"{path} is cut off"):
        source(path)
    path.write_bytes(whole[:30] + b"\xff" * 20 + whole[50:])
    with pytest.raises(UserError, match=f"{path} is damaged"):
        source(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} is damaged, or not compressed"):
        source(path)
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match=str(path)):
        source(path)


def test_a_parquet_file_damaged_inside(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", ROWS * 50, compression="gzip", use_dictionary=False)
    damaged = bytearray((tmp_path / "x.parquet").read_bytes())
    damaged[60:160] = b"\xff" * 100
    (tmp_path / "x.parquet").write_bytes(damaged)
    with pytest.raises(UserError, match=r"x\.parquet is no parquet file that can be read"):
        list(source(tmp_path / "x.parquet").read())


def test_a_line_that_is_too_long_is_one_rejected_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_file, "LONGEST_ROW", 500)
    monkeypatch.setattr(row_file, "KEPT_OF_A_LONG_ROW", 10)
    lines = JSONL.splitlines(keepends=True)
    rows = source(write(tmp_path, "x.jsonl", lines[0] + b"a" * 1700 + b"\n" + lines[1] + b"b" * 501))
    first, second, third, fourth = rows.read()
    assert isinstance(first, Preference)
    assert isinstance(third, Preference)
    assert second == Rejected(2, "too long", "it has 1701 bytes, more than the 500 that a row may have", b"a" * 10)
    assert isinstance(fourth, Rejected)
    assert fourth.line == 4
    table = source(write(tmp_path, "x.csv", as_csv(ROWS[:1]) + b"c" * 900 + b",d,e\n" + as_csv(ROWS[:1])[24:]))
    assert [getattr(row, "reason", "good") for row in table.read()] == ["good", "too long", "good"]


def test_bad_csv_records(tmp_path: Path) -> None:
    bad = ["only one", "a,b,c,d", 'a,"b" c,d', "gbk 天,b,c"]
    content = as_csv([])
    for record in bad:
        content += (record.encode("gbk" if "gbk" in record else "utf-8")) + b"\n"
        content += as_csv(ROWS[:1])[len(as_csv([])) :]
    rows = list(source(write(tmp_path, "x.csv", content)).read())
    reasons = [getattr(row, "reason", "good") for row in rows]
    assert reasons == [*["broken csv", "good"] * 3, "wrong encoding", "good"]
    assert [row.raw for row in rows if isinstance(row, Rejected)][:2] == [b"only one", b"a,b,c,d"]


def test_a_quote_that_is_never_closed_swallows_no_rows(tmp_path: Path) -> None:
    """All rows behind it would be one record, and count as one."""
    good = as_csv(ROWS[:1])
    content = good + b'open,"quote,c\n' + 50 * b"p,a,b\n"
    line = good.count(b"\n") + 1
    with pytest.raises(UserError, match=rf"x\.csv: a quote that opens in the row of line {line} is never closed"):
        source(write(tmp_path, "x.csv", content))


def test_csv_cannot_hold_nested_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.csv: rows of sharegpt are nested"):
        source(write(tmp_path, "x.csv", b"conversations,chosen,rejected\na,b,c\n"), "sharegpt")


def test_a_table_of_messages(tmp_path: Path) -> None:
    """Parquet gives every message every field, null where it has none."""
    user, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}
    rows = [
        {"prompt": [user], "chosen": [answer], "rejected": [{**answer, "content": "b"}], "tools": None, "score": 0.5},
        {"prompt": [user], "chosen": [call], "rejected": [answer], "tools": '[{"name": "f"}]', "score": float("nan")},
    ]
    write_parquet(tmp_path / "x.parquet", rows)
    first, second = source(tmp_path / "x.parquet", "messages").read()
    assert isinstance(first, Preference)
    assert first.prompt == (user,)
    assert isinstance(second, Preference)
    function = {"name": "f", "arguments": {"x": 1}}
    assert second.chosen[0]["tool_calls"] == [{"type": "function", "function": function}]  # type: ignore[index]
    assert second.tools == ({"name": "f"},)
    assert b"score" not in second.raw


def test_a_file_that_changes_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, "x.jsonl", JSONL)
    rows = source(path)
    Path(path).write_bytes(JSONL * 2)
    with pytest.raises(UserError, match="changed while it was read"):
        list(rows.read())


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match="read twice"):
        source(tmp_path / "pipe.jsonl")


def damaged(line: bytes, generator: random.Random) -> bytes:
    kind = generator.randrange(6)
    at = generator.randrange(len(line))
    if kind == 0:
        return line[:at] + bytes([generator.randrange(256)]) + line[at + 1 :]
    if kind == 1:
        return line[:at]
    if kind == 2:
        return line[:at] + line[at + generator.randrange(1, 9) :]
    if kind == 3:
        snippets = [b"\\ud83d", b'"', b"\\", b"\x00", b"\xef\xbb\xbf", b"\r", b"\n", b"[[[[", b"NaN", b"\x85"]
        return line[:at] + generator.choice(snippets) + line[at:]
    value: Any = generator.choice([None, "", 1, [], {}, "no", "<|im_end|>", 1e999])
    return json.dumps({**pair(at), generator.choice(FIELDS): value}).encode() if kind == 4 else line


def test_ten_thousand_damaged_lines_are_each_counted_once(tmp_path: Path) -> None:
    generator = random.Random(7)
    lines = [json.dumps(pair(index), ensure_ascii=False).encode() for index in range(10_000)]
    path = write(tmp_path, "x.jsonl", b"\n".join([lines[0], *(damaged(line, generator) for line in lines)]))
    written = enumerate(Path(path).read_bytes().split(b"\n"), 1)
    expected = [(number, line.rstrip(b"\r")) for number, line in written if line.strip()]
    rows = source(path)
    read = list(rows.read())
    assert rows.total == len(read) == len(expected)
    assert [row.line for row in read] == [number for number, _ in expected]
    assert read == list(rows.read(0, 2501)) + list(rows.read(2501))
    assert 2000 < sum(isinstance(row, Rejected) for row in read) < 8000
    for row, (_, raw) in zip(read, expected):
        if isinstance(row, Rejected):
            assert (row.raw, bool(row.sentence)) == (raw, True)
        else:
            given = [text[0]["content"] for text in (row.prompt, row.chosen, row.rejected)]  # type: ignore[index]
            assert given == [json.loads(raw)[field] for field in FIELDS]


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_damaged_tables_and_arrays_never_crash(tmp_path: Path, kind: str) -> None:
    generator = random.Random(3)
    whole = as_csv(ROWS) if kind == "csv" else json.dumps(ROWS, ensure_ascii=False).encode()
    told = []
    for _ in range(400):
        path = write(tmp_path, f"x.{kind}", damaged(whole, generator))
        try:
            rows = source(path)
            read = list(rows.read())
        except UserError as error:
            told.append(str(error))
            continue
        assert len(read) == rows.total
        assert read[3:] == list(rows.read(3))
    assert len(told) < 400
    assert all(path in sentence for sentence in told)
