"""The rows of metrics.jsonl for TensorBoard: one event file of scalars, readable at any moment."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mindrlhf.runtime.files import PathLike


class EventWriter:
    """Appends rows to one new event file in a folder, which replaces those it holds.

    `rows`: what a resumed run keeps, written first.
    """

    def __init__(self, folder: PathLike, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        import mindspore  # noqa: F401  (fails where tensorboardX has imported protobuf before it)

        # Its SummaryWriter hands events to a thread, and what a killed run had shown would be lost.
        from tensorboardX.event_file_writer import EventsWriter

        Path(folder).mkdir(parents=True, exist_ok=True)
        for earlier in Path(folder).glob("*tfevents*"):
            earlier.unlink()
        self._events = EventsWriter(str(Path(folder) / "events"))
        for row in rows:
            self._add(row)
        self._events.flush()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a scalar for each figure of the row that is a number, at the row's `step`."""
        self._add(row)
        self._events.flush()

    def _add(self, row: Mapping[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        figures = {name: value for name, value in row.items() if name != "step" and value is not None}
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._events.write_event(Event(wall_time=time.time(), step=row["step"], summary=Summary(value=scalars)))
