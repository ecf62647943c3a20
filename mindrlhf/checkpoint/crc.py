"""The CRC-32 of bytes that are met out of order: parts are summed alone and joined afterwards."""

from __future__ import annotations

from functools import cache

_POLYNOMIAL = 0xEDB88320  # zlib's, lowest power in the highest bit
_ONE, _X = 1 << 31, 1 << 30


def join_crc(first: int, second: int, length: int) -> int:
    """zlib.crc32(a + b) from first = zlib.crc32(a), second = zlib.crc32(b) and length = len(b)."""
    return _times(_power(length), first) ^ second


def _times(a: int, b: int) -> int:
    """a b modulo the polynomial."""
    product, bit = 0, _ONE
    while bit:
        if a & bit:
            product ^= b
        bit >>= 1
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


def _power(length: int) -> int:
    """x^(8 length) modulo the polynomial: what `length` bytes behind it do to a sum."""
    product, exponent, k = _ONE, 8 * length, 0
    while exponent:
        if exponent & 1:
            product = _times(_square(k), product)
        exponent, k = exponent >> 1, k + 1
    return product


@cache
def _square(k: int) -> int:
    """x^(2^k) modulo the polynomial."""
    return _X if k == 0 else _times(_square(k - 1), _square(k - 1))
