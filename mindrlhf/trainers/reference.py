"""Reference log-probs of pairs, computed once, while the data are prepared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mindrlhf.config.schema import Config
from mindrlhf.data.records import Pair
from mindrlhf.data.rows import Rows, padded, round_up, row_length
from mindrlhf.runtime.device import Device
from mindrlhf.trainers.policy import Source, build_options, load_weights
from mindrlhf.trainers.provenance import require_known_token

if TYPE_CHECKING:
    from mindspore import nn

PAIRS_PER_BATCH = 4
SHORTEST_ROW = 128  # rows are as long as the record's, or a half of that, and so on down to this: one graph each


class ReferenceScorer:
    """Fills in the reference fields of pairs, batched by length so that little is padded.

    `provenance` says which weights they come from.
    """

    def __init__(self, config: Config, device: Device, source: Source, seq_len: int) -> None:
        longest = row_length(seq_len)
        self.lengths = row_lengths(longest)
        self.cells: dict[int, nn.Cell] = {}
        self.family = source.family
        options = build_options(config, device, longest)
        model_config = source.family.from_hf_config(source.hf_config, options)
        self.vocabulary: int = model_config["vocab_size"]
        self.model = source.family.build(model_config)
        self.model.set_train(False)
        shapes = json.dumps(source.hf_config, sort_keys=True)
        self.provenance = {
            "reference_fingerprint": load_weights(source, self.model),
            "reference_config_hash": hashlib.sha256(shapes.encode()).hexdigest(),
            "dtype": options.compute_dtype,
        }

    def score(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs in their order, with sums over all scored tokens and over the length both answers share."""
        scored: dict[int, Pair] = {}
        by_length = sorted(range(len(pairs)), key=lambda index: _length(pairs[index]))
        for start in range(0, len(pairs), PAIRS_PER_BATCH):
            chosen = by_length[start : start + PAIRS_PER_BATCH]
            batch = [pairs[index] for index in chosen]
            for pair in batch:
                token = max(int(ids.max()) for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))
                require_known_token(token, self.vocabulary, f"row {pair.pair_id + 1} of the data")
            for index, pair, logps in zip(chosen, batch, self._token_logps(batch)):
                scored[index] = _with_reference(pair, logps)
        return [scored[index] for index in range(len(pairs))]

    def _token_logps(self, batch: Sequence[Pair]) -> np.ndarray:
        """(B,2,T) float32."""
        from mindspore import Tensor

        needed = max(_length(pair) for pair in batch) - 1
        length = next(length for length in self.lengths if length >= needed)
        filled = [*batch, *[None] * (PAIRS_PER_BATCH - len(batch))]
        rows = padded(filled, length, length, 1, 1)
        fields = Rows._fields[:5]
        logps = self._cell(length)(*(Tensor(getattr(rows, field)) for field in fields))
        return logps.asnumpy().reshape(PAIRS_PER_BATCH, 2, length)

    def _cell(self, length: int) -> nn.Cell:
        if length not in self.cells:
            from mindrlhf.cells.reference import TokenLogpsCell

            cell = TokenLogpsCell(self.family.backbone(self.model), self.family.head_weight(self.model), length)
            self.cells[length] = cell.set_train(False)
        return self.cells[length]


def row_lengths(longest: int) -> list[int]:
    """`longest` and its halves down to SHORTEST_ROW, ascending, each a multiple of 16."""
    lengths = [longest]
    while lengths[0] >= 2 * SHORTEST_ROW:
        lengths.insert(0, round_up(-(-lengths[0] // 2)))
    return lengths


def _length(pair: Pair) -> int:
    return len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))


def _with_reference(pair: Pair, logps: np.ndarray) -> Pair:
    chosen, rejected = len(pair.chosen_ids), len(pair.rejected_ids)
    shared = min(chosen, rejected)
    sums = logps.astype(np.float64)
    return replace(
        pair,
        ref_chosen_logps=float(sums[0, :chosen].sum()),
        ref_rejected_logps=float(sums[1, :rejected].sum()),
        ref_chosen_shared_logps=float(sums[0, :shared].sum()),
        ref_rejected_shared_logps=float(sums[1, :shared].sum()),
    )
