from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from mindrlhf.data import records as records_module
from mindrlhf.data.records import (
    REFERENCE_FIELDS,
    TOKEN_FIELDS,
    Pair,
    PairRecords,
    clear_parts,
    part_path,
    write_records,
)
from mindrlhf.data.sidecar import check_destination, sidecar_path, verify
from mindrlhf.data.spool import FIXED_BYTES
from mindrlhf.runtime.errors import BadRecord, UserError

PROVENANCE = {"dataset_sha256": "d1", "tokenizer_hash": "t1", "seq_len": 64, "reference": "record"}
WITHOUT = {**PROVENANCE, "reference": "none"}


def pair(pair_id: int, reference: bool = True) -> Pair:
    generator = np.random.default_rng(pair_id)
    tokens: list[Any] = [
        generator.integers(0, 2**31 - 1, generator.integers(1, 30), dtype=np.int32) for _ in TOKEN_FIELDS
    ]
    sums = [float(value) for value in np.float32(-300) * generator.random(4, np.float32)] if reference else []
    return Pair(pair_id, *tokens, *sums)


def write(path: Path, ids: Sequence[int], span: tuple[int, int], total: int, **provenance: Any) -> Path:
    write_records(
        path,
        [pair(row) for row in ids],
        provenance={**PROVENANCE, **provenance},
        span=span,
        total=total,
        overlong=span[1] - span[0] - len(ids),
        rejected={},
    )
    return path


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return write(tmp_path / "x.mindrecord", range(8), (0, 8), 8)


@pytest.fixture
def three_parts(tmp_path: Path) -> Path:
    """x.mindrecord in parts of rows 0-2, 3-5, 6-8, of which row 4 was overlong; the path of the absent whole."""
    dst = tmp_path / "x.mindrecord"
    write(part_path(dst, 0, 0), [0, 1, 2], (0, 3), 9)
    write(part_path(dst, 0, 1), [3, 5], (3, 6), 9)
    write(part_path(dst, 1, 0), [6, 7, 8], (6, 9), 9)
    return dst


def equal(one: Pair, two: Pair) -> bool:
    """Bit for bit."""
    bits = [[np.float32(getattr(each, name)).tobytes() for name in REFERENCE_FIELDS] for each in (one, two)]
    tokens = [(getattr(one, name), getattr(two, name)) for name in TOKEN_FIELDS]
    same = all(ours.dtype == theirs.dtype == np.int32 and np.array_equal(ours, theirs) for ours, theirs in tokens)
    return same and one.pair_id == two.pair_id and bits[0] == bits[1]


def refused(record: Path) -> str:
    """The sentence with which `verify` and reading refuse."""
    with pytest.raises(BadRecord) as verified:
        verify(record)
    with pytest.raises(BadRecord) as opened:
        PairRecords(record)
    assert str(opened.value) == str(verified.value)
    return str(verified.value)


def flip_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_what_is_read_is_bit_for_bit_what_was_written_in_any_order(record: Path) -> None:
    records = PairRecords(record)
    assert len(records) == 8
    for index in (5, 0, 7, 3, 0, -1):
        assert equal(records[index], pair(range(8)[index]))
    with pytest.raises(IndexError):
        records[8]


def test_a_record_says_its_sizes(record: Path) -> None:
    records, pairs, sidecar = PairRecords(record), [pair(row) for row in range(8)], verify(record)
    rows = [FIXED_BYTES + 4 * sum(len(getattr(each, name)) for name in TOKEN_FIELDS) for each in pairs]
    assert (sidecar.largest_row, sidecar.row_bytes) == (max(rows), sum(rows))
    longest = max(max(len(each.chosen_ids), len(each.rejected_ids)) for each in pairs)
    assert sidecar.max_response == records.max_response == longest
    assert records.seq_len == 64
    assert records.has_reference
    assert records.provenance == PROVENANCE
    assert sidecar.rows == (0, 8)


def test_a_record_without_reference_has_none(tmp_path: Path) -> None:
    path = tmp_path / "x.mindrecord"
    written = write_records(path, [pair(0, False)], provenance=WITHOUT, span=(0, 1), total=1, overlong=0, rejected={})
    records = PairRecords(path)
    assert not records.has_reference
    assert [getattr(records[0], name) for name in REFERENCE_FIELDS] == [None] * 4
    assert written == verify(path)
    assert written.fields == ["pair_id", *TOKEN_FIELDS]


