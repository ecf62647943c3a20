"""Every registered family against PyTorch and transformers: logits, log-probs, loss and gradients of micro models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micro_models import (
    BETA,
    LENGTH,
    LOSS,
    MODELS,
    PAIRS,
    REFERENCE,
    TRAINING,
    WARMUP_STEPS,
    newer_form,
    probes,
    sequences,
    weights,
)
from mindspore import Tensor, nn, ops

from mindrlhf.cells.preference import SUMS
from mindrlhf.cells.scoring import SegmentMask
from mindrlhf.cells.train_step import TrainStep
from mindrlhf.checkpoint.store import load_parameters
from mindrlhf.config.load import load_config
from mindrlhf.config.schema import LrSchedule, Optimizer
from mindrlhf.data.records import Pair
from mindrlhf.data.rows import Rows, padded
from mindrlhf.models import BuildOptions, ModelFamily, families, get_family
from mindrlhf.trainers.optimizer import build_optimizer, learning_rates
from mindrlhf.trainers.registry import build_preference_cell, loss_settings

FIGURES = json.loads(Path(__file__).with_name("micro_figures.json").read_text(encoding="utf-8"))
VARIANTS = [(family, name) for family, variants in MODELS.items() for name in variants]
OPTIONS = BuildOptions(seq_length=LENGTH)
CLOSE = 2e-5

pytestmark = pytest.mark.usefixtures("cpu")


@dataclass(frozen=True)
class Built:
    """One micro model in its preference cell."""

    name: str
    family: ModelFamily
    figures: dict[str, Any]
    cell: nn.Cell


@pytest.fixture(scope="module", params=VARIANTS, ids=[name for _, name in VARIANTS])
def built(request: pytest.FixtureRequest, cpu: object) -> Built:
    family, name = get_family(request.param[0]), request.param[1]
    config = MODELS[family.name][name]
    loss = loss_settings(load_config(None, [f"rlhf.loss={LOSS}", f"rlhf.beta={BETA}"]))
    cell = build_preference_cell(family, family.from_hf_config(config, OPTIONS), loss, explicit_reduction=True)
    arrays = family.hf_to_ms(weights(config), config)
    load_parameters({parameter.name: parameter for parameter in cell.get_parameters()}, arrays, name)
    return Built(name, family, FIGURES[name], cell)


class Logits(nn.Cell):
    """(input_ids, position_ids, segment_ids (R,S)) -> logits (R,S,V)."""

    def __init__(self, backbone: nn.Cell, head: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.backbone, self.head, self.mask = backbone, head, SegmentMask(LENGTH)

    def construct(self, input_ids, position_ids, segment_ids):  # type: ignore[no-untyped-def]
        return ops.matmul(self.backbone(input_ids, position_ids, self.mask(segment_ids)), self.head().T)


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


def test_every_family_has_figures() -> None:
    assert set(MODELS) == set(families())
    assert {name for _, name in VARIANTS} == set(FIGURES)


def layouts(sequence: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """One sequence as three rows (input_ids, position_ids, segment_ids), with the columns where it stands in each.

    Padded on the right, on the left, and packed with the other answer of its pair behind a shared prompt.
    """
    prompt, *answers = PAIRS[sequence // 2]
    ids, start = sequences()[sequence], len(prompt)
    alone = np.stack([ids, np.arange(len(ids)), np.ones(len(ids))])
    together = np.stack(
        [
            np.concatenate([prompt, *answers]),
            np.concatenate([np.arange(start), *(start + np.arange(len(answer)) for answer in answers)]),
            np.repeat([1, 2, 3], [start, *map(len, answers)]),
        ]
    )
    rows = [fill(alone, 0), fill(alone, LENGTH - len(ids)), fill(together, 0)]
    behind = start + sequence % 2 * len(answers[0]) + np.arange(len(answers[sequence % 2]))
    first = np.arange(len(ids))
    return list(zip(rows, [first, LENGTH - len(ids) + first, np.concatenate([np.arange(start), behind])]))


def fill(columns: np.ndarray, start: int) -> np.ndarray:
    row = np.zeros((3, LENGTH), np.int32)
    row[:, start : start + columns.shape[1]] = columns
    return row


def test_logits_however_the_row_is_laid_out(built: Built) -> None:
    cases = [(sequence, *case) for sequence in map(int, built.figures["logits"]) for case in layouts(sequence)]
    rows = np.stack([row for _, row, _ in cases], axis=1)
    logits = Logits(built.cell.score.backbone, built.cell.score.head)(*map(Tensor, rows)).asnumpy()
    for row, (sequence, _, columns) in enumerate(cases):
        assert worst(logits[row, columns], built.figures["logits"][str(sequence)]) < CLOSE, row


def test_log_probs_loss_and_gradients(built: Built) -> None:
    parameters = built.cell.trainable_params()
    (loss, _, logps, _), gradients = ops.value_and_grad(built.cell, None, parameters, has_aux=True)(
        *map(Tensor, batches(1)[0])
    )
    assert worst(logps.asnumpy()[:-1], built.figures["logps"]) < CLOSE
    assert worst(loss.asnumpy(), built.figures["loss"]) < CLOSE
    by_name = {parameter.name: gradient.asnumpy() for parameter, gradient in zip(parameters, gradients)}
    ours = built.family.ms_to_hf(by_name, MODELS[built.family.name][built.name])
    assert set(ours) == set(built.figures["grad_norms"])
    for name, gradient in ours.items():
        norm = built.figures["grad_norms"][name]
        assert np.linalg.norm(gradient.astype(np.float64)) == pytest.approx(norm, rel=CLOSE), name
        entries = gradient.reshape(-1)[probes(gradient.size)]
        assert np.abs(entries - built.figures["grad_entries"][name]).max() < CLOSE * norm, name


@pytest.mark.slow
@pytest.mark.parametrize("passes", [1, 2])
def test_ten_steps_of_training(built: Built, passes: int) -> None:
    cell = built.cell
    config = MODELS[built.family.name][built.name]
    arrays = built.family.hf_to_ms(weights(config), config)
    load_parameters({parameter.name: parameter for parameter in cell.get_parameters()}, arrays, built.name)
    steps, rate = TRAINING["steps"], TRAINING["learning_rate"]
    schedule = LrSchedule(type="linear", warmup_steps=WARMUP_STEPS)
    settings = Optimizer(learning_rate=rate, weight_decay=TRAINING["weight_decay"], eps=TRAINING["eps"])
    optimizer = build_optimizer(cell, settings, learning_rates(rate, schedule, steps))
    step = TrainStep(cell, optimizer, TRAINING["max_grad_norm"], passes, reduce_over=1).set_train()
    figures: dict[str, list[float]] = {"loss": [], "margins": [], "grad_norm": []}
    for _ in range(steps):
        for number, rows in enumerate(batches(passes), start=1):
            sums, norm, _ = step(number == passes, *map(Tensor, rows))
        by_name = dict(zip(SUMS, sums.asnumpy().tolist()))
        figures["loss"].append(by_name["loss/pairs"])
        figures["margins"].append((by_name["rewards/chosen"] - by_name["rewards/rejected"]) / len(PAIRS))
        figures["grad_norm"].append(float(norm.asnumpy()))
    for name, values in built.figures["trajectory"].items():
        difference = np.abs(np.array(figures[name]) - values) / np.maximum(1.0, np.abs(values))
        assert difference.max() < 1e-4, name
        assert difference[0] < CLOSE, name


@pytest.mark.parametrize(("family", "name"), VARIANTS)
def test_the_newer_form_of_config_is_the_same_model(family: str, name: str) -> None:
    config = MODELS[family][name]
    older = get_family(family).from_hf_config(config, OPTIONS)
    assert get_family(family).from_hf_config(newer_form(config), OPTIONS) == older
    assert older["theta"] == config["rope_theta"]
