from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from mindrlhf.checkpoint.resume import read_newest, read_step, save_step
from mindrlhf.checkpoint.step_manifest import write_entry, write_step_manifest
from mindrlhf.runtime.errors import CorruptCheckpoint, IncompleteCheckpoint

STATE = "rank_0/state.safetensors"


def arrays(step: int, rank: int = 0) -> dict[str, np.ndarray]:
    return {"weight": np.full((3, 2), step, np.float32), "adam_m.weight": np.full((3, 2), 0.5 + rank, np.float32)}


def save(folder: Path, step: int, keep: int | None = 2) -> Path:
    state = {"cursor": {"epoch": 1, "batch": step}, "seed": 0}
    return save_step(folder, step, arrays(step), state, rank=0, world=1, barrier=lambda: None, keep=keep)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "checkpoint"))


def latest(folder: Path) -> Path | None:
    """The step that a run goes on from."""
    found = read_newest(folder, 0)
    return found.path if found else None


def holds(path: Path | None, step: int) -> bool:
    assert path is not None
    found, state = read_step(path, 0)
    wanted = arrays(step)
    return (
        state["cursor"]["batch"] == step
        and found.keys() == wanted.keys()
        and all(np.array_equal(found[name], wanted[name]) and found[name].dtype == np.float32 for name in wanted)
    )


