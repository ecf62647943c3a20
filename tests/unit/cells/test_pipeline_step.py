"""The parts of a batch add up to the batch. That a stage takes its share of it only the layout tests can tell."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor
from toy import LENGTH, cell_of, pairs

from mindrlhf.cells.pipeline import MicroBatches, PipelineStep
from mindrlhf.cells.train_step import TrainStep
from mindrlhf.config.schema import Optimizer
from mindrlhf.data.rows import Rows, padded
from mindrlhf.losses import bind_all, objective
from mindrlhf.parallel.layout import Layout
from mindrlhf.trainers.graph import by_part
from mindrlhf.trainers.optimizer import build_optimizer

STEPS = 3
# Steps of four pairs, the last of three and a filler.
PAIRS = [*pairs(11), None]
LOSS = objective(bind_all([{"type": "sigmoid", "beta": 0.5}]))

pytestmark = pytest.mark.usefixtures("cpu")


def rows(number: int) -> Rows:
    """The global batch of a step."""
    mine = PAIRS[4 * number : 4 * number + 4]
    real = [pair for pair in mine if pair is not None]
    return padded(mine, LENGTH, LENGTH, len(real), sum(len(pair.chosen_ids) for pair in real))


@pytest.mark.parametrize("parts", [2, 4])
def test_the_parts_add_up(parts: int) -> None:
    cell = cell_of(LOSS)
    loss, sums, logps, _ = cell(*map(Tensor, rows(STEPS - 1)))
    found = MicroBatches(cell, parts)(*map(Tensor, by_part(rows(STEPS - 1), parts)))
    np.testing.assert_allclose(found[0].asnumpy(), loss.asnumpy(), rtol=1e-6)
    np.testing.assert_allclose(found[1].asnumpy(), sums.asnumpy(), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found[2].asnumpy(), logps.asnumpy(), rtol=1e-6)


def test_the_step_is_that_of_one_process() -> None:
    """Parameters after three clipped updates; a share of half the loss is a step on half the gradient.

    With a sharded optimizer the step takes gradients as they come; in one process MindSpore keeps no others.
    """
    found = {}
    for share in (1, 2):
        for parts in (0, 2):
            cell = cell_of(LOSS)
            optimizer = build_optimizer(cell, Optimizer(learning_rate=0.01), np.full(STEPS, 0.01))
            step = (
                PipelineStep(MicroBatches(cell, parts), optimizer, 0.5, Layout(share, optimizer_shard=True))
                if parts
                else TrainStep(cell, optimizer, 0.5, passes=1, reduce_over=1, split_over=share)
            ).set_train()
            norms, sums = [], []
            for number in range(STEPS):
                batch = by_part(rows(number), parts) if parts else rows(number)
                figures, norm, _ = step(True, *map(Tensor, batch))
                norms.append(float(norm))
                sums.append(figures.asnumpy())
            weights = {weight.name: weight.asnumpy() for weight in cell.trainable_params()}
            found[parts, share] = norms, sums, weights
        one, other = found[0, share], found[2, share]
        assert max(one[0]) > 0.5, "no step was clipped"
        assert other[0] == pytest.approx(one[0], rel=1e-6)
        np.testing.assert_allclose(other[1], one[1], rtol=1e-5, atol=1e-6)
        for name, value in one[2].items():
            np.testing.assert_allclose(other[2][name], value, rtol=0, atol=1e-6, err_msg=name)
    assert found[2, 1][0][0] == pytest.approx(2 * found[2, 2][0][0], rel=1e-6)
