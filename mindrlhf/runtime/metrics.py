"""metrics.jsonl: one JSON object per logged step, and the same for TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import PathLike, write_text
from mindrlhf.runtime.tensorboard import EventWriter


def read_metrics(path: PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics file; UserError for a line that is not one."""
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        row = _parse(line)
        if row is None:
            raise UserError(f"{path}: line {number} is not a row of metrics; remove it or start anew")
        rows.append(row)
    return rows


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as JSON can hold it: None for a number that is not finite."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


class MetricsWriter:
    """Appends rows. A run that starts anew replaces the file; one that resumes after step k drops those beyond it.

    events: a folder for TensorBoard's files of the same rows.
    """

    def __init__(self, path: PathLike, resumed_step: int = 0, events: PathLike | None = None) -> None:
        self.path = Path(path)
        kept = []
        if resumed_step and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            # A row cut off by a dead run is beyond the last saved step by nature.
            kept = [row for row in map(_parse, lines) if row and row["step"] <= resumed_step]
        write_text(self.path, "".join(f"{json.dumps(row)}\n" for row in kept))
        self.events = EventWriter(events, kept) if events else None

    def write(self, row: dict[str, Any]) -> None:
        """Append one row, unrounded; a number that is not finite is written as null."""
        clean = finite(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")
        if self.events:
            self.events.write(clean)
