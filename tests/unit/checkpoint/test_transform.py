from __future__ import annotations

import json
import shutil
from pathlib import Path

import mindspore
import numpy as np
import pytest
from damage import FIRST, copy_rank
from sliced_runs import Stages, cut, dense, model, random_stages, same, slice_of

from mindrlhf.checkpoint.find import find_weights
from mindrlhf.checkpoint.merge import transform
from mindrlhf.checkpoint.rank_manifest import digest
from mindrlhf.checkpoint.store import network_file, rank_folders
from mindrlhf.checkpoint.tensors import read_weights
from mindrlhf.parallel.strategy import TensorLayout, read_strategies, write_stages
from mindrlhf.runtime.errors import UserError

ARRAYS = model()
# A layout's (dp, mp, pp) and whether the optimizer is sharded.
DENSE = [(1, 1, 1, False), (8, 1, 1, True), (4, 2, 1, False), (2, 4, 1, True), (1, 8, 1, False), (2, 2, 2, True)]


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small files, of which none need outlive a crash."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def of_rank(folder: Path, rank: int) -> dict[str, np.ndarray]:
    """What the file of a rank holds, read as a file of its own."""
    (file,) = (file for file in network_file(folder, rank).parent.iterdir() if file.suffix != ".json")
    shutil.copy(file, folder / f"alone{file.suffix}")
    return read_weights(find_weights(folder / f"alone{file.suffix}"))


