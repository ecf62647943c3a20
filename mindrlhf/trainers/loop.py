"""The one training loop: steps, evaluation, logging, checkpoints, resume. What a step is, a trainer says."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Protocol

from mindrlhf.checkpoint import resume
from mindrlhf.config.schema import Config
from mindrlhf.runtime.device import Device
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.logging import log
from mindrlhf.runtime.metrics import MetricsWriter, read_metrics
from mindrlhf.runtime.progress import Progress
from mindrlhf.runtime.report import draw_curves

if TYPE_CHECKING:
    import numpy as np

METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"


class Trainer(Protocol):
    """What the loop needs of an algorithm. Metrics are figures over the global batch, the same on every worker."""

    steps_per_epoch: int
    tokens_seen: int  # non-padding tokens of all steps so far

    def train_step(self, step: int) -> dict[str, float]:
        """Do update `step` (from 0); figures computed before it."""

    def evaluate(self) -> dict[str, float] | None:
        """Figures over the evaluation set without a prefix; None where there is no such set."""

    def state(self) -> dict[str, np.ndarray]:
        """Everything a resumed run needs: weights, moments, the optimizer's step."""

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take up a `state`."""

    def save(self) -> Path:
        """Write the weights alone; returns where."""

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be continued: data, shapes, settings of the optimizer."""


def total_steps(config: Config, steps_per_epoch: int) -> int:
    """train.steps where given, else train.epochs of the data."""
    return config.train.steps or config.train.epochs * steps_per_epoch


def train(trainer: Trainer, config: Config, device: Device) -> None:
    """Run `trainer` to its end, from the newest checkpoint where train.resume asks for it."""
    output = Path(config.output_dir)
    steps = total_steps(config, trainer.steps_per_epoch)
    start = _resume(trainer, output, device, steps) if config.train.resume else 0
    writer = MetricsWriter(output / METRICS_FILE, start) if device.rank == 0 else None
    if start == 0:
        _evaluate(trainer, 0, writer, log)
    progress = Progress("train", steps, start)
    saved_at = start
    for step in range(start, steps):
        began, tokens_before = time.perf_counter(), trainer.tokens_seen
        figures = trainer.train_step(step)
        seconds = time.perf_counter() - began
        number = step + 1
        _refuse_broken(figures, number, config)
        if writer and (number % config.train.logging_steps == 0 or number == steps):
            speed = {
                "num_tokens": trainer.tokens_seen,
                "tokens_per_second": (trainer.tokens_seen - tokens_before) / seconds,
                "pairs_per_second": figures["num_pairs"] / seconds,
                "step_seconds": seconds,
                "peak_memory_mib": device.peak_memory_mib(),
            }
            writer.write({"step": number, "epoch": number / trainer.steps_per_epoch, **figures, **speed})
        progress.advance(_shown(figures, seconds))
        if _due(number, config.train.eval_steps) and number < steps:
            _evaluate(trainer, number, writer, progress.say)
        if _due(number, config.train.save_steps):
            _save_step(trainer, output, number, config, device)
            saved_at = number
    progress.close()
    _evaluate(trainer, steps, writer, log)
    if config.train.save_steps and saved_at < steps:
        _save_step(trainer, output, steps, config, device)
    log(f"weights: {trainer.save()}")
    if device.rank == 0:
        log(f"curves: {draw_curves(read_metrics(output / METRICS_FILE), output / CURVES_FILE, str(output))}")
    device.leave()


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _evaluate(trainer: Trainer, step: int, writer: MetricsWriter | None, say: Callable[[str], None]) -> None:
    figures = trainer.evaluate()
    if figures is None:
        return
    row = {f"eval_{name}": value for name, value in figures.items()}
    if writer:
        writer.write({"step": step, **row})
    if step == 0:
        # Policy and reference are still the same: rewards are 0, and what stands in their accuracy is rounding.
        say(f"evaluation before the first step: loss {figures['loss']:.4f}")
        return
    say(
        f"evaluation after step {step}: loss {figures['loss']:.4f}, accuracy {figures['rewards/accuracies']:.3f}, "
        f"margin {figures['rewards/margins']:.3f}"
    )


def _shown(figures: dict[str, float], seconds: float) -> str:
    return (
        f"loss {figures['loss']:.4f} accuracy {figures['rewards/accuracies']:.2f} "
        f"margin {figures['rewards/margins']:.3f} {figures['num_pairs'] / seconds:.1f} pairs/s"
    )


def _refuse_broken(figures: dict[str, float], step: int, config: Config) -> None:
    for name in ("loss", "grad_norm"):
        if not math.isfinite(figures[name]):
            raise UserError(
                f"{name} is {figures[name]} at step {step}; lower optimizer.learning_rate "
                f"(now {config.optimizer.learning_rate}) and start anew without --resume"
            )


def _save_step(trainer: Trainer, output: Path, step: int, config: Config, device: Device) -> None:
    resume.save_step(
        output,
        step,
        trainer.state(),
        trainer.identity(),
        rank=device.rank,
        world=device.world,
        barrier=device.barrier,
        keep=config.train.save_total_limit,
        replicated=device.explicit_reduction,
    )


def _resume(trainer: Trainer, output: Path, device: Device, steps: int) -> int:
    path = resume.latest(output)
    if path is None:
        log(f"nothing to resume under {output}; starting at step 1")
        return 0
    arrays, state = resume.read_step(path, 0 if device.explicit_reduction else device.rank)
    mine = trainer.identity()
    other = sorted(key for key in mine if mine[key] != state.get(key))
    if other:
        key = other[0]
        raise UserError(
            f"{path} is of another run: {key} was {state.get(key)!r} and is now {mine[key]!r}; "
            f"restore it or start anew without --resume"
        )
    trainer.restore(arrays)
    step = int(path.name.rpartition("-")[2])
    if step > steps:
        raise UserError(f"{path} is beyond step {steps}, where this run ends; raise train.steps or train.epochs")
    log(f"resumed from {path}")
    return step
