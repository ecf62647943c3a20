from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindrlhf.data.formats import Rejected
from mindrlhf.data.merge import accounting, judge, merge
from mindrlhf.data.records import Pair, PairRecords, part_folder, part_path, write_records
from mindrlhf.data.rejected import RejectedLines, rejected_file, rejected_line
from mindrlhf.data.sidecar import Sidecar, verify
from mindrlhf.runtime.errors import BadRecord, UserError

PROVENANCE = {"dataset_sha256": "d1", "seq_len": 64, "reference": "record"}
TOTAL = 12
OVERLONG = (4, 11)
BROKEN = (7,)


def pair(row: int) -> Pair:
    prompt, chosen, rejected = (np.arange(1, row + extra + 2, dtype=np.int32) for extra in range(3))
    return Pair(row, prompt, chosen, rejected, *[-0.1 * row] * 4)


def write(path: Path, first: int, stop: int, total: int = TOTAL, **provenance: Any) -> Sidecar:
    """Rows first to stop - 1, as preprocessing would write them."""
    pairs = [pair(row) for row in range(first, stop) if row not in OVERLONG + BROKEN]
    broken = [row for row in BROKEN if first <= row < stop]
    count = len(broken)
    return write_records(
        path,
        pairs,
        provenance={**PROVENANCE, **provenance},
        span=(first, stop),
        total=total,
        overlong=sum(first <= row < stop for row in OVERLONG),
        rejected={"null": count} if count else {},
        lines=[rejected_line(bad(row + 1)) for row in broken] if path.name.startswith("part-") else (),
    )


def write_parts(dst: Path, *edges: int) -> Path:
    """Parts between the edges, one per worker; their folder."""
    for rank, (first, stop) in enumerate(zip(edges, edges[1:])):
        write(part_path(dst, rank, 0), first, stop)
    return part_folder(dst)


def bad(line: int, raw: bytes = b"{}") -> Rejected:
    return Rejected(line, "null", f"line {line}: prompt is null", raw)


@pytest.mark.parametrize("edges", [(0, 12), (0, 6, 12), (0, 1, 2, 5, 7, 8, 12)])
def test_merging_gives_what_one_worker_writes_whatever_the_parts(tmp_path: Path, edges: tuple[int, ...]) -> None:
    whole = write(tmp_path / "whole" / "x.mindrecord", 0, 12)
    folder = write_parts(tmp_path / "parts" / "x.mindrecord", *edges)
    lines: list[str] = []
    merged = merge(folder, tmp_path / "x.mindrecord", max_rejected=0.1, log=lines.append)
    assert merged == whole == verify(tmp_path / "x.mindrecord")
    counts = "12 rows in = 9 written + 2 overlong + 1 rejected (null 1)"
    assert lines == [f"{tmp_path}/x.mindrecord: {counts}"]


def test_any_folder_of_parts_is_merged_in_row_order(tmp_path: Path) -> None:
    dst = tmp_path / "x.mindrecord"
    for part in range(12):
        write(part_path(dst, 0, part), 11 - part, 12 - part)
    moved = part_folder(dst).rename(tmp_path / "elsewhere")
    merge(moved, tmp_path / "y.mindrecord", max_rejected=1.0)
    assert [each.pair_id for each in PairRecords(tmp_path / "y.mindrecord")] == [0, 1, 2, 3, 5, 6, 8, 9, 10]


