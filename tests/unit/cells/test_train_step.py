"""One optimizer step: accumulation changes nothing, and the clip is torch's."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from toy import batch, cell_of, pairs

from mindrlhf.cells.train_step import TrainStep
from mindrlhf.config.schema import Optimizer
from mindrlhf.losses import bind_all, objective
from mindrlhf.trainers.optimizer import build_optimizer

STEPS = 3
# Two steps' worth of four pairs, then three pairs and a filler.
PAIRS = [*pairs(11), None]

pytestmark = pytest.mark.usefixtures("cpu")


def run(passes: int) -> tuple[dict[str, np.ndarray], list[float], list[np.ndarray]]:
    """Three steps of four pairs in so many passes: parameters at the end, and every step's norm and sums."""
    cell = cell_of(objective(bind_all([{"type": "sigmoid", "beta": 0.5}])))
    optimizer = build_optimizer(cell, Optimizer(learning_rate=0.01), np.full(STEPS, 0.01))
    step = TrainStep(cell, optimizer, max_grad_norm=0.5, passes=passes, reduce_over=1).set_train()
    norms, sums = [], []
    for number in range(STEPS):
        mine = PAIRS[4 * number : 4 * number + 4]
        real = [pair for pair in mine if pair is not None]
        for done in range(passes):
            some = mine[4 // passes * done : 4 // passes * (done + 1)]
            fields = batch(some, len(real), sum(len(pair.chosen_ids) for pair in real))
            found, norm, _ = step(done == passes - 1, *fields)
        norms.append(float(norm))
        sums.append(found.asnumpy())
    return {parameter.name: parameter.asnumpy() for parameter in cell.trainable_params()}, norms, sums


def test_accumulation_changes_nothing() -> None:
    parameters, norms, sums = run(1)
    assert min(norms) > 0.5, "no step was clipped"
    for passes in (2, 4):
        others, other_norms, other_sums = run(passes)
        assert other_norms == pytest.approx(norms, rel=1e-6)
        np.testing.assert_allclose(other_sums, sums, rtol=1e-6)
        assert others.keys() == parameters.keys()
        for name, value in parameters.items():
            np.testing.assert_allclose(others[name], value, rtol=0, atol=1e-6, err_msg=name)


class Linear(nn.Cell):
    """A loss whose gradients are its inputs: sum(a x) + sum(b y)."""

    num_sums = 1

    def __init__(self) -> None:
        super().__init__()
        self.a = Parameter(ops.zeros(2, ms.float32), name="a")
        self.b = Parameter(ops.zeros((), ms.float32), name="b")

    def construct(self, x, y):  # type: ignore[no-untyped-def]
        loss = (self.a * x).sum() + self.b * y
        return loss, ops.stop_gradient(loss).reshape(1), loss, loss


@pytest.mark.parametrize(
    ("bound", "scale"),
    [
        (6.5, 0.5),  # 6.5 / (13 + 1e-6)
        (13.0, 1 - 1e-6 / 13),
        (14.0, 1.0),
        (None, 1.0),
    ],
)
def test_the_clip_is_torchs(bound: float | None, scale: float) -> None:
    """Gradients (3, 4) and 12 have norm 13; torch multiplies each by min(1, bound / (13 + 1e-6))."""
    cell = Linear()
    step = TrainStep(cell, nn.SGD(cell.trainable_params(), 1.0), bound, passes=1, reduce_over=1)
    _, norm, _ = step(True, Tensor([3.0, 4.0], ms.float32), Tensor(12.0, ms.float32))
    assert float(norm) == 13.0
    np.testing.assert_allclose(-cell.a.asnumpy(), [3 * scale, 4 * scale], rtol=2e-7)
    np.testing.assert_allclose(-cell.b.asnumpy(), 12 * scale, rtol=2e-7)


def test_the_norm_is_of_the_summed_gradients() -> None:
    """(3, 4), 0 and then (-3, 4), 6: together (0, 8), 6 with norm 10, and nothing is left for the next step."""
    cell = Linear()
    step = TrainStep(cell, nn.SGD(cell.trainable_params(), 1.0), None, passes=2, reduce_over=1)
    given = [([3.0, 4.0], 0.0), ([-3.0, 4.0], 6.0)]
    norms = []
    for _ in range(2):
        for update, (x, y) in enumerate(given):
            _, norm, _ = step(bool(update), Tensor(x, ms.float32), Tensor(y, ms.float32))
        norms.append(float(norm))
    assert norms == [10.0, 10.0]
    np.testing.assert_array_equal(cell.a.asnumpy(), [0.0, -16.0])
    np.testing.assert_array_equal(cell.b.asnumpy(), -12.0)
