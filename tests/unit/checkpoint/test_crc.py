from __future__ import annotations

import zlib

import numpy as np

from mindrlhf.checkpoint.crc import join_crc


def test_joined_sums_are_the_sum_of_the_whole() -> None:
    data = np.random.default_rng(0).bytes(100_003)
    whole = zlib.crc32(data)
    for cut in (0, 1, 2, 7, 8, 4096, 65_537, len(data) - 1, len(data)):
        first, second = data[:cut], data[cut:]
        assert join_crc(zlib.crc32(first), zlib.crc32(second), len(second)) == whole


def test_parts_beyond_four_gigabytes() -> None:
    # 2^33 zero bytes, summed by doubling; each doubling is checked by the case above for short parts.
    crc, length = zlib.crc32(bytes(1 << 20)), 1 << 20
    while length < 1 << 33:
        crc, length = join_crc(crc, crc, length), 2 * length
    halves = join_crc(zlib.crc32(bytes(1 << 10)), zlib.crc32(bytes((1 << 20) - (1 << 10))), (1 << 20) - (1 << 10))
    quarter, size = halves, 1 << 20
    total, end = quarter, size
    while end < 1 << 23:
        total, end = join_crc(total, quarter, size), end + size
    eighth = total
    for _ in range(10):
        eighth, end = join_crc(eighth, eighth, end), 2 * end
    assert (end, eighth) == (length, crc)
