from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sliced_runs import cut, same

from mindrlhf.checkpoint.find import find_weights
from mindrlhf.checkpoint.rank_manifest import digest
from mindrlhf.checkpoint.tensors import read_weights
from mindrlhf.commands.convert import convert
from mindrlhf.commands.make_tiny import make_tiny
from mindrlhf.commands.transform import main
from mindrlhf.parallel.strategy import TensorLayout, write_stages
from mindrlhf.runtime.errors import IncompleteCheckpoint, UserError, run
from mindrlhf.runtime.files import write_json

Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder, and the same as a checkpoint in `ms`."""
    folder = tmp_path_factory.mktemp("model")
    make_tiny(folder / "hf", "qwen2", vocab_size=320, hidden_size=64, layers=2)
    convert(folder / "hf", folder / "ms")
    return folder


def layouts_of(arrays: Arrays, devices: int) -> dict[str, TensorLayout]:
    """Rows over all devices where they divide them."""
    return {
        name: TensorLayout(
            (devices,), tuple((0,) if not k and size % devices == 0 else () for k, size in enumerate(a.shape))
        )
        for name, a in arrays.items()
    }


def sliced(model: Path, place: Path, change: Arrays | None = None) -> Path:
    """The model on four ranks of one stage, with other tensors too; its config.json and tokenizer beside it."""
    arrays = {**read_weights(find_weights(model / "ms")), **(change or {})}
    out = cut(place, arrays, [layouts_of(arrays, 4)])
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (out / "checkpoint_network" / name).write_bytes((model / "hf" / name).read_bytes())
    return out


def transform(*words: object) -> int:
    return main([str(word) for word in words])


def test_four_ranks_become_a_hugging_face_folder(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = sliced(model, tmp_path / "out")
    transform("--src_checkpoint", out, "--dst_checkpoint", tmp_path / "hf", "--format", "hf")
    expected = read_weights(find_weights(model / "hf"))
    assert same(read_weights(find_weights(tmp_path / "hf")), expected)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
    table = json.loads((tmp_path / "hf" / "tensors.json").read_text())["tensors"]
    assert {name: entry["sha256"] for name, entry in table.items()} == {n: digest(a) for n, a in expected.items()}
    assert "merged 4 rank(s): " in capsys.readouterr().out
    with pytest.raises(UserError, match="holds weights already"):
        transform("--src_checkpoint", out, "--dst_checkpoint", tmp_path / "hf", "--format", "hf")


def test_slices_are_converted_without_a_merge(model: Path, tmp_path: Path) -> None:
    out = sliced(model, tmp_path / "out")
    convert(out, tmp_path / "hf", reverse=True)
    assert same(read_weights(find_weights(tmp_path / "hf")), read_weights(find_weights(model / "hf")))


def test_a_checkpoint_is_cut_and_a_cut_one_cut_anew(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = read_weights(find_weights(model / "ms"))
    write_stages(tmp_path / "eight", [layouts_of(arrays, 8)])
    write_stages(tmp_path / "two", [layouts_of(arrays, 2)])
    words = ("--src_checkpoint", model / "ms", "--dst_checkpoint", tmp_path / "a", "--dst_strategy", tmp_path / "eight")
    assert transform(*words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-3].startswith(f"cut for 8 ranks out of 1: {len(arrays)} tensors")
    assert said[-2].endswith(f"rank_0/checkpoint_0.safetensors and 7 more in {tmp_path}/a/checkpoint_network")
    assert "config.json" in said[-1]
    source = ("--src_checkpoint", tmp_path / "a", "--src_strategy", tmp_path / "eight", "--format", "ckpt")
    transform(*source, "--dst_checkpoint", tmp_path / "b", "--dst_strategy", tmp_path / "two", "--processes", "2")
    assert same(read_weights(find_weights(tmp_path / "b")), arrays)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"lm_head.weight": np.ones((328, 64), np.float32)},
            r"lm_head\.weight is \(328, 64\), the model's \(320, 64\)",
        ),
    ],
)
def test_full_shapes_are_held_against_the_model(model: Path, tmp_path: Path, change: Arrays, sentence: str) -> None:
    out = sliced(model, tmp_path / "out", change)
    for target in ("safetensors", "hf"):
        with pytest.raises(IncompleteCheckpoint, match=sentence):
            transform("--src_checkpoint", out, "--dst_checkpoint", tmp_path / target, "--format", target)
        assert not (tmp_path / target).exists()


def test_a_wrong_axis_is_seen_by_the_shapes_of_the_model(model: Path, tmp_path: Path) -> None:
    out = sliced(model, tmp_path / "out")
    arrays = read_weights(find_weights(model / "ms"))
    wrong = {
        name: TensorLayout((4,), tuple(reversed(layout.tensor_map))) for name, layout in layouts_of(arrays, 4).items()
    }
    write_stages(out / "strategy", [wrong])
    with pytest.raises(IncompleteCheckpoint, match=r"does not fit .*config\.json: \d+ of another shape"):
        transform("--src_checkpoint", out, "--dst_checkpoint", tmp_path / "merged")


def test_a_stage_that_nobody_mentions_is_missed_by_the_model(model: Path, tmp_path: Path) -> None:
    arrays = read_weights(find_weights(model / "ms"))
    names = list(arrays)
    half = {name: arrays[name] for name in names[: len(names) // 2]}
    out = cut(tmp_path / "out", half, [layouts_of(half, 4)])
    (out / "checkpoint_network" / "config.json").write_bytes((model / "hf" / "config.json").read_bytes())
    with pytest.raises(IncompleteCheckpoint, match=r"does not fit .*config\.json: \d+ of \d+ tensors missing"):
        transform("--src_checkpoint", out, "--dst_checkpoint", tmp_path / "merged")


def test_an_adapter_goes_along_and_what_is_foreign_is_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {
        "model.layers.0.attention.wq.mindpet_delta_lora_a": np.arange(64, dtype=np.float32).reshape(8, 8),
        "v_head.weight": np.arange(32, dtype=np.float32).reshape(8, 4),
    }
    out = sliced(model, tmp_path / "out", more)
    transform("--src_checkpoint", out, "--dst_checkpoint", tmp_path / "merged")
    found = read_weights(find_weights(tmp_path / "merged"))
    assert all(np.array_equal(found[name], array) for name, array in more.items())
    assert "config.json knows nothing of 1 tensors, which are kept: v_head.weight" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--format", "hf", "--dst_strategy", "x"], "--format hf writes whole tensors; leave --dst_strategy out"),
        (["--processes", "0"], "--processes is 0; give 1 or more"),
        (["--format", "pickle"], "--format is 'pickle'; give one of safetensors, ckpt, hf"),
        (["--dst_strategy", "absent"], "there is no folder absent; name the strategy folder"),
    ],
)
def test_wrong_words_are_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    place = [f"--src_checkpoint={model / 'ms'}", f"--dst_checkpoint={tmp_path / 'out'}"]
    assert run(main, [*place, *words]) == 2
    assert sentence in capsys.readouterr().err


def test_a_whole_checkpoint_under_other_names_is_not_cut(model: Path, tmp_path: Path) -> None:
    write_stages(tmp_path / "two", [layouts_of(read_weights(find_weights(model / "ms")), 2)])
    words = ("--src_checkpoint", model / "hf", "--dst_checkpoint", tmp_path / "a", "--dst_strategy", tmp_path / "two")
    with pytest.raises(UserError, match=r"has no layout of \d+ tensors .* under MindFormers' names \(tools/convert"):
        transform(*words)


def test_a_conversion_removes_what_described_the_file_before(model: Path, tmp_path: Path) -> None:
    transform("--src_checkpoint", model / "ms", "--dst_checkpoint", tmp_path / "a")
    network = tmp_path / "a" / "checkpoint_network"
    assert (network / "rank_0" / "manifest.json").is_file()
    convert(model / "hf", tmp_path / "a")
    assert not (network / "rank_0" / "manifest.json").exists()
    assert not (network / "tensors.json").exists()
    write_json(network / "rank_0" / "manifest.json", {})
    with pytest.raises(UserError, match=r"rank_0/manifest\.json is damaged"):
        read_weights(find_weights(tmp_path / "a"))
