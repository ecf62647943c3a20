"""Randomness that depends on the seed alone, not on platform, worker count or history."""

from __future__ import annotations

import random

import numpy as np


def set_seeds(seed: int) -> None:
    """Seed Python, NumPy and MindSpore."""
    import mindspore

    random.seed(seed)
    np.random.seed(seed)
    mindspore.set_seed(seed)


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """Order of `n` records in an epoch: (n,) int64.

    Every worker computes it for itself, and so does a resumed run: it is a function of its three arguments
    (NumPy's PCG64 seeded with the pair), the same on every platform.
    """
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)
