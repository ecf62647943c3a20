"""From the logits of the next token to the token."""

from __future__ import annotations

import numpy as np


def pick(
    logits: np.ndarray,
    generator: np.random.Generator | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> np.ndarray:
    """One token for each row of `logits` (R,V) float32: the best where there is no generator, else one drawn.

    Drawn from softmax(logits / temperature), cut to the `top_k` best (0: all), then to the fewest best whose
    probabilities reach `top_p`, as in transformers: https://arxiv.org/abs/1904.09751 for top_p.
    """
    if generator is None:
        return logits.argmax(axis=-1)
    scaled = logits.astype(np.float64) / temperature
    if 0 < top_k < scaled.shape[-1]:
        least = np.partition(scaled, -top_k, axis=-1)[:, -top_k, None]
        scaled = np.where(scaled < least, -np.inf, scaled)
    probabilities = _softmax(scaled)
    if top_p < 1.0:
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        ranked = np.take_along_axis(probabilities, order, axis=-1)
        # A token stays while those before it do not reach top_p, so the first always does.
        before = ranked.cumsum(axis=-1) - ranked
        kept = np.zeros_like(probabilities, dtype=bool)
        np.put_along_axis(kept, order, before < top_p, axis=-1)
        probabilities = np.where(kept, probabilities, 0.0)
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
    return np.array([generator.choice(len(row), p=row) for row in probabilities])


def _softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
