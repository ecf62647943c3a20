"""Event files, read back by the protobuf classes of tensorboardX."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from mindrlhf.runtime.metrics import MetricsWriter, read_metrics

Scalar = tuple[int, str, float]


def events(folder: Path) -> list[Any]:
    """The events of the one file in the folder: each is its length, a checksum, the event and a checksum."""
    import mindspore  # noqa: F401  (before protobuf, which it configures)
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.iterdir()
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    assert found[0].file_version == "brain.Event:2"
    return found


def scalars(folder: Path) -> list[Scalar]:
    return [(event.step, value.tag, value.simple_value) for event in events(folder) for value in event.summary.value]


def writer(folder: Path, resumed_step: int = 0) -> MetricsWriter:
    return MetricsWriter(folder / "metrics.jsonl", resumed_step, folder / "tensorboard")


def test_scalars_are_the_rows(tmp_path: Path) -> None:
    metrics = writer(tmp_path)
    metrics.write({"step": 0, "eval_loss": 0.1 + 0.2, "eval_rewards/margins": -1e-17})
    metrics.write({"step": 1, "loss": float("nan"), "num_pairs": 3})
    metrics.write({"step": 2**40, "loss": 1e-30})
    expected = [
        (row["step"], name, float(np.float32(value)))
        for row in read_metrics(tmp_path / "metrics.jsonl")
        for name, value in row.items()
        if name != "step" and value is not None
    ]
    assert scalars(tmp_path / "tensorboard") == expected
    assert len(expected) == 4


def test_a_run_that_starts_anew_replaces_the_files(tmp_path: Path) -> None:
    for last in (5, 2):
        metrics = writer(tmp_path)
        for step in range(1, last + 1):
            metrics.write({"step": step, "loss": 1.0})
    assert [found[0] for found in scalars(tmp_path / "tensorboard")] == [1, 2]


def test_a_resumed_run_drops_what_is_beyond_its_step(tmp_path: Path) -> None:
    metrics = writer(tmp_path)
    for step in range(1, 8):
        metrics.write({"step": step, "loss": step / 4})
    metrics = writer(tmp_path, resumed_step=4)
    for step in (5, 6):
        metrics.write({"step": step, "loss": -1.0})
    expected = [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0), (5, -1.0), (6, -1.0)]
    assert scalars(tmp_path / "tensorboard") == [(step, "loss", value) for step, value in expected]
