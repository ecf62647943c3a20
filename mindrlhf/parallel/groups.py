"""The names that MindSpore's parallel passes give to groups of workers.

A group is called after its size and the hash of its ranks joined by "-", the hash being that of the C++ library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

WORLD = "nccl_world_group"  # the group of all workers, where the gate is open
_WORD = (1 << 64) - 1
_FACTOR = (0xC6A4A793 << 32) + 0x5BD1E995
_SEED = 0xC70F6907


def group_name(ranks: Sequence[int]) -> str:
    """The name of the group of these ranks."""
    ordered = sorted(ranks)
    return f"{len(ordered)}-{_hash('-'.join(map(str, ordered)).encode())}"


@lru_cache(maxsize=1)
def known_groups(world: int) -> dict[str, tuple[int, ...]]:
    """Name -> ranks of every group that a grid of `world` workers can have: base + i s1 + j s2."""
    return {group_name(ranks): ranks for ranks in set(_lattices(world))}


def _lattices(world: int) -> Iterator[tuple[int, ...]]:
    divisors = [number for number in range(1, world + 1) if world % number == 0]
    for step in divisors:
        for count in (number for number in divisors if number * step <= world):
            for wide_step in divisors:
                for wide_count in divisors:
                    if wide_count > 1 and (wide_step < step * count or wide_count * wide_step > world):
                        continue
                    offsets = [i * step + j * wide_step for j in range(wide_count) for i in range(count)]
                    for base in range(world - offsets[-1]):
                        yield tuple(base + offset for offset in offsets)


def _hash(data: bytes) -> int:
    """std::hash of a string in libstdc++ on 64 bits: MurmurHash2, 64 bits, variant A (Appleby, 2008)."""
    value = _SEED ^ (len(data) * _FACTOR & _WORD)
    whole = len(data) & ~7
    for start in range(0, whole, 8):
        part = int.from_bytes(data[start : start + 8], "little") * _FACTOR & _WORD
        part = (part ^ part >> 47) * _FACTOR & _WORD
        value = (value ^ part) * _FACTOR & _WORD
    if len(data) > whole:
        value = (value ^ int.from_bytes(data[whole:], "little")) * _FACTOR & _WORD
    value = (value ^ value >> 47) * _FACTOR & _WORD
    return value ^ value >> 47
