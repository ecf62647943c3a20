"""What the tests over every registered family share: its micro models, loaded, and rows of their sequences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from micro_models import BETA, FIGURES, HOW_TO, LENGTH, LOSS, MODELS, PAIRS, REFERENCE, figures, sequences, weights
from mindspore import nn

from mindrlhf.checkpoint.store import load_parameters
from mindrlhf.config.load import load_config
from mindrlhf.data.records import Pair
from mindrlhf.data.rows import Rows, padded
from mindrlhf.models import BuildOptions, ModelFamily, families
from mindrlhf.trainers.registry import build_preference_cell, loss_settings

OPTIONS = BuildOptions(seq_length=LENGTH)
CLOSE = 2e-5  # of the largest value
VARIANTS = [(family, name) for family in families() for name in MODELS.get(family, {})]
FIRST = [(family, next(iter(MODELS[family]))) for family in families() if MODELS.get(family)]
# What compiles for long runs of the first variant of a family in the short tests, of the others in the slow ones.
COMPILED = [
    pytest.param(variant, id=variant[1], marks=[] if variant in FIRST else pytest.mark.slow) for variant in VARIANTS
]
# Training with and without accumulation; of the further variants, those whose gradients meet otherwise. Experts are
# balanced over a micro-batch, as in TRL, so that accumulation gives other figures there.
TRAINED = [
    pytest.param(variant, passes, id=f"{variant[1]}-{passes}")
    for variant in VARIANTS
    for passes in (1, 2)
    if variant in FIRST or (passes == 1 and variant[1].endswith(("-tied", "-balanced")))
]
EVERY_VARIANT = pytest.mark.parametrize("variant", VARIANTS, ids=[name for _, name in VARIANTS])


@dataclass(frozen=True)
class Variant:
    """One micro model: its family, its config.json, what torch computes on it, its tensors."""

    name: str
    family: ModelFamily
    config: dict[str, Any]
    figures: dict[str, Any]

    @property
    def balanced(self) -> bool:
        """Whether its routers' loss is minimised too."""
        return bool(self.config.get("output_router_logits"))

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """By their Hugging Face names."""
        return weights(self.figures["shapes"])

    def load(self, cell: nn.Cell) -> None:
        """Give the weights to the model in the cell."""
        arrays = self.family.hf_to_ms(self.weights, self.config)
        load_parameters({parameter.name: parameter for parameter in cell.get_parameters()}, arrays, self.name)


@cache
def _figures(family: str) -> dict[str, Any]:
    return figures(family)


def variant_of(family: str, name: str) -> Variant:
    """The variant of that name; the test fails where it has no figures."""
    if name not in MODELS.get(family, {}) or not (FIGURES / f"{family}.json").is_file():
        pytest.fail(f"no figures of the family {family}: {HOW_TO}")
    found = _figures(family)
    if name not in found:
        pytest.fail(f"no figures of {name}: run tests/golden/make_figures.py {family}")
    return Variant(name, families()[family], MODELS[family][name], found[name])


def preference_cell(variant: Variant) -> nn.Cell:
    """The micro model in its preference cell, with the formula's weights."""
    loss = loss_settings(load_config(None, [f"rlhf.loss={LOSS}", f"rlhf.beta={BETA}"]))
    settings = variant.family.from_hf_config(variant.config, OPTIONS)
    cell = build_preference_cell(variant.family, settings, loss)
    variant.load(cell)
    return cell


def worst(ours: Any, theirs: Any) -> float:
    """The largest difference, in units of their largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def batches(passes: int) -> list[Rows]:
    """PAIRS and a filler as micro-batches of one global batch."""
    pairs = [
        Pair(number, *(np.array(ids, np.int32) for ids in answers), *reference, *reference)
        for number, (answers, reference) in enumerate(zip(PAIRS, REFERENCE))
    ]
    chosen_tokens = sum(len(chosen) for _, chosen, _ in PAIRS)
    filled = [*pairs, None]
    size = len(filled) // passes
    parts = [filled[start : start + size] for start in range(0, len(filled), size)]
    return [padded(part, LENGTH, LENGTH, len(PAIRS), chosen_tokens) for part in parts]


def layouts(sequence: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """One sequence as rows (input_ids, position_ids, segment_ids), with the columns where it stands in each.

    Padded on the right and on the left; behind the other sequence of its pair, where positions restart; and packed
    with the other answer of its pair behind one prompt.
    """
    prompt, *answers = PAIRS[sequence // 2]
    branch = sequence % 2
    ids, start = sequences()[sequence], len(prompt)
    other = sequences()[sequence ^ 1]
    alone = np.stack([ids, np.arange(len(ids)), np.ones(len(ids))])
    one_by_one = np.stack(
        [
            np.concatenate([other, ids]),
            np.concatenate([np.arange(len(other)), np.arange(len(ids))]),
            np.repeat([1, 4], [len(other), len(ids)]),
        ]
    )
    shared = np.stack(
        [
            np.concatenate([prompt, *answers]),
            np.concatenate([np.arange(start), *(start + np.arange(len(answer)) for answer in answers)]),
            np.repeat([1, 2, 3], [start, *map(len, answers)]),
        ]
    )
    columns = np.arange(len(ids))
    behind = start + branch * len(answers[0]) + np.arange(len(answers[branch]))
    return {
        "right": (fill(alone, 0), columns),
        "left": (fill(alone, LENGTH - len(ids)), LENGTH - len(ids) + columns),
        "one by one": (fill(one_by_one, 0), len(other) + columns),
        "shared prompt": (fill(shared, 0), np.concatenate([np.arange(start), behind])),
    }


def fill(columns: np.ndarray, start: int) -> np.ndarray:
    """(3,n) as (3,LENGTH), zeros around it."""
    row = np.zeros((3, LENGTH), np.int32)
    row[:, start : start + columns.shape[1]] = columns
    return row


def padded_left(rows: Rows) -> Rows:
    """The same rows with their padding in front."""
    shifts = [LENGTH - int((segments > 0).sum()) for segments in rows.segment_ids]
    moved = {
        name: np.stack([np.roll(row, shift) for row, shift in zip(getattr(rows, name), shifts)])
        for name in ("input_ids", "position_ids", "segment_ids")
    }
    scored = rows.sequence_index < 2
    return rows._replace(predict_from=rows.predict_from + np.array(shifts, np.int32)[:, None] * scored, **moved)


def shared_prompts() -> Rows:
    """PAIRS, each in one row: prompt, chosen, rejected; positions restart behind the prompt, whose last token predicts
    the first of both."""
    parts = []
    for number, (prompt, *answers) in enumerate(PAIRS):
        input_ids, position_ids, segment_ids = layouts(2 * number)["shared prompt"][0]
        predict_from, targets, index = np.zeros((3, LENGTH), np.int32)
        index[:] = 2
        start, scored = len(prompt), 0
        for branch, answer in enumerate(answers):
            behind = scored + len(answer)
            predict_from[scored:behind] = [len(prompt) - 1, *range(start, start + len(answer) - 1)]
            targets[scored:behind], index[scored:behind] = answer, branch
            start, scored = start + len(answer), behind
        fields = [input_ids, position_ids, segment_ids, predict_from, targets, index, np.zeros(LENGTH, np.float32)]
        parts.append(fields)
    stacked = [np.stack(field) for field in zip(*parts)]
    like = batches(1)[0]
    count = len(PAIRS)
    rest = {name: getattr(like, name)[:count] for name in ("ref_logps", "ref_shared_logps", "pair_mask")}
    return Rows(*stacked, **rest, num_pairs=like.num_pairs, num_chosen_tokens=like.num_chosen_tokens)