@pytest.mark.parametrize("value", [-0.0, 1e-45, -3.4e38, -5.0, 0.1])
def test_reference_sums_that_a_scalar_field_of_mindspore_loses(tmp_path: Path, value: float) -> None:
    odd = dataclasses.replace(pair(0), ref_chosen_logps=float(np.float32(value)))
    path = tmp_path / "x.mindrecord"
    write_records(path, [odd], provenance=PROVENANCE, span=(0, 1), total=1, overlong=0, rejected={})
    assert equal(PairRecords(path)[0], odd)


def test_a_row_longer_than_the_smallest_page(tmp_path: Path) -> None:
    long = dataclasses.replace(pair(1), prompt_ids=np.arange(300_000, dtype=np.int32))
    path = tmp_path / "x.mindrecord"
    write_records(path, [pair(0), long, pair(2)], provenance=PROVENANCE, span=(0, 3), total=3, overlong=0, rejected={})
    assert all(equal(got, given) for got, given in zip(PairRecords(path), [pair(0), long, pair(2)]))


@pytest.mark.parametrize("reference", [True, False])
def test_more_pages_than_the_smallest_header_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: bool
) -> None:
    """The smallest sizes that MindSpore takes stand for larger ones."""
    monkeypatch.setattr(records_module, "SMALLEST_HEADER", 1 << 14)
    monkeypatch.setattr(records_module, "SMALLEST_PAGE", 1 << 15)
    pairs = [
        dataclasses.replace(pair(row, reference), prompt_ids=np.full(4050 + row % 50, 2**31 - 1 - row, np.int32))
        for row in range(400)
    ]
    path = tmp_path / "x.mindrecord"
    provenance = PROVENANCE if reference else WITHOUT
    write_records(path, pairs, provenance=provenance, span=(0, 400), total=400, overlong=0, rejected={})
    assert all(equal(got, given) for got, given in zip(PairRecords(path), pairs))
    content = path.read_bytes()
    listed = content[: content.index(b"\0", 100)].count(b'"page_id"')
    assert listed > 200
    assert b'"header_size":131072' in content[:100]


def test_a_row_takes_no_more_bytes_than_is_reckoned(tmp_path: Path) -> None:
    path = tmp_path / "x.mindrecord"
    write_records(path, [pair(0)], provenance=PROVENANCE, span=(0, 1), total=1, overlong=0, rejected={})
    with closing(sqlite3.connect(f"{path}.db")) as index:
        ((blob, raw),) = index.execute("SELECT PAGE_OFFSET_BLOB_END, PAGE_OFFSET_RAW_END FROM INDEXES")
    assert blob + raw <= FIXED_BYTES + 4 * sum(len(getattr(pair(0), name)) for name in TOKEN_FIELDS)


def test_same_pairs_and_name_give_the_same_bytes(tmp_path: Path, record: Path) -> None:
    other = write(tmp_path / "elsewhere" / "x.mindrecord", range(8), (0, 8), 8)
    assert verify(other) == verify(record)


