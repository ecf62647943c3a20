"""AdamW against NumPy in float64, and learning rates against values by hand."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from mindrlhf.config.schema import LrSchedule, Optimizer
from mindrlhf.trainers.optimizer import build_optimizer, is_decayed, learning_rates, optimizer_state

STEPS = 5
RATES = np.array([0.0, 1e-3, 2e-3, 2e-3, 5e-4])
BETAS, EPS = (0.8, 0.95), 1e-6
SHAPES = {
    "model.layers.0.attention.wq.bias": (3,),
    "model.layers.0.attention.wq.weight": (4, 3),
    "model.layers.0.ffn_norm.weight": (5,),
}


class Weights(nn.Cell):
    """A bias, a matrix and a norm."""

    def __init__(self) -> None:
        super().__init__()
        generator = np.random.default_rng(0)
        made = {name: Tensor(generator.normal(size=shape), ms.float32) for name, shape in SHAPES.items()}
        self.bias, self.matrix, self.norm = (Parameter(value, name=name) for name, value in made.items())


def gradients() -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(1)
    # Numbers that float32 holds exactly.
    return [{name: generator.integers(-99, 99, shape) / 64 for name, shape in SHAPES.items()} for _ in range(STEPS)]


def adamw(start: dict[str, np.ndarray], weight_decay: float) -> dict[str, np.ndarray]:
    """torch.optim.AdamW in float64; decay for the matrix alone."""
    values = {name: value.astype(np.float64) for name, value in start.items()}
    m, v = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    for k, given in enumerate(gradients()):
        for name, gradient in given.items():
            m[name] = BETAS[0] * m[name] + (1 - BETAS[0]) * gradient
            v[name] = BETAS[1] * v[name] + (1 - BETAS[1]) * gradient**2
            decay = weight_decay if name.endswith("wq.weight") else 0.0
            corrected = v[name] / (1 - BETAS[1] ** (k + 1))
            update = m[name] / (1 - BETAS[0] ** (k + 1)) / (np.sqrt(corrected) + EPS)
            values[name] = values[name] * (1 - RATES[k] * decay) - RATES[k] * update
    return values


@pytest.mark.parametrize("weight_decay", [0.0, 10.0])
def test_adamw(weight_decay: float, cpu: object) -> None:
    cell = Weights()
    start = {parameter.name: parameter.asnumpy().copy() for parameter in cell.trainable_params()}
    settings = Optimizer(learning_rate=2e-3, betas=BETAS, eps=EPS, weight_decay=weight_decay)
    optimizer = build_optimizer(cell, settings, RATES)
    for given in gradients():
        optimizer(tuple(Tensor(given[parameter.name], ms.float32) for parameter in optimizer.parameters))
    expected = adamw(start, weight_decay)
    for parameter in cell.trainable_params():
        moved = np.abs(expected[parameter.name] - start[parameter.name]).max()
        difference = np.abs(parameter.asnumpy() - expected[parameter.name]).max()
        assert difference < 5e-7 < 1e-3 * moved, parameter.name


def test_the_order_of_parameters_is_the_cells(cpu: object) -> None:
    cell = Weights()
    for weight_decay in (0.0, 0.1):
        optimizer = build_optimizer(cell, Optimizer(weight_decay=weight_decay), RATES)
        assert [parameter.name for parameter in optimizer.parameters] == list(SHAPES)


def test_the_state_is_named_by_parameter(cpu: object) -> None:
    cell = Weights()
    names = [parameter.name for parameter in cell.get_parameters()]
    state = optimizer_state(build_optimizer(cell, Optimizer(), RATES), names)
    moments = {f"adam_{kind}.{name}": shape for kind in "mv" for name, shape in SHAPES.items()}
    assert {name: each.shape for name, each in state.items()} == {**moments, "global_step": (1,)}


@pytest.mark.parametrize(
    ("name", "decayed"),
    [
        ("model.tok_embeddings.embedding_weight", True),
        ("model.layers.3.feed_forward.w1.weight", True),
        ("lm_head.weight", True),
        ("model.layers.3.attention.wk.bias", False),
        ("model.layers.3.attention_norm.weight", False),
        ("model.norm_out.weight", False),
    ],
)
def test_what_decays(name: str, decayed: bool) -> None:
    assert is_decayed(name) == decayed


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (LrSchedule("constant"), [1, 1, 1, 1, 1, 1]),
        (LrSchedule("constant", warmup_steps=4), [0, 0.25, 0.5, 0.75, 1, 1]),
        (LrSchedule("linear"), [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        (LrSchedule("linear", warmup_steps=2), [0, 0.5, 1, 0.75, 0.5, 0.25]),
        # cos of 0, 30, 60, 90, 120 and 150 degrees
        (LrSchedule("cosine"), [1, 0.5 + 3**0.5 / 4, 0.75, 0.5, 0.25, 0.5 - 3**0.5 / 4]),
        (LrSchedule("cosine", warmup_steps=2), [0, 0.5, 1, 0.5 + 2**0.5 / 4, 0.5, 0.5 - 2**0.5 / 4]),
        # 0.4 x 6 = 2.4 steps, that is 3
        (LrSchedule("constant", warmup_ratio=0.4), [0, 1 / 3, 2 / 3, 1, 1, 1]),
        (LrSchedule("constant", warmup_steps=1, warmup_ratio=0.5), [0, 1, 1, 1, 1, 1]),
        # Longer than the run: it ends on the way up.
        (LrSchedule("linear", warmup_steps=12), [0, 1 / 12, 2 / 12, 3 / 12, 4 / 12, 5 / 12]),
        (LrSchedule("cosine", warmup_ratio=1.0), [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6]),
    ],
)
def test_learning_rates(schedule: LrSchedule, expected: list[float]) -> None:
    np.testing.assert_allclose(learning_rates(3e-4, schedule, 6), 3e-4 * np.array(expected), rtol=1e-12, atol=1e-19)
