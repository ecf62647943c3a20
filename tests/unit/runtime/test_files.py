"""A file is whole or absent, also when writing it fails."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mindrlhf.runtime.files import replacing, sha256_file, write_json, write_text


def test_sha256_of_a_file_longer_than_a_block(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(content)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_write_text_makes_folders_and_leaves_one_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "好\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "好\n".encode()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_write_json_keeps_chinese_and_sorts_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": "好", "a": [1]})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "好" in text
    assert list(json.loads(text)) == ["a", "b"]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "weights"
    write_text(target, "old")

    def write_half() -> None:
        with replacing(target) as temporary:
            temporary.write_text("ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_new_file_is_not_seen_before_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "weights"
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
