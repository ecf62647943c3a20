from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import mindspore
import numpy as np
import pytest

from mindrlhf.checkpoint import store
from mindrlhf.checkpoint.merge import Transformed, transform
from mindrlhf.checkpoint.resume import save_step
from mindrlhf.commands.transform import main
from mindrlhf.parallel.strategy import strategy_path, write_strategy
from mindrlhf.runtime.errors import CorruptCheckpoint, IncompleteCheckpoint, UserError, run

ROOT = Path(__file__).resolve().parents[3]
ARRAYS = {
    "model.weight": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32),
    "model.bias": np.arange(3, dtype=np.float32),
}
SHAPES = {name: array.shape for name, array in ARRAYS.items()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return finished_run(tmp_path / "out", world=2)


def finished_run(folder: Path, world: int) -> Path:
    """What a data-parallel run leaves."""
    for rank in range(world):
        store.write_network(
            folder, ARRAYS, step=7, rank=rank, world=world, barrier=lambda: None, replicated=True, save="s"
        )
        write_strategy(strategy_path(folder / "strategy", rank), SHAPES, world)
    for name in ("config.json", "tokenizer.json"):
        (folder / "checkpoint_network" / name).write_text("{}")
    return folder


def merge_run(out: Path) -> Path:
    return merge(out / "checkpoint_network", out / "strategy", out.parent / "merged").path


def merge(src_checkpoint: Path, src_strategy: Path, dst_checkpoint: Path) -> Transformed:
    return transform(src_checkpoint, dst_checkpoint, src_strategy=src_strategy)


def rewrite(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """As another program would: no manifest."""
    store.save_weights(arrays, path)
    store.remove_manifest(path.parent)


@pytest.mark.parametrize("world", [1, 2, 11])
def test_replicas_become_one_checkpoint(tmp_path: Path, world: int) -> None:
    out = finished_run(tmp_path / "out", world)
    merged = merge(out / "checkpoint_network", out / "strategy", tmp_path / "merged")
    assert merged.path == tmp_path / "merged" / "checkpoint_network" / "rank_0" / "checkpoint_0.safetensors"
    assert (merged.sources, merged.targets, merged.tensors) == (world, 1, 2)
    assert merged.carried == ("config.json", "tokenizer.json")
    weights = store.find_weights(tmp_path / "merged")
    assert (weights.folder / "config.json").read_text() == "{}"
    found = store.read_weights(weights)
    assert found.keys() == ARRAYS.keys()
    assert all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


def test_copies_that_are_no_links_and_the_folder_around_them_do_as_well(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "moved")
    assert merge(tmp_path / "moved", tmp_path / "moved" / "strategy", tmp_path / "merged").tensors == 2


def test_the_ending_is_the_sources_and_the_other_one_is_removed(out: Path) -> None:
    target = merge_run(out)
    for rank in range(2):
        path = store.network_file(out, rank)
        parameters = [{"name": name, "data": mindspore.Tensor(array)} for name, array in ARRAYS.items()]
        mindspore.save_checkpoint(parameters, str(path.with_suffix(".ckpt")), crc_check=True)
        path.unlink()
        store.remove_manifest(path.parent)
    merged = merge_run(out)
    assert merged == target.with_suffix(".ckpt")
    assert not target.exists()
    assert np.array_equal(store.read_weights(store.find_weights(merged))["model.weight"], ARRAYS["model.weight"])


def test_a_missing_rank_is_named(out: Path) -> None:
    shutil.rmtree(out / "checkpoint_network" / "rank_1")
    with pytest.raises(IncompleteCheckpoint, match=r"lacks the checkpoint of rank 1: the strategy .* is for 2 ranks"):
        merge_run(out)
    strategy_path(out / "strategy", 0).unlink()
    with pytest.raises(IncompleteCheckpoint, match="lacks the strategy of rank 0"):
        merge_run(out)


def test_a_foreign_rank_is_named(out: Path) -> None:
    shutil.copytree(out / "checkpoint_network" / "rank_1", out / "checkpoint_network" / "rank_2")
    with pytest.raises(UserError, match=r"holds a checkpoint of rank 2, and the strategy .* is for 2 ranks"):
        merge_run(out)


def test_a_second_file_in_a_rank_folder_is_refused(out: Path) -> None:
    shutil.copyfile(store.network_file(out, 1), store.network_file(out, 1).with_name("checkpoint_1.safetensors"))
    with pytest.raises(UserError, match=r"rank_1 holds 2 checkpoints \(checkpoint_0.safetensors, checkpoint_1.saf"):
        merge_run(out)


def test_ranks_of_different_saves_are_refused(out: Path) -> None:
    for rank in range(2):
        rewrite(store.network_file(out, rank), {name: array + rank for name, array in ARRAYS.items()})
    with pytest.raises(CorruptCheckpoint, match=r"rank_0 and rank_1 .* of different saves"):
        merge_run(out)


def test_strategies_of_different_runs_are_refused(out: Path) -> None:
    write_strategy(strategy_path(out / "strategy", 1), {**SHAPES, "more": (1,)}, world=2)
    with pytest.raises(CorruptCheckpoint, match=r"strategies of ranks 0 and 1 .* differ"):
        merge_run(out)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"model.bias": ARRAYS["model.bias"]}, "lacks 1 of 2 tensors of its strategy: model.weight"),
        ({**ARRAYS, "other": np.ones(1, np.float32)}, "holds 1 tensors that its strategy .* does not know: other"),
        (
            {**ARRAYS, "model.bias": np.ones((1, 3), np.float32)},
            "model.bias otherwise than .*: it has 2 axes, its strat",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(out: Path, arrays: dict[str, np.ndarray], sentence: str) -> None:
    for rank in range(2):
        rewrite(store.network_file(out, rank), arrays)
    with pytest.raises(UserError, match=sentence):
        merge_run(out)
    assert not (out.parent / "merged").exists()


def test_damage_that_all_replicas_share_is_noticed(out: Path) -> None:
    path = store.network_file(out, 0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)  # rank 1 is a hard link to the same bytes
    with pytest.raises(CorruptCheckpoint, match=r"the sha256 of model\.\w+ is not the one in its manifest"):
        merge_run(out)


def test_the_destination_is_never_a_run(out: Path) -> None:
    with pytest.raises(UserError, match="would replace its source"):
        merge(out / "checkpoint_network", out / "strategy", out)
    for inside in ("checkpoint_network", "checkpoint_network/sub"):
        with pytest.raises(UserError, match="would lie within its source"):
            merge(out / "checkpoint_network", out / "strategy", out / inside)
    # Beside a single file is not within it.
    alone = shutil.copy(store.network_file(merge_run(out).parents[2], 0), out.parent / "alone.safetensors")
    assert transform(alone, out.parent / "copy").path.is_file()
    other = finished_run(out.parent / "other", world=2)
    with pytest.raises(UserError, match=r"holds the ranks of a run \(rank_1\)"):
        merge(out / "checkpoint_network", out / "strategy", other)


def test_a_model_of_hugging_face_is_not_covered(out: Path) -> None:
    model = out.parent / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"theirs")
    with pytest.raises(UserError, match=r"model holds a Hugging Face model \(model\.safetensors\): give another"):
        merge(out / "checkpoint_network", out / "strategy", model)
    assert sorted(path.name for path in model.iterdir()) == ["model.safetensors"]


