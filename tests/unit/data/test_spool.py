from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mindrlhf.data.records import Pair
from mindrlhf.data.spool import FIXED_BYTES, Sizes, Spool, sizes_of


def pair(row: int, *sums: float) -> Pair:
    return Pair(row, *(np.arange(row + extra, dtype=np.int32) - 5 for extra in (1, 2, 4)), *sums)


def same(one: Pair, two: Pair) -> bool:
    """Bit for bit."""
    for field in dataclasses.fields(Pair):
        ours, theirs = getattr(one, field.name), getattr(two, field.name)
        if (ours is None) != (theirs is None) or np.asarray(ours).tobytes() != np.asarray(theirs).tobytes():
            return False
    return one.chosen_ids.dtype == two.chosen_ids.dtype


@pytest.mark.parametrize("sums", [(), (-0.0, 1e-45, -3.4e38, -123.456)])
def test_pairs_come_back_bit_for_bit_any_number_of_times(tmp_path: Path, sums: tuple[float, ...]) -> None:
    given = [pair(row, *(float(np.float32(value)) for value in sums)) for row in range(50)]
    spool = Spool(tmp_path)
    spool.add(given[:20])
    spool.add([])
    spool.add(given[20:])
    for _ in range(2):
        got = list(spool)
        assert len(got) == len(given)
        assert all(map(same, got, given))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_spool(tmp_path: Path) -> None:
    assert list(Spool(tmp_path)) == []
    assert Spool(tmp_path).sizes == Sizes(0, 0, 0, 0)


def test_sizes_are_of_all_pairs_however_they_are_put_together(tmp_path: Path) -> None:
    pairs = [pair(row) for row in (3, 9, 1)]
    spool = Spool(tmp_path)
    spool.add(pairs)
    largest = FIXED_BYTES + 4 * (10 + 11 + 13)
    rest = 2 * FIXED_BYTES + 4 * (4 + 5 + 7) + 4 * (2 + 3 + 5)
    assert spool.sizes == sizes_of(pairs) == Sizes(3, largest, largest + rest, 13)
    assert sizes_of(pairs[:1]) + sizes_of(pairs[1:]) == spool.sizes