def test_the_newest_step_is_found_and_read(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    for step in (9, 10):
        assert save(tmp_path, step) == tmp_path / "checkpoint" / f"step-{step}"
        assert latest(tmp_path) == tmp_path / "checkpoint" / f"step-{step}"
        assert holds(latest(tmp_path), step)
    assert names(tmp_path) == ["step-10", "step-9"]
    assert sorted(os.listdir(tmp_path / "checkpoint" / "step-10")) == ["manifest.json", "rank_0"]


def test_the_manifest_says_what_the_step_is(tmp_path: Path) -> None:
    manifest = json.loads((save(tmp_path, 7) / "manifest.json").read_text())
    assert (manifest["format_version"], manifest["step"], manifest["world_size"]) == (1, 7, 1)
    (entry,) = manifest["files"].values()
    assert list(manifest["files"]) == [STATE]
    assert entry["tensors"]["weight"] == {"dtype": "F32", "shape": [3, 2]}
    assert manifest["state"]["cursor"] == {"epoch": 1, "batch": 7}


def test_only_the_newest_valid_steps_are_kept(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-6", "step-7"]
    (tmp_path / "checkpoint" / "step-7" / "manifest.json").unlink()
    save(tmp_path, 8)  # step-7 does not count, so step-6 stays
    assert names(tmp_path) == ["step-6", "step-7", "step-8"]
    save(tmp_path, 9, keep=1)
    assert names(tmp_path) == ["step-9"]
    for step in (10, 11):
        save(tmp_path, step, keep=None)
    assert names(tmp_path) == ["step-10", "step-11", "step-9"]


def empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def become_step_1(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(path.with_name("step-1"), path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path / STATE, 100),
    "nothing in the file": lambda path: os.truncate(path / STATE, 0),
    "flipped": lambda path: flip(path / STATE),
    "no file": lambda path: os.unlink(path / STATE),
    "no rank": lambda path: shutil.rmtree(path / "rank_0"),
    "no manifest": lambda path: os.unlink(path / "manifest.json"),
    "cut manifest": lambda path: os.truncate(path / "manifest.json", 50),
    "nothing in the folder": empty,
    "another step's file": lambda path: shutil.copyfile(path.with_name("step-1") / STATE, path / STATE),
    "another step's folder": become_step_1,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_step_is_refused_and_loudly_skipped(
    tmp_path: Path, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    damage(newest)
    with pytest.raises((CorruptCheckpoint, IncompleteCheckpoint), match="step-2"):
        read_step(newest, 0)
    assert latest(tmp_path) == tmp_path / "checkpoint" / "step-1"
    assert capsys.readouterr().err.startswith("warning: step-2 is skipped: ")


def test_steps_of_which_none_is_valid_are_no_fresh_start(tmp_path: Path) -> None:
    for step in (1, 2):
        (save(tmp_path, step) / "manifest.json").unlink()
    with pytest.raises(CorruptCheckpoint, match="none of the 2 steps"):
        latest(tmp_path)


@pytest.mark.parametrize(
    "name", ["../step-1/rank_0/state.safetensors", "/etc/passwd", "link/state.safetensors", "rank_0/../x"]
)
def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    (path / "link").symlink_to(tmp_path / "checkpoint" / "step-1" / "rank_0")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"] = {name: manifest["files"].popitem()[1]}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptCheckpoint, match="outside its folder"):
        read_step(path, 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format_version", 2),
        ("step", "2"),
        ("step", 3),
        ("world_size", 0),
        ("replicated", None),
        ("files", {}),
        ("files", []),
        ("files", {STATE: {"size": 1}}),
        ("state", []),
        ("unknown", 1),
    ],
)
def test_a_manifest_with_a_wrong_value_is_refused(tmp_path: Path, key: str, value: object) -> None:
    path = save(tmp_path, 2)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(CorruptCheckpoint, match="step-2"):
        read_step(path, 0)


class Killed(BaseException):
    """Stands for SIGKILL at a call into the file system."""


@pytest.mark.parametrize("step", [2, 1])
def test_killed_at_any_call_a_save_leaves_the_older_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Step 1 is saved over a damaged step 1; its older step is 0."""
    calls = ("fsync", "replace", "rename", "mkdir", "rmdir", "unlink")
    originals = {name: getattr(os, name) for name in calls}
    left = [0]

    def deadly(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return originals[name](*args, **kwargs)

        return call

    for survived in range(1000):
        folder = tmp_path / str(survived)
        save(folder, 0)
        flip(save(folder, 1) / STATE)
        with monkeypatch.context() as patch:
            for name in calls:
                patch.setattr(os, name, deadly(name))
            left[0] = survived
            try:
                save(folder, step)
                break
            except Killed:
                pass
        found = latest(folder)
        assert found is not None
        assert holds(found, int(found.name[5:]))
        assert found.name in ("step-0", f"step-{step}")
        save(folder, step)
        assert latest(folder) == folder / "checkpoint" / f"step-{step}"
        assert not [name for name in names(folder) if name.endswith(".tmp")]
    assert survived > 10


def test_a_run_started_anew_is_not_resumed_from_the_old_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (20, 30):
        save(tmp_path, step)
    save(tmp_path, 10)
    assert latest(tmp_path) == tmp_path / "checkpoint" / "step-10"
    assert names(tmp_path) == ["step-10"]
    assert "step-30 is of an earlier run beyond the step-10 just saved: removed" in capsys.readouterr().err


def test_a_single_process_resumes_without_anyone_to_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_newest(tmp_path, 0) is None
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    found = read_newest(tmp_path, 0)
    assert found
    assert (found.path, found.state["cursor"]["batch"]) == (newest, 2)
    flip(newest / STATE)
    found = read_newest(tmp_path, 0)
    assert found
    assert (found.path.name, found.arrays["weight"][0, 0]) == ("step-1", 1)
    assert capsys.readouterr().err.startswith("warning: step-2 is skipped: ")


def test_rank_0_gathers_only_what_is_there_and_whole(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder = tmp_path / "checkpoint" / "step-1"
    state = folder / STATE
    entry = state.with_name("entry.json")

    def gather() -> None:
        write_step_manifest(folder, step=1, world_size=1, replicated=True, names=[STATE], state={})

    with pytest.raises(IncompleteCheckpoint, match="rank_0 was not written where rank 0 can see it"):
        gather()
    write_entry(state)
    state.write_bytes(state.read_bytes() + b"more")
    with pytest.raises(CorruptCheckpoint, match=r"state\.safetensors has \d+ bytes, its rank wrote \d+"):
        gather()
    for text in ("", "[]", '{"size": 1}'):
        entry.write_text(text)
        with pytest.raises(CorruptCheckpoint, match=r"entry\.json is damaged"):
            gather()
