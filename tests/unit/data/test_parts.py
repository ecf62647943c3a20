from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindrlhf.data.encode_rows import Outcome
from mindrlhf.data.formats import Rejected
from mindrlhf.data.merge import merge
from mindrlhf.data.parts import ROWS_PER_PAIR, Block, Parts, blocks
from mindrlhf.data.preference import EncodedPair
from mindrlhf.data.records import PairRecords, part_folder, part_path
from mindrlhf.data.rejected import rejected_file
from mindrlhf.data.sidecar import sidecar_path, verify
from mindrlhf.runtime.errors import UserError

TOTAL, PAIRS = 40, 4  # of the source, of a part
PROVENANCE = {"dataset_sha256": "d1", "seq_len": 64, "reference": "none"}


def outcome(row: int) -> Outcome:
    """Every 5th row is rejected, every 7th overlong."""
    if row % 5 == 0:
        return Rejected(row + 1, "null", "prompt is null", b"{}")
    if row % 7 == 0:
        return None
    return EncodedPair(*(np.arange(1, row + extra, dtype=np.int32) for extra in (2, 3, 5)))


def made(start: int, stop: int, most_pairs: int = PAIRS) -> list[Block]:
    return list(blocks(map(outcome, range(start, stop)), start, most_pairs))


def parts_of(dst: Path, rank: int = 0, workers: int = 2, **provenance: Any) -> Parts:
    return Parts(dst, rank, workers, TOTAL, {**PROVENANCE, **provenance})


def run(dst: Path, workers: int = 2, most: int | None = None, **provenance: Any) -> list[int]:
    """What all workers do, one after the other, each at `most` a number of parts; how many parts each has written."""
    shares = [parts_of(dst, rank, workers, **provenance) for rank in range(workers)]
    for share in shares:
        share.clear()
    written = []
    for share in shares:
        found = [block for span in share.missing() for block in made(*span)][:most]
        for block in found:
            share.add(block)
        written.append(len(found))
    return written


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    return tmp_path / "x.mindrecord"


def bytes_of(dst: Path) -> dict[str, bytes]:
    """The merged record and everything beside it."""
    merge(part_folder(dst), dst, max_rejected=1.0)
    return {path.name: path.read_bytes() for path in dst.parent.iterdir() if path.is_file()}


def test_blocks_account_for_every_row_and_number_pairs_by_row() -> None:
    cut = made(3, 30)
    assert [(block.start, block.stop) for block in cut] == [(3, 9), (9, 14), (14, 20), (20, 27), (27, 30)]
    for block in cut:
        rows = range(block.start, block.stop)
        assert [pair.pair_id for pair in block.pairs] == [row for row in rows if row % 5 and row % 7]
        assert block.overlong == sum(row % 7 == 0 and row % 5 != 0 for row in rows)
        assert block.reasons == ({"null": count} if (count := sum(row % 5 == 0 for row in rows)) else {})
    assert len(cut[0].pairs) == PAIRS
    assert made(3, 3) == []


def test_a_run_that_continues_at_a_cut_makes_the_same_cuts() -> None:
    whole = [(block.start, block.stop) for block in made(0, TOTAL)]
    for index, (start, stop) in enumerate(whole):
        assert [(block.start, block.stop) for block in made(start, stop)] == [(start, stop)]
        assert [(block.start, block.stop) for block in made(start, TOTAL)] == whole[index:]


def test_a_block_ends_where_no_row_is_a_pair() -> None:
    bad = [Rejected(1, "null", "", b"")] * 150
    assert [block.stop - block.start for block in blocks(bad, 0, PAIRS)] == [PAIRS * ROWS_PER_PAIR] * 2 + [22]


def test_nothing_is_there_to_keep_at_first(dst: Path) -> None:
    share = parts_of(dst, rank=1)
    assert (share.kept_rows, share.missing(), share.replaced) == (0, [(20, 40)], "")
    share.clear()
    assert not part_folder(dst).exists()


def test_what_is_complete_is_kept_to_the_last_part(dst: Path) -> None:
    first = run(dst)
    before = {path: path.stat().st_mtime_ns for path in part_folder(dst).iterdir()}
    assert sum(parts_of(dst, rank).kept_rows for rank in range(2)) == TOTAL
    assert min(first) > 1
    assert run(dst) == [0, 0]
    assert {path: path.stat().st_mtime_ns for path in part_folder(dst).iterdir()} == before


