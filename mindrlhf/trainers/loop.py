"""The one training loop: steps, evaluation, logging, checkpoints, resume. What a step is, a trainer says."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Protocol

import numpy as np

from mindrlhf.checkpoint import resume
from mindrlhf.config.schema import Config
from mindrlhf.parallel.layout import Layout
from mindrlhf.runtime.device import Device
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.logging import log
from mindrlhf.runtime.metrics import MetricsWriter, read_metrics
from mindrlhf.runtime.progress import Progress
from mindrlhf.runtime.report import draw_curves
from mindrlhf.trainers.best import FOLDER, PREFIX, Best, recover

METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"
EVENTS_FOLDER = "tensorboard"
EVALUATIONS = "evaluations"  # where they stand in the state of a saved step


class Trainer(Protocol):
    """What the loop needs of an algorithm. Metrics are figures over the global batch, the same on every worker."""

    layout: Layout
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

    def save(self, folder: Path, step: int) -> Path:
        """Write the weights alone under `folder`, as a run leaves them; returns where."""

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be continued: data, shapes, settings of the optimizer."""


def total_steps(config: Config, steps_per_epoch: int) -> int:
    """train.steps where given, else train.epochs of the data."""
    return config.train.steps or config.train.epochs * steps_per_epoch


def train(trainer: Trainer, config: Config, device: Device) -> None:
    """Run `trainer` to its end, from the newest checkpoint where train.resume asks for it."""
    output = Path(config.output_dir)
    steps = total_steps(config, trainer.steps_per_epoch)
    evaluations = _Evaluations(trainer, output, device, Best.of(config))
    start = _resume(trainer, evaluations, output, steps) if config.train.resume else 0
    writer = None
    if device.rank == 0:
        recover(output, evaluations.best, start)
        writer = evaluations.writer = MetricsWriter(output / METRICS_FILE, start, output / EVENTS_FOLDER)
    if start in (0, steps):
        evaluations.run(start, log)
    progress = Progress("train", steps, start)
    done = saved = start
    while done < steps and not evaluations.exhausted:
        began, tokens_before = time.perf_counter(), trainer.tokens_seen
        figures = trainer.train_step(done)
        seconds = time.perf_counter() - began
        done += 1
        _refuse_broken(figures, done, config)
        if writer and (done % config.train.logging_steps == 0 or done == steps):
            speed = {
                "num_tokens": trainer.tokens_seen,
                "tokens_per_second": (trainer.tokens_seen - tokens_before) / seconds,
                "pairs_per_second": figures["num_pairs"] / seconds,
                "step_seconds": seconds,
                "peak_memory_mib": device.peak_memory_mib(),
            }
            writer.write({"step": done, "epoch": done / trainer.steps_per_epoch, **figures, **speed})
        progress.advance(_shown(figures, seconds))
        if _due(done, config.train.eval_steps) or done == steps:
            evaluations.run(done, progress.say)
        # A saved step comes after the evaluation of its step: what is resumed need not evaluate again.
        if _due(done, config.train.save_steps):
            _save_step(trainer, evaluations, output, done, config)
            saved = done
    progress.close()
    if config.train.save_steps and saved < done:
        _save_step(trainer, evaluations, output, done, config)
    _finish(trainer, evaluations, output, done, steps)
    device.leave()


def _finish(trainer: Trainer, evaluations: _Evaluations, output: Path, done: int, steps: int) -> None:
    """The last weights, the picture, and what became of the best."""
    best, title, mark = evaluations.best, str(output), None
    if best and done < steps:
        log(best.reason(done))
        title += f"\n{best.reason(done)}"
    log(f"weights: {trainer.save(output, done)}")
    if best and best.step is not None:
        mark = (PREFIX + best.metric, best.step)
        log(f"{best.summary}: {output / FOLDER}")
    if evaluations.device.rank == 0:
        log(f"curves: {draw_curves(read_metrics(output / METRICS_FILE), output / CURVES_FILE, title, mark)}")


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


@dataclass
class _Evaluations:
    """The evaluations of a run: their rows, and the best of them where one is kept."""

    trainer: Trainer
    output: Path
    device: Device
    best: Best | None
    writer: MetricsWriter | None = None
    newest: int | None = None  # step of the last one

    @property
    def exhausted(self) -> bool:
        """Whether the run is to stop early."""
        return self.best is not None and self.best.exhausted

    def run(self, step: int, say: Callable[[str], None]) -> None:
        """Evaluate after `step`, unless that is done already."""
        figures = None if step == self.newest else self.trainer.evaluate()
        if figures is None:
            return
        self.newest = step
        if self.best:
            self.best.require(figures)
        if self.writer:
            self.writer.write({"step": step, **{PREFIX + name: value for name, value in figures.items()}})
        if step == 0:
            # Policy and reference are still the same: rewards are 0, and what stands in their accuracy is rounding.
            say(f"evaluation before the first step: loss {figures['loss']:.4f}")
            return
        is_best = self.best is not None and self.best.take(step, figures[self.best.metric], self.device)
        say(
            f"evaluation after step {step}: loss {figures['loss']:.4f}, accuracy {figures['rewards/accuracies']:.3f}, "
            f"margin {figures['rewards/margins']:.3f}{', the best so far' if is_best else ''}"
        )
        if self.best and is_best:
            self.best.keep(self.trainer, self.output, self.device)

    def state(self) -> dict[str, Any]:
        """What a resumed run takes up."""
        return {"newest": self.newest, "best": self.best.state() if self.best else None}

    def restore(self, state: dict[str, Any], source: Path) -> None:
        """Take up a `state`; an empty one is of a step that an earlier version saved."""
        self.newest = state.get("newest")
        if self.best:
            self.best.restore(state.get("best"), source)


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


def _save_step(trainer: Trainer, evaluations: _Evaluations, output: Path, step: int, config: Config) -> None:
    device = evaluations.device
    resume.save_step(
        output,
        step,
        trainer.state(),
        {**trainer.identity(), EVALUATIONS: evaluations.state()},
        rank=device.rank,
        world=device.world,
        barrier=device.barrier,
        keep=config.train.save_total_limit,
        replicated=not trainer.layout.semi_auto,
    )


def _resume(trainer: Trainer, evaluations: _Evaluations, output: Path, steps: int) -> int:
    device = evaluations.device
    found = resume.read_newest(
        output,
        device.rank if trainer.layout.semi_auto else 0,
        agree=lambda good: int(device.all_sum(np.array([good], np.float32))[0]) == device.world,
        of_first=device.of_first,
    )
    if found is None:
        log(f"nothing to resume under {output}; starting at step 1")
        return 0
    path, arrays, state = found
    mine = trainer.identity()
    other = sorted(key for key in mine if mine[key] != state.get(key))
    if other:
        key = other[0]
        raise UserError(
            f"{path} is of another run: {key} was {state.get(key)!r} and is now {mine[key]!r}; "
            f"restore it or start anew without --resume"
        )
    trainer.restore(arrays)
    evaluations.restore(state.get(EVALUATIONS, {}), path)
    step = int(path.name.rpartition("-")[2])
    if step > steps:
        raise UserError(f"{path} is beyond step {steps}, where this run ends; raise train.steps or train.epochs")
    log(f"resumed from {path}")
    return step
