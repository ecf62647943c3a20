"""Ten thousand lines, each damaged at random, through the command: it ends, and every line is accounted for."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mindrlhf.commands.preprocess import main
from mindrlhf.data.records import PairRecords
from mindrlhf.runtime.errors import run

LINES = 10_000
SEED = 0
Damage = Callable[[random.Random, bytes], bytes]

WORDS = ["Hi", "你好。", "", " ", "\u2028", "<|im_end|>", "\u0000", "e\u0301", "👋🏽", "long " * 50]
VALUES: list[Any] = [None, True, 0, -1.5, 10**30, [], ["a"], {}, {"role": "user", "content": "x"}, "", " ", "\ud800"]


def good_row(choose: random.Random) -> dict[str, Any]:
    """A row of cvalues, mostly one that can be used."""
    return {key: choose.choice(WORDS) + choose.choice("abcdef") for key in ("prompt", "pos_resp", "neg_resp")}


def _flip(choose: random.Random, line: bytes) -> bytes:
    content = bytearray(line)
    for _ in range(choose.randint(1, 3)):
        content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
    return bytes(content)


def _cut(choose: random.Random, line: bytes) -> bytes:
    return line[: choose.randrange(len(line))]


def _insert(choose: random.Random, line: bytes) -> bytes:
    place = choose.randrange(len(line))
    return line[:place] + choose.randbytes(choose.randint(1, 8)) + line[place:]


def _repeat(choose: random.Random, line: bytes) -> bytes:
    start, stop = sorted(choose.sample(range(len(line)), 2))
    return line[:stop] + line[start:]


def _without_field(choose: random.Random, line: bytes) -> bytes:
    row = json.loads(line)
    del row[choose.choice(list(row))]
    return json.dumps(row).encode()


def _other_value(choose: random.Random, line: bytes) -> bytes:
    row = json.loads(line)
    row[choose.choice(list(row))] = choose.choice(VALUES)
    return json.dumps(row).encode()


def _nest(choose: random.Random, line: bytes) -> bytes:
    depth = choose.choice([1, 10, 2_000])
    return b"[" * depth + line + b"]" * choose.choice([0, depth])


def _nothing(choose: random.Random, line: bytes) -> bytes:
    return line


DAMAGES: list[Damage] = [_flip, _cut, _insert, _repeat, _without_field, _other_value, _nest, _nothing]


def damaged_lines() -> list[bytes]:
    """The lines of the file: what a line break in a damaged one cuts apart is two."""
    choose = random.Random(SEED)
    lines: list[bytes] = []
    while len(lines) < LINES:
        line = json.dumps(good_row(choose), ensure_ascii=choose.random() < 0.5).encode("utf-8")
        lines += choose.choice(DAMAGES)(choose, line).split(b"\n")
    return lines[:LINES]


@pytest.fixture(scope="module")
def preprocessed(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> Path:
    """The folder with in.jsonl and what the command made of it."""
    folder = tmp_path_factory.mktemp("damaged")
    # A file with a NUL among its first bytes would be refused whole, as no text.
    first = json.dumps({"prompt": "x" * 2000, "pos_resp": "a", "neg_resp": "b"}).encode()
    (folder / "in.jsonl").write_bytes(b"\n".join([first, *damaged_lines()]))
    files = ["--src", f"{folder}/in.jsonl", "--dst", f"{folder}/out.mindrecord", "--dataset_type", "cvalues"]
    rest = ["--tokenizer", str(tiny_folder("qwen2")), "--seq_len", "65", "--max_rejected", "1", "rlhf.reference=none"]
    assert run(main, [*files, *rest]) == 0
    return folder


def test_every_line_is_written_overlong_or_rejected(preprocessed: Path) -> None:
    rows = [line for line in (preprocessed / "in.jsonl").read_bytes().split(b"\n") if line.strip()]
    sidecar = json.loads((preprocessed / "out.mindrecord.json").read_text(encoding="utf-8"))
    rejected = sum(sidecar["rejected"].values())
    assert len(rows) > 9_000
    assert sidecar["total"] == len(rows) == sidecar["pairs"] + sidecar["overlong"] + rejected
    assert min(sidecar["pairs"], sidecar["overlong"]) > 100
    assert len(PairRecords(preprocessed / "out.mindrecord")) == sidecar["pairs"]
    reasons = {"broken json", "not an object", "missing field", "null", "wrong type", "wrong encoding"}
    assert {*reasons, "empty prompt", "empty response", "identical responses"} <= set(sidecar["rejected"])


def test_every_rejected_line_is_kept_as_it_was(preprocessed: Path) -> None:
    lines = (preprocessed / "in.jsonl").read_bytes().split(b"\n")
    sidecar = json.loads((preprocessed / "out.mindrecord.json").read_text(encoding="utf-8"))
    kept = (preprocessed / "out.mindrecord.rejected.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in kept if line]
    assert len(rows) == sum(sidecar["rejected"].values())
    assert [row["line"] for row in rows] == sorted({row["line"] for row in rows})
    for row in rows:
        assert row["text"].encode("utf-8", "surrogateescape") == lines[row["line"] - 1].rstrip(b"\r")
        assert "\n" not in row["sentence"]