@pytest.mark.parametrize("most", [0, 1, 3])
def test_a_run_that_stopped_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, most: int) -> None:
    whole, stopped = tmp_path / "whole" / "x.mindrecord", tmp_path / "stopped" / "x.mindrecord"
    everything = run(whole)
    assert run(stopped, most=most) == [most, most]
    assert run(stopped) == [count - most for count in everything]
    assert bytes_of(stopped) == bytes_of(whole)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        _flip,
        lambda path: Path(f"{path}.db").unlink(),
        lambda path: sidecar_path(path).unlink(),
        lambda path: sidecar_path(path).write_text("{"),
        lambda path: rejected_file(path).write_text("{}\n"),
        lambda path: [file.unlink() for file in path.parent.glob(f"{path.name}*")],
    ],
    ids=["flipped", "no index", "no sidecar", "cut sidecar", "rejected lines", "removed"],
)
def test_a_damaged_part_in_the_middle_is_made_again_and_no_other(tmp_path: Path, damage: Any) -> None:
    whole, spoilt = tmp_path / "whole" / "x.mindrecord", tmp_path / "spoilt" / "x.mindrecord"
    run(whole)
    run(spoilt)
    damage(part_path(spoilt, 0, 1))
    assert run(spoilt) == [1, 0]
    assert bytes_of(spoilt) == bytes_of(whole)


def test_parts_of_another_number_of_workers_are_refused_and_stay(dst: Path) -> None:
    run(dst, most=1)
    before = sorted(part_folder(dst).iterdir())
    for workers in (1, 3):
        for rank in range(workers):
            with pytest.raises(UserError) as refused:
                parts_of(dst, rank, workers)
            assert str(refused.value) == (
                f"{part_folder(dst)} was begun by 2 worker(s), and now there are {workers}; run with 2, or remove the "
                f"folder to start anew"
            )
    assert sorted(part_folder(dst).iterdir()) == before


def test_parts_of_another_run_are_replaced_by_any_number_of_workers(dst: Path) -> None:
    run(dst)
    share = parts_of(dst, 0, 3, seq_len=32)
    assert (share.replaced, share.kept_rows) == ("its seq_len is 64, not 32", 0)
    run(dst, workers=3, seq_len=32)
    merge(part_folder(dst), dst, max_rejected=1.0)
    assert PairRecords(dst).seq_len == 32


def test_parts_cut_elsewhere_are_kept_where_they_fit(dst: Path) -> None:
    """Another --save_interval loses nothing."""
    run(dst, most=2)
    share = parts_of(dst, 0)
    share.clear()
    kept = share.kept_rows
    (gap,) = share.missing()
    assert gap[0] == kept > 0
    for block in made(*gap, most_pairs=9):
        share.add(block)
    assert parts_of(dst, 0).missing() == []
    assert parts_of(dst, 0).kept_rows == 20


def test_rows_that_were_done_twice_are_kept_once(dst: Path) -> None:
    share = parts_of(dst, 0)
    for span in ((0, 12), (5, 20), (12, 20)):
        share.add(Block(*span, overlong=span[1] - span[0]))
    again = parts_of(dst, 0)
    assert list(again.kept) == [(0, 12), (12, 20)]
    again.clear()
    assert not part_path(dst, 0, 1).exists()


def test_what_a_killed_run_left_half_done_is_cleared(dst: Path) -> None:
    run(dst, most=1)
    folder = part_folder(dst)
    (folder / ".part-0001-00001.mindrecord.ab12.tmp").mkdir()
    half = part_path(dst, 1, 1)
    half.write_bytes(b"half")
    share = parts_of(dst, 1)
    share.clear()
    assert not half.exists()
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    assert verify(part_path(dst, 1, 0)).workers == 2


def test_the_merged_record_does_not_tell_how_many_workers_made_it(tmp_path: Path) -> None:
    made_by = {}
    for workers in (1, 2, 5):
        dst = tmp_path / str(workers) / "x.mindrecord"
        run(dst, workers=workers)
        made_by[workers] = bytes_of(dst)
    assert made_by[1] == made_by[2] == made_by[5]
    assert set(made_by[1]) == {f"x.mindrecord{ending}" for ending in ("", ".db", ".json", ".rejected.jsonl")}