@pytest.mark.parametrize("field", TOKEN_FIELDS)
def test_an_empty_field_is_not_written(tmp_path: Path, field: str) -> None:
    nothing: dict[str, Any] = {field: np.zeros(0, np.int32)}
    empty = dataclasses.replace(pair(1), **nothing)
    path = tmp_path / "x.mindrecord"
    with pytest.raises(BadRecord, match=f"row 2 of the source has no {field}"):
        write_records(path, [pair(0), empty], provenance=PROVENANCE, span=(0, 2), total=2, overlong=0, rejected={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("provenance", "broken"),
    [
        (PROVENANCE, pair(1, False)),
        (WITHOUT, pair(1)),
        (PROVENANCE, dataclasses.replace(pair(1), ref_chosen_logps=None)),
    ],
)
def test_reference_sums_are_there_for_all_pairs_or_for_none(
    tmp_path: Path, provenance: dict[str, Any], broken: Pair
) -> None:
    good = pair(0, provenance is PROVENANCE)
    path = tmp_path / "x.mindrecord"
    with pytest.raises(BadRecord, match="row 2 of the source: ref_chosen_logps is"):
        write_records(path, [good, broken], provenance=provenance, span=(0, 2), total=2, overlong=0, rejected={})


def test_a_pair_that_mindspore_drops_silently_is_missed(tmp_path: Path) -> None:
    wrong = dataclasses.replace(pair(1), chosen_ids=np.arange(3, dtype=np.int64))
    path = tmp_path / "x.mindrecord"
    with pytest.raises(BadRecord, match="kept 1 of 2 pairs"):
        write_records(path, [pair(0), wrong], provenance=PROVENANCE, span=(0, 2), total=2, overlong=0, rejected={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["", ".db"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_flipped_bit_is_refused(record: Path, ending: str, share: float) -> None:
    file = Path(f"{record}{ending}")
    flip_bit(file, int(share * file.stat().st_size))
    assert refused(record).startswith(f"{file} is damaged: its sha256")


@pytest.mark.parametrize("ending", ["", ".db"])
def test_a_cut_file_is_refused(record: Path, ending: str) -> None:
    file = Path(f"{record}{ending}")
    file.write_bytes(file.read_bytes()[:-1])
    assert refused(record).startswith(f"{file} has {file.stat().st_size} bytes, {file.stat().st_size + 1} were written")


def test_a_missing_index_is_refused(record: Path) -> None:
    Path(f"{record}.db").unlink()
    assert refused(record).startswith(f"{record}.db is missing")


def test_a_missing_record_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "no.mindrecord") == f"{tmp_path}/no.mindrecord does not exist or is no file"


def test_a_file_that_is_no_mindrecord_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "cv.jsonl").write_text("{}\n")
    assert refused(tmp_path / "cv.jsonl") == (
        f"{tmp_path}/cv.jsonl is not a MindRecord; make one of it with tools/dpo_preprocess.py"
    )


def test_a_missing_sidecar_is_refused(record: Path) -> None:
    sidecar_path(record).unlink()
    assert "has no x.mindrecord.json beside it" in refused(record)


def _without_key(body: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in body.items() if key != "row_bytes"})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda body: "", "is not JSON"),
        (lambda body: json.dumps(body)[:-1], "is not JSON"),
        (lambda body: "[1]", "is not the sidecar of a MindRecord in format 2"),
        (lambda body: json.dumps({**body, "format": 1}), "is not the sidecar of a MindRecord in format 2"),
        (_without_key, "missing or foreign keys row_bytes"),
        (lambda body: json.dumps({**body, "max_response": 1}), "its sha256 is not the one written"),
    ],
)
def test_a_spoilt_sidecar_is_refused(record: Path, spoil: Callable[[dict[str, Any]], str], reason: str) -> None:
    place = sidecar_path(record)
    place.write_text(spoil(json.loads(place.read_text())))
    sentence = refused(record)
    assert sentence.startswith(str(place))
    assert reason in sentence


def test_a_renamed_record_is_refused(record: Path) -> None:
    renamed = record.with_name("y.mindrecord")
    for ending in ("", ".db", ".json"):
        Path(f"{record}{ending}").rename(f"{renamed}{ending}")
    assert "was written as x.mindrecord, x.mindrecord.db; a MindRecord cannot be renamed" in refused(renamed)


def test_a_record_in_a_moved_folder_is_read(record: Path, tmp_path: Path) -> None:
    moved = tmp_path / "new place"
    moved.mkdir()
    for ending in ("", ".db", ".json"):
        shutil.move(f"{record}{ending}", moved)
    assert len(PairRecords(moved / record.name)) == 8


def test_an_existing_record_is_replaced(record: Path) -> None:
    write(record, [3, 4], (0, 2), 2)
    assert [each.pair_id for each in PairRecords(record)] == [3, 4]
    assert sorted(file.name for file in record.parent.iterdir()) == [f"x.mindrecord{e}" for e in ("", ".db", ".json")]


def test_a_failed_replacement_leaves_the_old_record(record: Path) -> None:
    before = verify(record)
    empty = dataclasses.replace(pair(1), chosen_ids=np.zeros(0, np.int32))
    with pytest.raises(BadRecord):
        write_records(record, [empty], provenance=PROVENANCE, span=(0, 1), total=1, overlong=0, rejected={})
    assert verify(record) == before


