"""Every registered family against PyTorch and transformers: logits, log-probs, loss and gradients of micro models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from contract import (
    CLOSE,
    COMPILED,
    TRAINED,
    Variant,
    batches,
    layouts,
    padded_left,
    preference_cell,
    shared_prompts,
    variant_of,
    worst,
)
from micro_models import BETA, HOW_TO, LENGTH, LOSS, MODELS, PAIRS, TRAINING, WARMUP_STEPS, probes
from mindspore import Tensor, nn, ops

from mindrlhf.cells.preference import AUX_LOSS, SUMS, PreferenceCell
from mindrlhf.cells.scoring import ScoreSequences, SegmentMask
from mindrlhf.cells.train_step import TrainStep
from mindrlhf.config.load import load_config
from mindrlhf.config.schema import LrSchedule, Optimizer
from mindrlhf.models import families
from mindrlhf.trainers.optimizer import build_optimizer, learning_rates
from mindrlhf.trainers.registry import loss_settings

pytestmark = pytest.mark.usefixtures("cpu")


@dataclass(frozen=True)
class Built:
    """One micro model in its preference cell."""

    variant: Variant
    cell: nn.Cell


@pytest.fixture(scope="module", params=COMPILED)
def built(request: pytest.FixtureRequest, cpu: object) -> Built:
    variant = variant_of(*request.param)
    return Built(variant, preference_cell(variant))


class Logits(nn.Cell):
    """(input_ids, position_ids, segment_ids (R,S)) -> logits (R,S,V)."""

    def __init__(self, backbone: nn.Cell, head: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.backbone, self.head, self.mask = backbone, head, SegmentMask(LENGTH)

    def construct(self, input_ids, position_ids, segment_ids):  # type: ignore[no-untyped-def]
        return ops.matmul(self.backbone(input_ids, position_ids, self.mask(segment_ids)), self.head().T)


@pytest.mark.parametrize("family", families())
def test_a_family_has_figures(family: str) -> None:
    assert MODELS.get(family), f"no figures of the family {family}: {HOW_TO}"
    for name in MODELS[family]:
        variant_of(family, name)


def test_logits_however_the_row_is_laid_out(built: Built) -> None:
    figures = built.variant.figures
    cases = [
        (layout, sequence, row, columns)
        for sequence in map(int, figures["logits"])
        for layout, (row, columns) in layouts(sequence).items()
    ]
    rows = np.stack([row for _, _, row, _ in cases], axis=1)
    logits = Logits(built.cell.score.backbone, built.cell.score.head)(*map(Tensor, rows)).asnumpy()
    for row, (layout, sequence, _, columns) in enumerate(cases):
        assert worst(logits[row, columns], figures["logits"][str(sequence)]) < CLOSE, (layout, sequence)


def assert_gradients(built: Built, cell: nn.Cell, fields: Sequence[np.ndarray]) -> tuple[dict[str, float], np.ndarray]:
    """The gradient of every tensor is PyTorch's; the cell's sums by name, and its log-probs (U,2)."""
    figures = built.variant.figures
    parameters = cell.trainable_params()
    (_, sums, logps, _), gradients = ops.value_and_grad(cell, None, parameters, has_aux=True)(*map(Tensor, fields))
    by_name = {parameter.name: gradient.asnumpy() for parameter, gradient in zip(parameters, gradients)}
    ours = built.variant.family.ms_to_hf(by_name, built.variant.config)
    assert set(ours) == set(figures["grad_norms"])
    for name, gradient in ours.items():
        norm = figures["grad_norms"][name]
        assert np.linalg.norm(gradient.astype(np.float64)) == pytest.approx(norm, rel=CLOSE), name
        entries = gradient.reshape(-1)[probes(gradient.size)]
        assert np.abs(entries - figures["grad_entries"][name]).max() <= CLOSE * norm, name
    return dict(zip((*SUMS, AUX_LOSS), sums.asnumpy())), logps.asnumpy()


@pytest.mark.parametrize("side", ["right", "left"])
def test_log_probs_loss_and_gradients(built: Built, side: str) -> None:
    figures = built.variant.figures
    rows = batches(1)[0]
    by_sum, logps = assert_gradients(built, built.cell, rows if side == "right" else padded_left(rows))
    assert worst(logps[:-1], figures["logps"]) < CLOSE
    assert worst(by_sum["loss/pairs"], figures["loss"]) < CLOSE
    assert (AUX_LOSS in by_sum) == built.variant.balanced
    if built.variant.balanced:
        assert worst(by_sum[AUX_LOSS] / len(PAIRS), figures["aux_loss"]) < CLOSE


@pytest.mark.slow
def test_log_probs_loss_and_gradients_behind_a_shared_prompt(built: Built) -> None:
    if built.variant.balanced:
        pytest.skip("routers see a shared prompt once")
    score = ScoreSequences(built.cell.score.backbone, built.cell.score.head, LENGTH, 1, 1)
    settings = loss_settings(load_config(None, [f"rlhf.loss={LOSS}", f"rlhf.beta={BETA}"]))
    by_sum, logps = assert_gradients(built, PreferenceCell(score, settings.objective), shared_prompts())
    assert worst(logps, built.variant.figures["logps"]) < CLOSE
    assert worst(by_sum["loss/pairs"], built.variant.figures["loss"]) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize(("built", "passes"), TRAINED, indirect=["built"])
def test_ten_steps_of_training(built: Built, passes: int) -> None:
    cell = built.cell
    built.variant.load(cell)
    steps, rate = int(TRAINING["steps"]), TRAINING["learning_rate"]
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
    for name, values in built.variant.figures["trajectory"].items():
        difference = np.abs(np.array(figures[name]) - values) / np.maximum(1.0, np.abs(values))
        assert difference.max() < 1e-4, name
        assert difference[0] < CLOSE, name
