from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import pytest

from mindrlhf.checkpoint import store
from mindrlhf.checkpoint.rank_manifest import RankManifest, read_manifest
from mindrlhf.checkpoint.rank_slices import RankSlices
from mindrlhf.checkpoint.safetensors_file import SafetensorsFile
from mindrlhf.parallel.strategy import TensorLayout, read_strategies, write_stages
from mindrlhf.runtime.errors import CorruptCheckpoint, UserError


class Killed(BaseException):
    """As if the process had ended here."""


def arrays_of(rank: int, save: int, *, replicated: bool) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1000 * save + (0 if replicated else rank))
    return {"a.weight": random.normal(size=(4, 3)).astype(np.float32), "b": np.full(2, save, np.float32)}


def save_all(folder: Path, save: int, *, replicated: bool, world: int = 2) -> None:
    """A save of all ranks, each a thread."""
    barrier = Barrier(world)
    failed: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            store.write_network(
                folder,
                arrays_of(rank, save, replicated=replicated),
                step=save,
                rank=rank,
                world=world,
                barrier=barrier.wait,
                replicated=replicated,
                save=f"save {save}",
            )
        except BaseException as error:  # noqa: BLE001
            failed.append(error)
            barrier.abort()

    threads = [Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise Killed


def manifest_of(folder: Path, rank: int) -> RankManifest | None:
    file = SafetensorsFile(store.network_file(folder, rank))
    try:
        return read_manifest(file)
    finally:
        file.close()


@pytest.mark.parametrize("replicated", [True, False])
def test_all_ranks_of_a_save_say_so(tmp_path: Path, replicated: bool) -> None:
    names = set()
    for save in (1, 2):
        save_all(tmp_path, save, replicated=replicated)
        found = [manifest_of(tmp_path, rank) for rank in range(2)]
        assert [(m.rank, m.world, m.step, m.file) for m in found if m] == [
            (rank, 2, save, "checkpoint_0.safetensors") for rank in range(2)
        ]
        assert found[0]
        assert found[1]
        assert found[0].save == found[1].save
        names.add(found[0].save)
        assert sorted(place.name for place in (tmp_path / "checkpoint_network").iterdir()) == ["rank_0", "rank_1"]
    assert names == {"save 1", "save 2"}


def until_killed(function: Callable[..., object], left_to_do: Iterator[int]) -> Callable[..., object]:
    def call(*words: object, **more: object) -> object:
        if next(left_to_do, None) is None:
            raise Killed
        return function(*words, **more)

    return call


@pytest.mark.parametrize("replicated", [True, False])
def test_a_save_killed_anywhere_leaves_no_manifest_over_other_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replicated: bool
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    real = {name: getattr(os, name) for name in ("replace", "unlink", "link")}
    outcomes = set()
    for killed_at in range(40):
        folder = tmp_path / str(killed_at)
        save_all(folder, 1, replicated=replicated)
        left_to_do = iter(range(killed_at))
        killed = False
        with monkeypatch.context() as patch:
            for name, function in real.items():
                patch.setattr(f"os.{name}", until_killed(function, left_to_do))
            try:
                save_all(folder, 2, replicated=replicated)
            except Killed:
                killed = True
        outcome = left(folder, replicated)
        if not killed:
            assert outcome == "save 2"
            break
        outcomes.add(outcome)
    else:
        pytest.fail("the save never came to its end")
    assert "refused" in outcomes


def left(folder: Path, replicated: bool) -> str:
    """What a reader makes of what is there: one save whole, or a refusal; each manifest is that of its file."""
    for rank in range(2):
        path = store.network_file(folder, rank)
        if not path.is_file() or manifest_of(folder, rank) is None:
            continue
        manifest = manifest_of(folder, rank)
        assert manifest
        found = store.read_weights(store.Weights((path,), path.parent, "safetensors"))
        assert found["b"].tolist() == [manifest.step] * 2
    shape = () if replicated else (0,)
    layouts = {"a.weight": TensorLayout((2,), (shape, ())), "b": TensorLayout((2,), (shape,))}
    write_stages(folder / "strategy", [layouts])
    strategy = read_strategies(folder / "strategy")
    try:
        opened = RankSlices([store.network_file(folder, rank) for rank in range(2)], "safetensors", strategy)
        opened.check()
        steps = {manifest.step for manifest in opened.manifests if manifest}
        found = opened.read("b")
    except (UserError, FileNotFoundError):
        return "refused"
    assert set(found.tolist()) == steps
    return f"save {steps.pop()}"


def test_a_save_knows_which_boxes_its_ranks_hold(tmp_path: Path) -> None:
    for rank in range(2):
        box = ((4 * rank, 4 * rank + 4), (0, 3))
        store.write_network(
            tmp_path,
            {"a.weight": arrays_of(rank, 1, replicated=False)["a.weight"]},
            step=1,
            rank=rank,
            world=2,
            barrier=lambda: None,
            replicated=False,
            save="save 1",
            boxes={"a.weight": box},
        )
    files = [store.network_file(tmp_path, rank) for rank in range(2)]
    rows, columns = ({"a.weight": TensorLayout((2,), axes)} for axes in (((0,), ()), ((), (0,))))
    write_stages(tmp_path / "rows", [rows])
    write_stages(tmp_path / "columns", [columns])
    assert RankSlices(files, "safetensors", read_strategies(tmp_path / "rows")).table["a.weight"].shape == (8, 3)
    with pytest.raises(CorruptCheckpoint, match=r"rank_1/\S+ holds \[4:8, 0:3\] of a\.weight by its manifest"):
        RankSlices(files, "safetensors", read_strategies(tmp_path / "columns"))


def test_files_of_other_ranks_are_known_by_their_number(tmp_path: Path) -> None:
    save_all(tmp_path, 1, replicated=False)
    network = tmp_path / "checkpoint_network"
    for source, target in (("rank_0", "x"), ("rank_1", "rank_0"), ("x", "rank_1")):
        (network / source).rename(network / target)
    shape = TensorLayout((2,), ((0,),))
    write_stages(tmp_path / "strategy", [{"a.weight": TensorLayout((2,), ((0,), ())), "b": shape}])
    with pytest.raises(
        CorruptCheckpoint, match=r"rank_0/\S+ is the file of rank 1 of 2 by its manifest, and the strat"
    ):
        store.read_weights(store.find_weights(tmp_path))


def test_bytes_that_are_no_tensors_are_known_too(tmp_path: Path) -> None:
    save_all(tmp_path, 1, replicated=True)
    path = store.network_file(tmp_path, 0)
    whole = path.read_bytes()
    file = SafetensorsFile(path)
    file.close()
    start = min(offset for places in file.places.values() for offset, _ in places)
    for place in range(start):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError):
            manifest_of(tmp_path, 0)
    path.write_bytes(whole + b"more")
    with pytest.raises(CorruptCheckpoint):
        manifest_of(tmp_path, 0)