@pytest.mark.parametrize(
    ("spans", "sentence"),
    [
        ([(2, 6), (6, 12)], r"rows 1 to 2 of 12 are missing, between the start and part-0000-00000.mindrecord"),
        ([(0, 4), (6, 12)], r"rows 5 to 6 of 12 are missing, between part-0000-00000.mindrecord and part-0001-00000"),
        ([(0, 4), (4, 9)], r"rows 10 to 12 of 12 are missing, after part-0001-00000.mindrecord"),
        ([(0, 6), (4, 12)], r"part-0000-00000.mindrecord and part-0001-00000.mindrecord both hold rows 5 to 6"),
        ([(0, 6), (0, 6), (6, 12)], r"part-0000-00000.mindrecord and part-0001-00000.mindrecord both hold rows 1 to 6"),
    ],
)
def test_gaps_overlaps_and_doubled_parts_are_refused(
    tmp_path: Path, spans: list[tuple[int, int]], sentence: str
) -> None:
    dst = tmp_path / "x.mindrecord"
    for rank, span in enumerate(spans):
        write(part_path(dst, rank, 0), *span)
    with pytest.raises(BadRecord, match=sentence):
        merge(part_folder(dst), dst, max_rejected=1.0)
    with pytest.raises(BadRecord, match=sentence):
        PairRecords(dst)
    assert not dst.exists()


@pytest.mark.parametrize(
    ("differing", "key"),
    [({"dataset_sha256": "d2"}, "dataset_sha256"), ({"new": 1}, "new"), ({"total": 13}, "rows")],
)
def test_a_part_of_another_run_is_refused(tmp_path: Path, differing: dict[str, Any], key: str) -> None:
    dst = tmp_path / "x.mindrecord"
    write(part_path(dst, 0, 0), 0, 6)
    write(part_path(dst, 1, 0), 6, 12, **differing)
    with pytest.raises(BadRecord, match=f"part-0001-00000.mindrecord is of another run than .*: its {key} is"):
        merge(part_folder(dst), dst, max_rejected=1.0)


def test_a_damaged_part_is_refused_and_the_old_record_stays(tmp_path: Path) -> None:
    dst = tmp_path / "x.mindrecord"
    before = write(dst, 0, 2, total=2)
    folder = write_parts(dst, 0, 6, 12)
    Path(f"{part_path(dst, 1, 0)}.json").unlink()
    with pytest.raises(BadRecord, match=r"part-0001-00000.mindrecord has no .* beside it"):
        merge(folder, dst, max_rejected=1.0)
    assert verify(dst) == before


def test_an_existing_record_is_replaced(tmp_path: Path) -> None:
    dst = tmp_path / "x.mindrecord"
    write(dst, 0, 2, total=2)
    merge(write_parts(dst, 0, 6, 12), dst, max_rejected=1.0)
    assert len(PairRecords(dst)) == 9


def test_a_folder_that_is_none_and_an_empty_one_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder of parts"):
        merge(tmp_path / "no", tmp_path / "x.mindrecord", max_rejected=1.0)
    with pytest.raises(UserError, match="holds no part"):
        merge(tmp_path, tmp_path / "x.mindrecord", max_rejected=1.0)


def test_too_many_rejected_rows_are_an_error_after_the_record_was_written(tmp_path: Path) -> None:
    dst = tmp_path / "x.mindrecord"
    folder = write_parts(dst, 0, 6, 12)
    with pytest.raises(UserError) as caught:
        merge(folder, dst, max_rejected=0.08)
    assert str(caught.value) == (
        "1 of 12 rows were rejected (null 1), more than --max_rejected 0.08 allows; the record was written nevertheless"
        f"; the rejected lines are in {dst}.rejected.jsonl, the first is line 8: {bad(8).sentence}"
    )
    assert caught.value.exit_code == 2
    assert len(PairRecords(dst)) == 9


def test_when_no_row_was_written_nothing_is_replaced(tmp_path: Path) -> None:
    dst = tmp_path / "x.mindrecord"
    before = write(dst, 0, 2, total=2)
    for rank in range(2):
        write_records(
            part_path(dst, rank, 0), [], provenance=PROVENANCE, span=(rank, rank + 1), total=2, overlong=1, rejected={}
        )
    with pytest.raises(
        UserError, match=r"no row could be used.*: 2 rows in = 0 written \+ 2 overlong \+ 0 rejected .*larger --seq_len"
    ):
        merge(part_folder(dst), dst, max_rejected=1.0)
    assert verify(dst) == before


