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
    # zeros[k] is the sum of 2^k zero bytes; 1 + 1 + 2 + 4 + ... + 2^32 of them are 2^33.
    zeros = [zlib.crc32(bytes(1))]
    for k in range(33):
        zeros.append(join_crc(zeros[k], zeros[k], 1 << k))
    assert zeros[20] == zlib.crc32(bytes(1 << 20))
    crc, length = zeros[0], 1
    for k in range(33):
        crc, length = join_crc(zeros[k], crc, length), length + (1 << k)
    assert (length, crc) == (1 << 33, zeros[33])
