from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from sliced_runs import cut, dense, model, random_stages, same, slice_of, write_rank

from mindrlhf.checkpoint.ckpt_file import CkptFile, CkptWriter
from mindrlhf.checkpoint.find import find_weights
from mindrlhf.checkpoint.rank_slices import slices_of
from mindrlhf.checkpoint.safetensors_file import SafetensorsFile
from mindrlhf.checkpoint.store import save_weights
from mindrlhf.checkpoint.tensor_file import Spec
from mindrlhf.checkpoint.tensors import Tensors, read_weights
from mindrlhf.parallel.strategy import TensorLayout, read_strategies, write_stages
from mindrlhf.runtime.errors import UserError

ARRAYS = model()


def boxes_in(random: np.random.Generator, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    bounds = [sorted(random.integers(0, size + 1, 2).tolist()) for size in shape]
    return tuple((start, stop) for start, stop in bounds)


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_slices_look_like_whole_tensors(tmp_path: Path, kind: str, world: int) -> None:
    random = np.random.default_rng(world)
    for k in range(5):
        out = cut(tmp_path / str(k), ARRAYS, random_stages(random, ARRAYS, world), kind)
        weights = find_weights(out)
        assert same(read_weights(weights), ARRAYS)
        with Tensors(weights) as opened:
            assert {name: spec.shape for name, spec in opened.specs.items()} == {n: a.shape for n, a in ARRAYS.items()}
            for name, array in ARRAYS.items():
                box = boxes_in(random, array.shape)
                found = opened.read(name, box)
                assert found.tobytes() == array[tuple(slice(*bounds) for bounds in box)].tobytes()


@pytest.mark.parametrize("stages", [dense(ARRAYS, 2, 4), dense(ARRAYS, 2, 2, 2, shard=True), dense(ARRAYS, 1, 1, 4)])
def test_a_rank_reads_its_own_slices_of_another_layout(tmp_path: Path, stages: list[dict[str, TensorLayout]]) -> None:
    out = cut(tmp_path / "out", ARRAYS, dense(ARRAYS, 4, 2, shard=True))
    write_stages(tmp_path / "mine", stages)
    strategy = read_strategies(tmp_path / "mine")
    assert strategy.world == sum(next(iter(layouts.values())).devices for layouts in stages)
    with Tensors(find_weights(out)) as opened:
        for rank in range(strategy.world):
            mine = {name: opened.read(name, box) for name, box in slices_of(opened.specs, strategy, rank).items()}
            layouts = stages[rank // strategy.size]
            held = {name: slice_of(ARRAYS[name], layout, rank % strategy.size) for name, layout in layouts.items()}
            assert same(mine, held)


@pytest.mark.parametrize("short", [1, 1 << 12])
def test_any_box_of_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int) -> None:
    monkeypatch.setattr("mindrlhf.checkpoint.tensor_file.SHORT", short)
    monkeypatch.setattr("mindrlhf.checkpoint.tensor_file.BLOCK", 64)
    monkeypatch.setattr("mindrlhf.checkpoint.ckpt_file.SLICE", 24)  # a tensor in many pieces
    save_weights(ARRAYS, tmp_path / "x.safetensors")
    writer = CkptWriter(tmp_path / "x.ckpt")
    for name, array in ARRAYS.items():
        writer.put(name, array)
    writer.close()
    random = np.random.default_rng(0)
    for file in (SafetensorsFile(tmp_path / "x.safetensors"), CkptFile(tmp_path / "x.ckpt")):
        for name, array in ARRAYS.items():
            for _ in range(20):
                box = boxes_in(random, array.shape)
                found = file.read(name, box)
                assert found.tobytes() == array[tuple(slice(*bounds) for bounds in box)].tobytes(), (name, box)
        file.check()
        file.close()


def test_a_box_reads_no_more_than_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(64 * 4096, dtype=np.float32).reshape(64, 4096)
    save_weights({"x": array}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    read = []
    preadv = os.preadv
    monkeypatch.setattr("os.preadv", lambda fd, buffers, at: read.append(len(buffers[0])) or preadv(fd, buffers, at))
    assert np.array_equal(file.read("x", ((8, 16), (0, 4096))), array[8:16])
    assert read == [8 * 4096 * 4]
    read.clear()
    assert np.array_equal(file.read("x", ((0, 64), (1024, 2048))), array[:, 1024:2048])
    assert read == [1024 * 4] * 64
    file.close()


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindrlhf.checkpoint.rank_slices.FILES_OPEN", 2)
    out = cut(tmp_path / "out", ARRAYS, dense(ARRAYS, 1, 8))
    before = len(os.listdir("/proc/self/fd"))
    with Tensors(find_weights(out)) as opened:
        for name, array in ARRAYS.items():
            assert np.array_equal(opened.read(name), array)
            assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_states_of_an_optimizer_are_not_missed_and_are_read_where_they_are(tmp_path: Path) -> None:
    stages = dense(ARRAYS, 2, 2, 2)
    # As MindSpore leaves it: the first stage names states of a weight of the last.
    stages[0]["adam_m.lm_head.weight"] = stages[1]["lm_head.weight"]
    for layouts in stages:
        for name in list(layouts):
            if not name.startswith("adam_m"):
                layouts[f"adam_v.{name}"] = layouts[name]
    assert same(read_weights(find_weights(cut(tmp_path / "a", ARRAYS, stages))), ARRAYS)
    states = {f"adam_v.{name}": array + 1 for name, array in ARRAYS.items()}
    both = {**ARRAYS, **states}
    assert same(read_weights(find_weights(cut(tmp_path / "b", both, stages))), both)


def test_a_tied_tensor_may_lie_in_another_stage_too(tmp_path: Path) -> None:
    stages = dense(ARRAYS, 1, 2, 2)
    out = cut(tmp_path / "out", ARRAYS, stages)
    name = "model.tok_embeddings.weight"
    for rank in (2, 3):
        held = {key: slice_of(ARRAYS[key], layout, rank - 2) for key, layout in stages[1].items()}
        tied = slice_of(ARRAYS[name], stages[0][name], rank - 2)
        write_rank(out, rank, {**held, name: tied})
    with Tensors(find_weights(out)) as opened:
        assert opened.specs[name] == Spec("float32", (32, 8))
    assert same(read_weights(find_weights(out)), ARRAYS)


def test_one_rank_alone_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    out = cut(tmp_path / "out", ARRAYS, dense(ARRAYS, 1, 2))
    for place in ("rank_0", "rank_1", "rank_0/checkpoint_0.safetensors"):
        with pytest.raises(UserError, match=r"rank_\d holds the slices of one rank; give .*checkpoint_network"):
            find_weights(out / "checkpoint_network" / place)


def test_the_strategy_may_lie_elsewhere(tmp_path: Path) -> None:
    out = cut(tmp_path / "out", ARRAYS, dense(ARRAYS, 1, 2))
    (out / "strategy").rename(tmp_path / "strategies")
    weights = find_weights(out, tmp_path / "strategies")
    # A run that starts from its own output writes its strategy before it reads.
    write_stages(tmp_path / "strategies", dense(ARRAYS, 1, 4))
    assert same(read_weights(weights), ARRAYS)
