"""Reference log-probs: of pairs, computed once while the data are prepared, or of rows while training goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

from mindrlhf.cells.scoring import WholeLogps
from mindrlhf.checkpoint import store
from mindrlhf.config.schema import Config
from mindrlhf.data.records import Pair
from mindrlhf.data.rows import Rows, padded, round_up, row_length
from mindrlhf.parallel.layout import Layout
from mindrlhf.runtime.device import Device
from mindrlhf.trainers.frozen import PREFIX, SCORED, attributes, frozen_scorer
from mindrlhf.trainers.policy import Source, build_options
from mindrlhf.trainers.provenance import require_known_token
from mindrlhf.trainers.registry import sequence_scorer
from mindrlhf.trainers.weights import compiled_slices, first_weights, load_slices, load_weights, named

PAIRS_PER_BATCH = 4
SHORTEST_ROW = 128  # rows are as long as the record's, or a half of that, and so on down to this: one graph each


class ReferenceScorer:
    """Fills in the reference fields of pairs, batched by length so that little is padded.

    `provenance` says which weights they come from.
    """

    def __init__(self, config: Config, device: Device, source: Source, seq_len: int) -> None:
        longest = row_length(seq_len)
        self.lengths = row_lengths(longest)
        self.cells: dict[int, WholeLogps] = {}
        self.family = source.family
        options = build_options(config, device, longest, frozen=True)
        self.config = attributes(source.family.from_hf_config(source.hf_config, options))
        self.model = source.family.build(self.config)
        self.model.set_train(False)
        shapes = json.dumps(source.hf_config, sort_keys=True)
        self.provenance = {
            "reference_fingerprint": load_weights(source, named(self.model)),
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
                require_known_token(token, self.config.vocab_size, f"row {pair.pair_id + 1} of the data")
            for index, pair, whole, shared in zip(chosen, batch, *self._sums(batch)):
                scored[index] = replace(
                    pair,
                    ref_chosen_logps=float(whole[0]),
                    ref_rejected_logps=float(whole[1]),
                    ref_chosen_shared_logps=float(shared[0]),
                    ref_rejected_shared_logps=float(shared[1]),
                )
        return [scored[index] for index in range(len(pairs))]

    def _sums(self, batch: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
        """Over all scored tokens and over the shared length: (B,2) float32 each."""
        needed = max(_length(pair) for pair in batch) - 1
        length = next(length for length in self.lengths if length >= needed)
        rows = padded([*batch, *[None] * (PAIRS_PER_BATCH - len(batch))], length, length, 1, 1)
        return _scores(self._cell(length), rows)

    def _cell(self, length: int) -> WholeLogps:
        if length not in self.cells:
            cell = sequence_scorer(self.family, self.model, self.config, seq_length=length, shared=True)
            self.cells[length] = WholeLogps(cell).set_train(False)
        return self.cells[length]


class OnlineReference:
    """A frozen copy of a model, which scores the rows of each batch while another one is trained."""

    def __init__(
        self,
        source: Source,
        model_config: dict[str, Any],
        *,
        collation: str,
        device: Device,
        layout: Layout,
        shared: bool,
    ) -> None:
        """`model_config`: MindFormers'; `layout`: the policy's; `shared`: see LD-DPO."""
        self.source, self.sliced = source, layout.semi_auto
        self.model, self.cell = frozen_scorer(
            source.family, attributes(model_config), layout, collation=collation, shared=shared
        )
        self.parameters = {name[len(PREFIX) :]: parameter for name, parameter in named(self.model).items()}
        self.fingerprint = first_weights(source, self.parameters, device, layout)

    def lay_out(self, rows: Sequence[Tensor], device: Device, layout: Layout) -> None:
        """Compile under semi-auto parallel for such rows, and read the slices that this rank holds."""
        weights = {parameter.name: parameter for parameter in self.parameters.values()}
        found = compiled_slices(self.cell, rows[: len(SCORED)], weights, device.rank, layout)
        mine = {name[len(PREFIX) :]: box for name, box in found.boxes.items()}
        load_slices(self.source, self.parameters, mine, device.rank, device.world)

    def fill(self, rows: Rows) -> Rows:
        """The rows with the reference's log-probs, and those of the shared length where asked for."""
        logps, shared = _scores(self.cell, rows)
        return rows._replace(ref_logps=logps, ref_shared_logps=shared)

    def follow(self, policy: nn.Cell, share: float) -> None:
        """reference := share x policy + (1 - share) x reference.

        Gorbatovski et al. (TR-DPO), arXiv 2404.09656, eq. 5 and 6: soft update below share 1, hard update at 1.
        """
        for parameter in policy.get_parameters():
            mine = self.parameters[parameter.name]
            ops.assign(mine, share * parameter + (1.0 - share) * mine)

    def state(self) -> dict[str, np.ndarray]:
        """The weights, under names of their own."""
        return {parameter.name: parameter.asnumpy() for parameter in self.parameters.values()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take up a `state`, complete or refused."""
        mine = {parameter.name: parameter for parameter in self.parameters.values()}
        store.load_parameters(mine, arrays, "the checkpoint to resume from", sliced=self.sliced)


def row_lengths(longest: int) -> list[int]:
    """`longest` and its halves down to SHORTEST_ROW, ascending, each a multiple of 16."""
    lengths = [longest]
    while lengths[0] >= 2 * SHORTEST_ROW:
        lengths.insert(0, round_up(-(-lengths[0] // 2)))
    return lengths


def _length(pair: Pair) -> int:
    return len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))


def _scores(cell: WholeLogps, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """(U,2K) float32 log-probs, and those of the shared length."""
    logps, shared = cell(*(Tensor(getattr(rows, field)) for field in SCORED))
    return logps.asnumpy(), shared.asnumpy()