def test_rejected_lines_are_joined_in_row_order(tmp_path: Path) -> None:
    """Each part has its own, whatever its name."""
    dst = tmp_path / "x.mindrecord"
    for part, row in enumerate((2, 1, 0)):
        write_records(
            part_path(dst, part, 0),
            [pair(row)],
            provenance=PROVENANCE,
            span=(2 * row, 2 * row + 2),
            total=6,
            overlong=0,
            rejected={"null": 1},
            lines=[rejected_line(bad(10 * row))],
        )
    merge(part_folder(dst), dst, max_rejected=1.0)
    assert [json.loads(line)["line"] for line in rejected_file(dst).read_text().splitlines()] == [0, 10, 20]
    rejected_file(part_path(dst, 0, 0)).write_text("{}\n")
    with pytest.raises(BadRecord, match=r"part-0000-00000.mindrecord.rejected.jsonl has 3 bytes"):
        merge(part_folder(dst), dst, max_rejected=1.0)


def test_old_rejected_lines_do_not_outlive_a_run_without_any(tmp_path: Path) -> None:
    place = rejected_file(tmp_path / "x.mindrecord")
    lines = RejectedLines(place)
    lines.add([rejected_line(bad(1))])
    assert not place.exists()
    assert lines.finish() == place
    assert place.exists()
    assert RejectedLines(place).finish() is None
    assert not place.exists()


def test_discarded_lines_leave_what_was_there(tmp_path: Path) -> None:
    place = tmp_path / "r.jsonl"
    place.write_text("before")
    lines = RejectedLines(place)
    lines.add([b"now\n"])
    lines.discard()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
    (tmp_path / ".r.jsonl.4711.tmp").write_text("of a killed run")
    RejectedLines(place)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize("raw", ["{提示: “你好”\u2028}".encode(), b'{"prompt": "\xff\xfe"}', b"\xed\xa0\x80\n"])
def test_a_rejected_line_can_be_had_back(raw: bytes) -> None:
    line = rejected_line(bad(3, raw))
    assert line.endswith(b"}\n")
    words = json.loads(line)
    assert words["text"].encode("utf-8", "surrogateescape") == raw
    assert words == {"line": 3, "reason": "null", "sentence": "line 3: prompt is null", "text": words["text"]}
    named = Rejected(3, "null", "prompt is null", raw, "b.jsonl")
    assert json.loads(rejected_line(named))["file"] == "b.jsonl"


def test_accounting() -> None:
    assert accounting(120, 117, 2, {"missing field": 1}) == (
        "120 rows in = 117 written + 2 overlong + 1 rejected (missing field 1)"
    )
    assert accounting(3, 0, 0, {"null": 2, "broken json": 1}) == (
        "3 rows in = 0 written + 0 overlong + 3 rejected (broken json 1, null 2)"
    )
    assert accounting(1, 1, 0, {}) == "1 rows in = 1 written + 0 overlong + 0 rejected"


@pytest.mark.parametrize(("count", "total", "share"), [(29, 100, 0.29), (1, 20, 0.05), (0, 5, 0.0), (5, 5, 1.0)])
def test_rejected_rows_up_to_the_share_are_no_error(count: int, total: int, share: float) -> None:
    judge(rejected={"null": count}, total=total, max_rejected=share, rejected_file=None)
    with pytest.raises(UserError):
        judge(rejected={"null": count + 1}, total=total, max_rejected=share, rejected_file=None)


def test_some_rejected_rows_are_told_and_none_are_not() -> None:
    told: list[str] = []
    judge(rejected={"null": 2}, total=4, max_rejected=1.0, rejected_file=None, warn=told.append)
    judge(rejected={}, total=4, max_rejected=1.0, rejected_file=None, warn=told.append)
    assert told == ["2 of 4 rows were rejected (null 2)"]


def test_what_a_killed_merge_left_is_cleared(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "x.mindrecord", 0, 6, 12)
    left = tmp_path / ".x.mindrecord.ab12.tmp"
    left.mkdir()
    (left / "x.mindrecord").write_bytes(b"half")
    merge(folder, tmp_path / "x.mindrecord", max_rejected=1.0)
    assert not left.exists()
