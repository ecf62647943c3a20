"""A trainer that only counts, and the configuration of its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mindrlhf.config.schema import Config, build
from mindrlhf.parallel.layout import ONE_WORKER
from mindrlhf.runtime.device import Device

CPU = Device("CPU")
FIGURES = {"rewards/accuracies": 0.5, "num_pairs": 4, "grad_norm": 1.0}


class Killed(BaseException):
    """Stands for SIGKILL."""


class Counting:
    """Its weight is the number of updates; its losses and the margins of its evaluations, by step, are lists'.

    dies_after: the step after whose update it is killed.
    """

    layout = ONE_WORKER
    steps_per_epoch = 2

    def __init__(
        self, losses: list[float], seed: int = 0, margins: list[float] | None = None, dies_after: int | None = None
    ) -> None:
        self.losses, self.seed, self.margins, self.dies_after = losses, seed, margins, dies_after
        self.weight, self.tokens_seen = 0, 0
        self.saved: list[Path] = []
        self.evaluated: list[int] = []

    def train_step(self, step: int) -> dict[str, float]:
        assert step == self.weight
        if step == self.dies_after:
            raise Killed
        self.weight += 1
        self.tokens_seen += 10
        return {"loss": self.losses[step], "rewards/margins": 0.0, **FIGURES}

    def evaluate(self) -> dict[str, float]:
        self.evaluated.append(self.weight)
        margin = self.margins[self.weight] if self.margins else 0.0
        return {"loss": float(self.weight), "rewards/margins": margin, **FIGURES}

    def state(self) -> dict[str, np.ndarray]:
        return {"weight": np.array([self.weight, self.tokens_seen])}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.weight, self.tokens_seen = arrays["weight"].tolist()

    def save(self, folder: Path, step: int) -> Path:
        self.saved.append(folder)
        network = folder / "checkpoint_network"
        network.mkdir(parents=True, exist_ok=True)
        (network / "weight").write_text(str(self.weight), encoding="utf-8")
        return network

    def identity(self) -> dict[str, Any]:
        return {"seed": self.seed}


def config(output: Path, **settings: Any) -> Config:
    """`settings` are keys of train."""
    return build({"output_dir": str(output), "data": {"eval": "held_out.mindrecord"}, "train": settings})
