"""Event files, read back by the protobuf classes and the checksum of tensorboardX."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindrlhf.runtime.metrics import MetricsWriter, read_metrics
from mindrlhf.runtime.tensorboard import EventWriter

Scalar = tuple[int, str, float]


def records(path: Path) -> Iterator[bytes]:
    from tensorboardX.record_writer import masked_crc32c

    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        data = content[12 : 12 + length]
        assert struct.unpack("<I", content[8:12]) == (masked_crc32c(content[:8]),)
        assert struct.unpack("<I", content[12 + length : 16 + length]) == (masked_crc32c(data),)
        yield data
        content = content[16 + length :]


def events(folder: Path) -> list[Any]:
    """The events of the one file in the folder."""
    import mindspore  # noqa: F401  (before protobuf, which it configures)
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.iterdir()
    assert path.name.startswith("events.out.tfevents.")
    first, *rest = [Event.FromString(data) for data in records(path)]
    assert first.file_version == "brain.Event:2"
    assert all(event.wall_time >= first.wall_time - 60 for event in rest)
    return rest


def scalars(folder: Path) -> list[Scalar]:
    return [(event.step, value.tag, value.simple_value) for event in events(folder) for value in event.summary.value]


def write(folder: Path, steps: range, resumed_step: int = 0) -> EventWriter:
    writer = EventWriter(folder, resumed_step)
    for step in steps:
        writer.write(step, {"loss": step / 4})
    return writer


def test_scalars_are_the_rows(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl", events=tmp_path / "tensorboard")
    writer.write({"step": 0, "eval_loss": 0.1 + 0.2, "eval_rewards/margins": -1e-17})
    writer.write({"step": 1, "loss": float("nan"), "num_pairs": 3})
    writer.write({"step": 2**40, "loss": 1e-30, "日": 2})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    expected = [
        (row["step"], name, float(np.float32(value)))
        for row in rows
        for name, value in row.items()
        if name != "step" and value is not None
    ]
    assert scalars(tmp_path / "tensorboard") == expected
    assert len(expected) == 5


@pytest.mark.parametrize("step", [0, 1, 127, 128, 300, 16383, 16384, 10**9])
def test_a_step_of_any_length_is_resumed_from(tmp_path: Path, step: int) -> None:
    write(tmp_path, range(step, step + 3))
    write(tmp_path, range(step + 1, step + 2), resumed_step=max(step, 1))
    kept = [step] if step else [0, 1]
    assert [found[0] for found in scalars(tmp_path)] == [*kept, step + 1]


def test_a_run_that_starts_anew_replaces_the_files(tmp_path: Path) -> None:
    write(tmp_path, range(1, 6))
    (tmp_path / "events.out.tfevents.1.elsewhere").write_bytes(b"of another tool")
    write(tmp_path, range(1, 3))
    assert [found[0] for found in scalars(tmp_path)] == [1, 2]


def test_a_resumed_run_drops_what_is_beyond_its_step(tmp_path: Path) -> None:
    write(tmp_path, range(1, 8))
    before = events(tmp_path)[:4]
    write(tmp_path, range(5, 7), resumed_step=4)
    assert [found[0] for found in scalars(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert events(tmp_path)[:4] == before, "with their time"


@pytest.mark.parametrize("cut", [1, 4, 12, 30])
def test_a_record_cut_off_by_a_dead_run_is_dropped(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path, range(1, 6)).path
    path.write_bytes(path.read_bytes()[:-cut])
    write(tmp_path, range(4, 6), resumed_step=3)
    assert [found[0] for found in scalars(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_damaged_file_is_kept_up_to_the_damage(tmp_path: Path) -> None:
    path = write(tmp_path, range(1, 6)).path
    content = path.read_bytes()
    size = len(next(records(path))) + 16
    row = (len(content) - size) // 5
    for place in (size + 2 * row + 3, size + 2 * row + 20, size + 3 * row - 1):  # length, data, checksum of row 3
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        write(tmp_path, range(5, 6), resumed_step=4)
        assert [found[0] for found in scalars(tmp_path)] == [1, 2, 5]


def test_a_run_killed_while_it_joined_files_leaves_no_row_twice(tmp_path: Path) -> None:
    path = write(tmp_path, range(1, 4)).path
    path.with_name("events.out.tfevents.1.host.2").write_bytes(path.read_bytes())
    path.with_name(f".{path.name}.0.tmp").write_bytes(path.read_bytes()[:-20])
    write(tmp_path, range(4, 5), resumed_step=3)
    assert [found[0] for found in scalars(tmp_path)] == [1, 2, 3, 4]


def test_it_needs_no_protobuf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imported before MindSpore it makes MindSpore fail."""
    for name in ("google.protobuf", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    write(tmp_path, range(1, 3))
    write(tmp_path, range(3, 4), resumed_step=2)
