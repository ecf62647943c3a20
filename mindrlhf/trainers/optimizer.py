"""AdamW as torch.optim.AdamW computes it, and learning rates as transformers schedules them."""

from __future__ import annotations

import math
from collections.abc import Container
from typing import TYPE_CHECKING

import numpy as np

from mindrlhf.config.schema import LrSchedule, Optimizer

if TYPE_CHECKING:
    from mindspore import Parameter, nn


def learning_rates(peak: float, schedule: LrSchedule, steps: int) -> np.ndarray:
    """(steps,) float64: update k, from 0, uses peak x lambda(k).

    lambda is k / warmup during warm-up, so the first update of a warm-up has rate 0; then constant, or linear to 0
    after the last update, or half a cosine wave. warmup_steps wins over warmup_ratio, which is rounded up.
    """
    warmup = schedule.warmup_steps or math.ceil(schedule.warmup_ratio * steps)
    rates = np.empty(steps, np.float64)
    for k in range(steps):
        if k < warmup:
            factor = k / warmup
        elif schedule.type == "constant":
            factor = 1.0
        else:
            done = (k - warmup) / max(1, steps - warmup)
            factor = 1.0 - done if schedule.type == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        rates[k] = peak * factor
    return rates


def is_decayed(name: str) -> bool:
    """Weight decay is for matrices: not for biases, not for norms."""
    return not (name.endswith(("bias", "beta", "gamma")) or "norm" in name)


def build_optimizer(cell: nn.Cell, settings: Optimizer, rates: np.ndarray) -> nn.Optimizer:
    """AdamW (arXiv 1711.05101) over the cell's trainable parameters, with one learning rate per step."""
    from mindformers.core.optim import AdamW
    from mindspore import Tensor

    parameters = cell.trainable_params()
    groups = parameters
    if settings.weight_decay:
        decayed = [parameter for parameter in parameters if is_decayed(parameter.name)]
        others = [parameter for parameter in parameters if not is_decayed(parameter.name)]
        groups = [
            {"params": decayed, "weight_decay": settings.weight_decay},
            *([{"params": others, "weight_decay": 0.0}] if others else []),
            {"order_params": parameters},
        ]
    return AdamW(groups, learning_rate=Tensor(rates.astype(np.float32)), betas=tuple(settings.betas), eps=settings.eps)


def optimizer_state(optimizer: nn.Optimizer, of: Container[str]) -> dict[str, Parameter]:
    """The moments of the parameters named in `of`, under their own names (adam_m.<parameter>, adam_v.<parameter>), and
    the count of updates."""
    every = (*optimizer.exp_avg, *optimizer.exp_avg_sq)
    moments = {state.name: state for state in every if state.name.partition(".")[2] in of}
    return {**moments, "global_step": optimizer.global_step}