def test_a_half_replaced_record_is_refused(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = []

    def die_at_the_second(source: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) == 2:
            raise KeyboardInterrupt
        shutil.move(source, target)

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            write(record, [3, 4], (0, 2), 2)
    assert moves == [record, Path(f"{record}.db")]
    assert "has no x.mindrecord.json beside it" in refused(record)


@pytest.mark.parametrize("name", ["a:b.mindrecord", "a&b.mindrecord", " x.mindrecord"])
def test_a_name_that_mindspore_refuses_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="choose another"):
        check_destination(tmp_path / name)


def test_names_and_folders_in_any_script(tmp_path: Path) -> None:
    path = write(tmp_path / "偏好 [1]" / "数据 a.mindrecord", [0], (0, 1), 1)
    assert equal(PairRecords(path)[0], pair(0))


def test_parts_are_read_where_the_whole_is_absent(three_parts: Path) -> None:
    lines: list[str] = []
    records = PairRecords(three_parts, lines.append)
    assert [each.pair_id for each in records] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert lines == [f"{three_parts} is absent; reading its parts in {three_parts.parent / 'x.parts'}"]


def test_a_folder_of_parts_is_read_and_strange_files_in_it_are_ignored(three_parts: Path) -> None:
    folder = three_parts.parent / "x.parts"
    (folder / "x.json").write_text("{}")
    (folder / "rejected-0000.jsonl").write_text("{}\n")
    (folder / ".part-0000-00009.mindrecord.ab.tmp").mkdir()
    lines: list[str] = []
    assert len(PairRecords(folder, lines.append)) == 8
    assert lines == []


def test_the_whole_is_preferred_to_its_parts(three_parts: Path) -> None:
    write(three_parts, [4], (0, 1), 1)
    assert [each.pair_id for each in PairRecords(three_parts)] == [4]


def test_parts_come_in_row_order_not_in_name_order(tmp_path: Path) -> None:
    dst = tmp_path / "x.mindrecord"
    for part in range(12):
        write(part_path(dst, 0, part), [11 - part], (11 - part, 12 - part), 12)
    assert [each.pair_id for each in PairRecords(dst)] == list(range(12))


def test_rows_are_sorted_as_numbers(tmp_path: Path) -> None:
    dst = tmp_path / "x.mindrecord"
    for part, span in enumerate([(10, 12), (2, 10), (0, 2)]):
        write(part_path(dst, part, 0), range(*span), span, 12)
    assert [each.pair_id for each in PairRecords(dst)] == list(range(12))


def test_a_part_of_which_no_row_was_written_fills_its_place(tmp_path: Path) -> None:
    dst = tmp_path / "x.mindrecord"
    write(part_path(dst, 0, 0), [0], (0, 1), 3)
    write(part_path(dst, 1, 0), [], (1, 1), 3)
    write(part_path(dst, 2, 0), [], (1, 2), 3)
    write(part_path(dst, 3, 0), [2], (2, 3), 3)
    assert [each.pair_id for each in PairRecords(dst)] == [0, 2]


def test_a_record_without_pairs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no pair"):
        PairRecords(write(tmp_path / "x.mindrecord", [], (0, 3), 3))


def test_a_folder_without_parts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no part"):
        PairRecords(tmp_path)


def test_one_part_alone_is_not_taken_for_the_whole(three_parts: Path) -> None:
    with pytest.raises(BadRecord, match=r"rows 1 to 3 of 9 are missing, between the start and part-0000-00001"):
        PairRecords(part_path(three_parts, 0, 1))


def test_leftovers_are_cleared_by_the_worker_they_fall_to(three_parts: Path) -> None:
    folder = three_parts.parent / "x.parts"
    write(part_path(three_parts, 3, 0), [0], (0, 1), 9)
    (folder / "rejected-0001.jsonl").write_text("{}\n")
    (folder / ".part-0003-00001.mindrecord.ab.tmp").mkdir()
    (folder / "notes.txt").write_text("mine")
    clear_parts(three_parts, 1, 2)
    assert {file.name.split(".")[0] for file in folder.iterdir()} == {"part-0000-00000", "part-0000-00001", "notes"}
    clear_parts(three_parts, 0, 2)
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]
    clear_parts(three_parts.with_name("never.mindrecord"), 0, 1)