def require_cut(folder: Path, stages: Stages) -> None:
    """Every rank must hold what NumPy's splitting gives it, and no other."""
    size = next(iter(stages[0].values())).devices
    assert list(rank_folders(folder / "checkpoint_network")) == list(range(size * len(stages)))
    for rank in range(size * len(stages)):
        layouts = stages[rank // size]
        held = {name: slice_of(ARRAYS[name], layout, rank % size) for name, layout in layouts.items()}
        assert same(of_rank(folder, rank), held)


@pytest.mark.parametrize("seed", range(50))
def test_a_chain_of_layouts_changes_no_bit(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    worlds = [1, 2, 4, 8, 4, 1] if seed % 2 else [8, *random.choice([1, 2, 4, 8, 16], 3).tolist(), 1]
    kinds = random.choice(["safetensors", "ckpt"], len(worlds) + 1)
    place = cut(tmp_path / "0", ARRAYS, random_stages(random, ARRAYS, worlds[0]), kinds[0])
    for k, world in enumerate(worlds[1:], start=1):
        stages = random_stages(random, ARRAYS, world) if world > 1 else None
        strategy = tmp_path / f"{k}-strategy"
        if stages:
            write_stages(strategy, stages)
        target = tmp_path / str(k)
        transform(place, target, dst_strategy=strategy if stages else None, kind=kinds[k])
        if stages and k == 2:
            require_cut(target, stages)
        shutil.rmtree(place)
        place = target
    assert same(read_weights(find_weights(place)), ARRAYS)
    table = json.loads((place / "checkpoint_network" / "tensors.json").read_text())["tensors"]
    assert {name: entry["sha256"] for name, entry in table.items()} == {n: digest(a) for n, a in ARRAYS.items()}


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
@pytest.mark.parametrize("layout", DENSE)
def test_layouts_of_training_are_cut_and_joined(tmp_path: Path, layout: tuple[int, int, int, bool], kind: str) -> None:
    stages = dense(ARRAYS, *layout)
    write_stages(tmp_path / "strategies", stages)
    one = cut(tmp_path / "one", ARRAYS, dense(ARRAYS, 1, 1), kind)
    done = transform(
        network_file(one, 0).with_suffix(f".{kind}"), tmp_path / "cut", dst_strategy=tmp_path / "strategies"
    )
    assert done.targets == read_strategies(tmp_path / "strategies").world
    require_cut(tmp_path / "cut", stages)
    transform(tmp_path / "cut", tmp_path / "joined")
    assert same(read_weights(find_weights(tmp_path / "joined")), ARRAYS)


def test_mindspore_reads_what_is_written(tmp_path: Path) -> None:
    out = cut(tmp_path / "out", ARRAYS, dense(ARRAYS, 2, 2))
    for kind in ("ckpt", "safetensors"):
        done = transform(out, tmp_path / kind, kind=kind)
        loaded = mindspore.load_checkpoint(str(done.path), format=kind, crc_check=True)
        assert same({name: value.asnumpy() for name, value in loaded.items()}, ARRAYS)


def test_replicas_are_links_to_one_file(tmp_path: Path) -> None:
    write_stages(tmp_path / "strategies", dense(ARRAYS, 4, 2))
    one = cut(tmp_path / "one", ARRAYS, dense(ARRAYS, 1, 1))
    transform(one, tmp_path / "cut", dst_strategy=tmp_path / "strategies")
    inodes = [network_file(tmp_path / "cut", rank).stat().st_ino for rank in range(8)]
    assert inodes == inodes[:2] * 4
    assert len(set(inodes)) == 2
    manifests = [json.loads((network_file(tmp_path / "cut", k).parent / "manifest.json").read_text()) for k in range(8)]
    assert [manifest["rank"] for manifest in manifests] == list(range(8))
    assert len({manifest["save"] for manifest in manifests}) == 1


def test_several_processes_write_the_same_bytes(tmp_path: Path) -> None:
    write_stages(tmp_path / "strategies", dense(ARRAYS, 2, 2, shard=True))
    out = cut(tmp_path / "out", ARRAYS, dense(ARRAYS, 1, 8))
    for processes in (1, 3):
        transform(out, tmp_path / str(processes), dst_strategy=tmp_path / "strategies", processes=processes)
    for rank in range(4):
        one, three = (network_file(tmp_path / name, rank).read_bytes() for name in ("1", "3"))
        assert one == three


def test_tensors_wider_than_a_band_are_moved_in_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindrlhf.checkpoint.scan.BAND", 64)
    monkeypatch.setattr("mindrlhf.checkpoint.ckpt_file.SLICE", 40)
    random = np.random.default_rng(3)
    for k in range(6):
        stages = random_stages(random, ARRAYS, 4)
        write_stages(tmp_path / f"{k}-strategies", stages)
        out = cut(tmp_path / f"{k}", ARRAYS, random_stages(random, ARRAYS, 8), "ckpt")
        transform(out, tmp_path / f"{k}-cut", dst_strategy=tmp_path / f"{k}-strategies")
        require_cut(tmp_path / f"{k}-cut", stages)


def test_sixteen_bits_other_kinds_and_scalars(tmp_path: Path) -> None:
    bfloat16 = mindspore.Tensor(np.zeros(1, np.float32), mindspore.bfloat16).asnumpy().dtype
    random = np.random.default_rng(0)
    arrays = {
        "half": random.normal(size=(8, 4)).astype(np.float32).astype(bfloat16),
        "count": np.arange(8, dtype=np.int64),
        "flags": random.random((8, 2)) > 0.5,
        "scale": np.asarray(2.5, np.float32),
    }
    layout = {name: TensorLayout((2, 2), ((0,), *((),) * (a.ndim - 1)) if a.ndim else ()) for name, a in arrays.items()}
    out = cut(tmp_path / "out", arrays, [layout])
    for kind in ("ckpt", "safetensors"):
        transform(out, tmp_path / kind, kind=kind)
        assert same(read_weights(find_weights(tmp_path / kind)), arrays)


def test_what_cannot_be_cut_is_said(tmp_path: Path) -> None:
    one = cut(tmp_path / "one", ARRAYS, dense(ARRAYS, 1, 1))
    write_stages(tmp_path / "strategies", dense(ARRAYS, 1, 64))
    with pytest.raises(UserError, match=r"strategies does not fit .*: axis \d of \(.*\) is not divisible by 64"):
        transform(one, tmp_path / "cut", dst_strategy=tmp_path / "strategies")
    assert not (tmp_path / "cut").exists()
    other = dense(ARRAYS, 1, 2)
    del other[0]["lm_head.weight"]
    write_stages(tmp_path / "other", other)
    with pytest.raises(UserError, match=r"other has no layout of 1 tensors that .* holds: lm_head.weight"):
        transform(one, tmp_path / "cut", dst_strategy=tmp_path / "other")
    assert not (tmp_path / "cut").exists()


def test_four_ranks_copied_for_eight(tmp_path: Path) -> None:
    write_stages(tmp_path / "four", dense(ARRAYS, 1, 4))
    transform(cut(tmp_path / "one", ARRAYS, dense(ARRAYS, 1, 1)), tmp_path / "cut", dst_strategy=tmp_path / "four")
    for rank in range(4):
        copy_rank(tmp_path / "cut", rank, rank + 4)
    write_stages(tmp_path / "cut" / "strategy", dense(ARRAYS, 2, 4))
    transform(tmp_path / "cut", tmp_path / "merged")
    assert same(read_weights(find_weights(tmp_path / "merged")), ARRAYS)


def test_equal_slices_are_fine_where_they_are_constant_or_the_manifest_says_whose_they_are(tmp_path: Path) -> None:
    arrays = {
        **ARRAYS,
        "zeros": np.zeros((8, 8), np.float32),
        "repeated": np.tile(np.arange(8, dtype=np.float32), (8, 1)),
    }
    stages = dense(ARRAYS, 1, 4)
    stages[0].update(dict.fromkeys(("zeros", "repeated"), stages[0][FIRST]))
    write_stages(tmp_path / "four", stages)
    one = cut(tmp_path / "one", arrays, [{**dense(ARRAYS, 1, 1)[0], **dense(arrays, 1, 1)[0]}])
    transform(one, tmp_path / "cut", dst_strategy=tmp_path / "four")
    transform(tmp_path / "cut", tmp_path / "merged")
    assert same(read_weights(find_weights(tmp_path / "merged")), arrays)
    theirs = cut(
        tmp_path / "theirs",
        {n: a for n, a in arrays.items() if n != "repeated"},
        [{n: layout for n, layout in stages[0].items() if n != "repeated"}],
    )
    transform(theirs, tmp_path / "merged-theirs")