def test_wrong_folders_are_named(out: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there is no folder .*absent"):
        merge(tmp_path / "absent", out / "strategy", tmp_path / "merged")
    with pytest.raises(UserError, match="empty holds no rank folders"):
        merge(tmp_path / "empty", out / "strategy", tmp_path / "merged")
    with pytest.raises(UserError, match="empty holds no strategy"):
        merge(out, tmp_path / "empty", tmp_path / "merged")


def test_a_state_to_resume_from_is_no_checkpoint_to_merge(out: Path) -> None:
    step = save_step(out, 15, ARRAYS, {}, rank=0, world=1, barrier=lambda: None, keep=None)
    with pytest.raises(UserError, match=f"step-15 is a state to resume from .*; give {out}/checkpoint_network"):
        merge(step, out / "strategy", out.parent / "merged")
    with pytest.raises(UserError, match="step-15 is a state to resume from"):
        store.find_weights(step)
    weights = store.find_weights(out).files[0]
    (out.parent / "step-7").mkdir()
    named = shutil.copy(weights, out.parent / "step-7" / "model.safetensors")
    assert store.find_weights(out.parent / "step-7").files == (named,)


def test_several_workers_do_not_merge(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MS_WORKER_NUM", "2")
    words = ["--src_checkpoint=out", "--src_strategy=out", f"--dst_checkpoint={out.parent}/merged"]
    with pytest.raises(UserError, match="one process"):
        main(words)


def test_the_command_says_what_it_did_and_what_is_wrong(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--src_checkpoint={out}/checkpoint_network", f"--src_strategy={out}/strategy"]
    assert run(main, [*words, f"--dst_checkpoint={out.parent}/merged"]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "merged 2 rank(s): 2 tensors, 0.0 MiB",
        f"wrote  {out.parent}/merged/checkpoint_network/rank_0/checkpoint_0.safetensors",
        "beside config.json, tokenizer.json",
    ]
    assert run(main, [*words, f"--dst_checkpoint={out}"]) == 2
    assert capsys.readouterr().err.startswith("error: the result would replace its source")


@pytest.mark.slow
def test_the_tool_runs_from_any_folder_and_says_nothing_else(out: Path, tmp_path: Path) -> None:
    tool = [sys.executable, str(ROOT / "tools" / "transform_checkpoint.py")]
    words = ["--src_checkpoint=out/checkpoint_network", "--src_strategy=out/strategy", "--dst_checkpoint=merged"]
    done = subprocess.run([*tool, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()[-3:]] == ["merged", "wrote", "beside"]
    store.network_file(out, 0).write_bytes(b"damaged")
    done = subprocess.run([*tool, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
