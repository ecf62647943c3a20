"""The best evaluation by one figure: its weights in a folder of their own, and an end where no better one comes."""

from __future__ import annotations

import difflib
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mindrlhf.checkpoint.resume import commit
from mindrlhf.config.schema import Config
from mindrlhf.runtime.device import Device
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import write_json
from mindrlhf.runtime.logging import log, warn

if TYPE_CHECKING:
    from mindrlhf.trainers.loop import Trainer

FOLDER = "best"
NOTE = "best.json"
PREFIX = "eval_"


@dataclass
class Best:
    """The best evaluation so far, and how many in a row since have gained no more than the threshold.

    metric: without "eval_". patience: how many of these end the run, None for no end. The evaluation before the first
    step does not count: rewards are 0 there, and its weights are those that training started from.
    """

    metric: str
    greater_is_better: bool
    patience: int | None = None
    threshold: float = 0.0
    step: int | None = None
    value: float | None = None
    without_gain: int = 0

    @classmethod
    def of(cls, config: Config) -> Best | None:
        """What `train` of a run asks for, None where it asks for none; UserError where nothing can come of it."""
        train = config.train
        if train.metric_for_best_model is None and train.early_stopping_patience is None:
            return None
        key = "metric_for_best_model" if train.metric_for_best_model else "early_stopping_patience"
        if not config.data.eval:
            raise UserError(f"train.{key} needs evaluations; give --eval_dataset a MindRecord, or set the key to null")
        if train.early_stopping_patience and not train.eval_steps:
            raise UserError(
                "train.early_stopping_patience counts evaluations, and without train.eval_steps there is one, at the "
                "end; set train.eval_steps"
            )
        metric = (train.metric_for_best_model or "loss").removeprefix(PREFIX)
        greater = train.greater_is_better
        return cls(
            metric,
            "loss" not in metric if greater is None else greater,
            train.early_stopping_patience,
            train.early_stopping_threshold,
        )

    def require(self, figures: Mapping[str, float]) -> None:
        """UserError where evaluations have no such figure, with the nearest that they have."""
        if self.metric not in figures:
            (nearest,) = difflib.get_close_matches(self.metric, figures, n=1, cutoff=0.0)
            raise UserError(
                f"train.metric_for_best_model: evaluations have no figure {self.metric}; did you mean {nearest}?"
            )

    def take(self, step: int, value: float, device: Device) -> bool:
        """Count an evaluation; whether it is the best so far. A value that is not finite never is.

        Rank 0 decides for all: workers whose values differ in the last bit must save and stop together.
        """
        gain = self._gain(value)
        without_gain = 0 if gain > self.threshold else self.without_gain + 1
        decided = np.asarray([gain > 0, without_gain], np.float64)
        decided = device.all_sum(decided if device.rank == 0 else np.zeros_like(decided))
        self.without_gain = int(decided[1])
        if decided[0]:
            self.step, self.value = step, value
        return bool(decided[0])

    def _gain(self, value: float) -> float:
        if not math.isfinite(value):
            return -math.inf
        if self.value is None:
            return math.inf
        return value - self.value if self.greater_is_better else self.value - value

    @property
    def exhausted(self) -> bool:
        """Whether it is time to stop."""
        return self.patience is not None and self.without_gain >= self.patience

    @property
    def summary(self) -> str:
        """Which evaluation was the best."""
        if self.step is None:
            return f"no evaluation gave a finite {PREFIX}{self.metric}"
        return f"the best {PREFIX}{self.metric} is {self.value:.4g}, after step {self.step}"

    def reason(self, step: int) -> str:
        """Why the run stops after `step`."""
        moved = "risen" if self.greater_is_better else "fallen"
        by = f"by more than {self.threshold:g} " if self.threshold else ""
        return (
            f"stopped after step {step}: {PREFIX}{self.metric} has not {moved} "
            f"{by}in {self.without_gain} evaluation(s) in a row; {self.summary}"
        )

    def state(self) -> dict[str, Any]:
        """What a resumed run takes up."""
        return {name: value for name, value in asdict(self).items() if name not in ("patience", "threshold")}

    def restore(self, state: Mapping[str, Any] | None, source: object) -> None:
        """Take up a `state`; patience and threshold are this run's. UserError where it is of another metric.

        None is a step that was saved without: the best is then sought among the evaluations to come.
        """
        if state is None:
            log(f"{source} names no best evaluation; the best is sought among those to come")
            return
        for name, key in (("metric", "metric_for_best_model"), ("greater_is_better", "greater_is_better")):
            if state[name] != getattr(self, name):
                raise UserError(
                    f"{source} is of a run with train.{key} {state[name]}, which is now {getattr(self, name)}; restore "
                    "it or start anew without --resume"
                )
        self.step, self.value, self.without_gain = state["step"], state["value"], state["without_gain"]

    def keep(self, trainer: Trainer, output: Path, device: Device) -> None:
        """Leave the trainer's weights and best.json at `output`/best; called by every rank.

        They are written beside it and put in its place by two renames, so the folder is that of one evaluation,
        whole; killed between the renames, a run leaves none, and `recover` brings the old one back.
        """
        final = output / FOLDER
        temporary = _temporary(final)
        if device.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        device.barrier()
        trainer.save(temporary, self.step or 0)
        if device.rank == 0:
            write_json(temporary / NOTE, {"step": self.step, "metric": PREFIX + self.metric, "value": self.value})
            commit(temporary, final)
        device.barrier()


def _temporary(final: Path) -> Path:
    return final.with_name(f"{final.name}.tmp")


def recover(output: Path, best: Best | None, start: int) -> None:
    """Clear what a killed `keep` left; on rank 0, before step `start`. Warns of a folder that is not this run's."""
    final = output / FOLDER
    replaced = final.with_name(f"{final.name}.replaced.tmp")
    if replaced.is_dir() and not final.exists():
        os.rename(replaced, final)
    for leftover in (_temporary(final), replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    if start == 0 and final.exists():
        warn(f"{final} is of an earlier run" + (", until the first evaluation of this one" if best else ""))
    elif best and best.step is not None and not (final / NOTE).is_file():
        warn(f"{final}, the weights of step {best.step}, is not there any more; only a better evaluation makes it anew")
