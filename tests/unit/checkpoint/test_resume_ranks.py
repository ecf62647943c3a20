"""Saving and resuming by several ranks: who reads what, and that all decide alike."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from mindrlhf.checkpoint.resume import read_newest, read_step, save_step
from mindrlhf.runtime.errors import CorruptCheckpoint, IncompleteCheckpoint, UserError
from mindrlhf.runtime.files import sha256_file

STATE = "rank_0/state.safetensors"


def arrays(step: int, rank: int) -> dict[str, np.ndarray]:
    return {"weight": np.full((3, 2), step, np.float32), "adam_m.weight": np.full((3, 2), 0.5 + rank, np.float32)}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


class Together:
    """Ranks as threads: what the workers of a run have in common."""

    def __init__(self, world: int = 2) -> None:
        self.world = world
        self._gate = threading.Barrier(world)
        self._said: dict[int, Any] = {}
        self._own = threading.local()

    def barrier(self) -> None:
        self._gate.wait(timeout=30)

    def _exchange(self, said: object) -> list[Any]:
        self._said[self._own.rank] = said
        self.barrier()
        found = [self._said[rank] for rank in range(self.world)]
        self.barrier()
        return found

    def agree(self, good: bool) -> bool:
        return all(self._exchange(good))

    def of_first(self, text: str) -> str:
        texts = self._exchange(text)
        assert len({len(other) for other in texts}) == 1
        return str(texts[0])

    def run(self, function: Callable[[int], Any]) -> list[Any]:
        """What the function gives or raises for each rank."""
        results: list[Any] = [None] * self.world

        def one(rank: int) -> None:
            self._own.rank = rank
            try:
                results[rank] = function(rank)
            except Exception as error:  # noqa: BLE001
                results[rank] = error
                if not isinstance(error, UserError):
                    self._gate.abort()

        threads = [threading.Thread(target=one, args=(rank,), name=f"rank_{rank}") for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def save_from_ranks(folder: Path, *, replicated: bool, step: int = 4, world: int = 2) -> Path:
    ranks = Together(world)

    def one(rank: int) -> Path:
        return save_step(
            folder,
            step,
            arrays(step, rank),
            {"seed": 1},
            rank=rank,
            world=world,
            barrier=ranks.barrier,
            keep=2,
            replicated=replicated,
        )

    path = folder / "checkpoint" / f"step-{step}"
    assert ranks.run(one) == [path] * world
    return path


def resume_all(folders: Path | list[Path], world: int = 2) -> list[Any]:
    """What `read_newest` gives every rank, each on its folder."""
    ranks = Together(world)
    places = folders if isinstance(folders, list) else [folders] * world
    return ranks.run(lambda rank: read_newest(places[rank], rank, agree=ranks.agree, of_first=ranks.of_first))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Which thread, named as its rank, hashed the file of which rank."""
    found: list[tuple[str, str]] = []

    def record(path: Path) -> str:
        found.append((threading.current_thread().name, Path(path).parent.name))
        return sha256_file(path)

    monkeypatch.setattr("mindrlhf.checkpoint.step_manifest.sha256_file", record)
    return found


def test_replicas_are_written_once_and_read_by_every_rank(tmp_path: Path) -> None:
    path = save_from_ranks(tmp_path, replicated=True)
    assert sorted(os.listdir(path)) == ["manifest.json", "rank_0"]
    for rank in range(2):
        found, state = read_step(path, rank)
        assert found["adam_m.weight"][0, 0] == 0.5
        assert state == {"seed": 1}


def test_ranks_that_differ_are_read_apart(tmp_path: Path) -> None:
    path = save_from_ranks(tmp_path, replicated=False)
    assert [read_step(path, rank)[0]["adam_m.weight"][0, 0] for rank in range(2)] == [0.5, 1.5]
    with pytest.raises(IncompleteCheckpoint, match="no state of rank 2: it was saved by 2 ranks"):
        read_step(path, 2)


def test_every_rank_hashes_its_own_file_and_no_other(tmp_path: Path, hashed: list[tuple[str, str]]) -> None:
    path = save_from_ranks(tmp_path, replicated=False)
    own = [("rank_0", "rank_0"), ("rank_1", "rank_1")]
    assert sorted(hashed) == own
    assert [os.listdir(path / f"rank_{rank}") for rank in range(2)] == [["state.safetensors"]] * 2
    files = json.loads((path / "manifest.json").read_text())["files"]
    assert {name: entry["sha256"] for name, entry in files.items()} == {
        f"rank_{rank}/state.safetensors": sha256_file(path / f"rank_{rank}" / "state.safetensors") for rank in range(2)
    }
    hashed.clear()
    found = resume_all(tmp_path)
    assert sorted(hashed) == own
    assert [(one.path, one.state, one.arrays["adam_m.weight"][0, 0]) for one in found] == [
        (path, {"seed": 1}, 0.5),
        (path, {"seed": 1}, 1.5),
    ]


OWN_DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "cut": lambda path: os.truncate(path, 100),
    "gone": os.unlink,
    "of another rank": lambda path: shutil.copyfile(path.parents[1] / "rank_0" / path.name, path),
}


@pytest.mark.parametrize("damage", OWN_DAMAGES.values(), ids=OWN_DAMAGES)
def test_what_one_rank_cannot_read_no_rank_takes_up(
    tmp_path: Path, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    older, newer = (save_from_ranks(tmp_path, replicated=False, step=step) for step in (4, 5))
    damage(newer / "rank_1" / "state.safetensors")
    assert [one.path for one in resume_all(tmp_path)] == [older] * 2
    said = capsys.readouterr().err
    assert "warning: step-5 is skipped: " in said
    assert "rank_1" in said
    damage(older / "rank_1" / "state.safetensors")
    for error in resume_all(tmp_path):
        assert isinstance(error, CorruptCheckpoint)
        assert str(error).startswith("none of the 2 steps in ")
    with pytest.raises((CorruptCheckpoint, IncompleteCheckpoint)):
        read_step(older, 1)


def test_replicas_are_verified_once_by_every_rank(tmp_path: Path, hashed: list[tuple[str, str]]) -> None:
    older, newer = (save_from_ranks(tmp_path, replicated=True, step=step) for step in (4, 5))
    assert hashed == [("rank_0", "rank_0")] * 2
    hashed.clear()
    assert [one.path for one in resume_all(tmp_path)] == [newer] * 2
    assert sorted(hashed) == [("rank_0", "rank_0"), ("rank_1", "rank_0")]
    flip(newer / STATE)
    assert [one.path for one in resume_all(tmp_path)] == [older] * 2


def test_rank_0_chooses_the_step_for_all(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    save_from_ranks(first, replicated=False, step=4)
    assert resume_all([second, first]) == [None] * 2  # rank 0 sees no step, so there is none
    errors = resume_all([first, second])
    assert [type(error) for error in errors] == [CorruptCheckpoint] * 2
    shutil.copytree(first, second)
    save_from_ranks(second, replicated=False, step=5)
    assert [one.path.name for one in resume_all([first, second])] == ["step-4"] * 2
    assert [one.path.name for one in resume_all([second, first])] == ["step-4"] * 2


def test_more_ranks_than_saved_are_refused_by_all_alike(tmp_path: Path) -> None:
    path = save_from_ranks(tmp_path, replicated=False)
    errors = resume_all(tmp_path, world=3)
    assert [isinstance(error, IncompleteCheckpoint) for error in errors] == [True] * 3
    assert "was saved by fewer ranks than this run has" in str(errors[0])
    assert str(errors[2]).startswith(f"{path} has no state of rank 2: it was saved by 2 ranks")
