"""What convert_weight.py refuses, leaves untouched and leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_folders import (
    call,
    config_of,
    contents,
    hf_folder,
    refused,
)

from mindrlhf.checkpoint.find import find_weights
from mindrlhf.checkpoint.store import read_weights, save_weights
from mindrlhf.models import families
from mindrlhf.runtime import files
from mindrlhf.runtime.files import write_json


def spoil(arrays: dict[str, np.ndarray], fault: str) -> None:
    name = next(name for name in arrays if name.endswith(("down_proj.weight", "feed_forward.w2.weight")))
    if fault == "missing":
        del arrays[name]
    elif fault == "extra":
        arrays["visual.patch.weight"] = np.zeros((2, 2), np.float32)
    else:
        arrays[name] = np.ascontiguousarray(arrays[name].T)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("fault", ["missing", "extra", "misshaped"])
def test_tensors_that_are_not_the_models_are_named(tmp_path: Path, capsys: Any, fault: str, reverse: bool) -> None:
    source = hf_folder(tmp_path / "hf", limit=10**9)
    file = source / "model.safetensors"
    if reverse:
        file = tmp_path / "ms" / "ms.safetensors"
        assert call("--input_path", source, "--output_path", file) == 0
    arrays = read_weights(find_weights(file))
    spoil(arrays, fault)
    save_weights(arrays, file)
    before = contents(tmp_path)
    said = refused(capsys, "--input_path", file.parent, "--output_path", tmp_path / "o", "--reversed", reverse)
    name = "model.layers.0.feed_forward.w2.weight" if reverse else "model.layers.0.mlp.down_proj.weight"
    assert {
        "missing": f"1 of 27 tensors missing: {name}",
        "extra": "1 not the model's: visual.patch.weight",
        "misshaped": f"1 of another shape: {name} is (352, 128), the model's (128, 352)",
    }[fault] in said
    assert contents(tmp_path) == before
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", sorted(families()))
def test_joined_tensors_of_another_shape_are_named(tmp_path: Path, capsys: Any, name: str) -> None:
    source = hf_folder(tmp_path / "hf", name)
    assert call("--input_path", source, "--output_path", tmp_path / "ms.safetensors") == 0
    arrays = read_weights(find_weights(tmp_path / "ms.safetensors"))
    wide = max(arrays, key=lambda key: arrays[key].size)
    arrays[wide] = arrays[wide].reshape(-1)
    save_weights(arrays, tmp_path / "ms.safetensors")
    said = refused(
        capsys, "--input_path", tmp_path / "ms.safetensors", "--output_path", tmp_path / "o", "--reversed", "1"
    )
    assert f"1 of another shape: {wide} is ({arrays[wide].size},)" in said


def test_a_damaged_source_leaves_nothing_behind(tmp_path: Path, capsys: Any) -> None:
    source = hf_folder(tmp_path / "hf")
    file = tmp_path / "ms" / "ms.safetensors"
    assert call("--input_path", source, "--output_path", file) == 0
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    before = contents(tmp_path)
    said = refused(
        capsys, "--input_path", file, "--output_path", tmp_path / "deep" / "er" / "back", "--reversed", "True"
    )
    assert "ms.safetensors is damaged: its checksum does not match" in said
    assert contents(tmp_path) == before
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("output", ["new/ms.ckpt", "new/ms.safetensors", "new/folder"])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, capsys: Any, monkeypatch: Any, output: str) -> None:
    source = hf_folder(tmp_path / "hf")
    before = contents(tmp_path)

    def full(path: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "fsync_path", full)
    assert "No space left on device" in refused(capsys, "--input_path", source, "--output_path", tmp_path / output)
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_what_a_killed_conversion_left_is_removed(tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "hf")
    (tmp_path / "out" / "back").mkdir(parents=True)
    mine = tmp_path / "out" / ".ms.ckpt.0f0f0f0f.tmp"
    other = tmp_path / "out" / ".other.ckpt.0f0f0f0f.tmp"
    shard = tmp_path / "out" / "back" / ".model-00001-of-00002.safetensors.0f0f0f0f.tmp"
    for file in (mine, other, shard):
        file.write_bytes(b"half")
    assert call("--input_path", source, "--output_path", tmp_path / "out" / "ms.ckpt") == 0
    back = ("--output_path", tmp_path / "out" / "back", "--reversed", "True")
    assert call("--input_path", tmp_path / "out" / "ms.ckpt", *back) == 0
    assert [file.exists() for file in (mine, other, shard)] == [False, True, False]


def test_quantised_weights_are_refused_by_name(tmp_path: Path, capsys: Any) -> None:
    source = hf_folder(tmp_path / "hf")
    write_json(source / "config.json", {**config_of("qwen2"), "quantization_config": {"quant_method": "awq"}})
    said = refused(capsys, "--input_path", source, "--output_path", tmp_path / "o")
    assert "quantised weights are not supported" in said


def test_a_disk_that_is_too_small_is_said_before_the_work(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    source = hf_folder(tmp_path / "hf")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    said = refused(capsys, "--input_path", source, "--output_path", tmp_path / "o.ckpt")
    assert "o.ckpt needs 0.0 GiB, and its disk has 0.0 free; make room" in said


def test_wrong_words(tmp_path: Path, capsys: Any) -> None:
    source = hf_folder(tmp_path / "hf")
    ours = tmp_path / "ms" / "ms.ckpt"
    assert call("--input_path", source, "--output_path", ours) == 0
    output = ("--output_path", tmp_path / "o")
    for sentence, words in {
        "--input_path is missing; see": output,
        "--output_path is missing; see": ("--input_path", source),
        "--input_path and --torch_ckpt_dir are the same": ("--input_path", source, "--torch_ckpt_dir", source, *output),
        "--dtype is 'f32'": ("--input_path", source, "--dtype", "f32", *output),
        "llama, qwen2, qwen3, qwen3_moe; did you mean qwen": ("--input_path", source, "--model", "qwen9", *output),
        "--model llama is the family llama, and": ("--input_path", source, "--model", "llama", *output),
        "have MindFormers' names already; with --reversed True": ("--input_path", ours, *output),
        "have Hugging Face's names already": ("--input_path", source, "--reversed", "True", *output),
        "a folder of safetensors; name a folder": (
            "--input_path",
            ours,
            "--reversed",
            "True",
            "--output_path",
            "x.ckpt",
        ),
        "end it in .ckpt or .safetensors": ("--input_path", source, "--output_path", tmp_path / "x.bin"),
        "there is no checkpoint": ("--input_path", tmp_path / "absent", *output),
        "is the source, which the result would hide": ("--input_path", source, "--output_path", source),
    }.items():
        assert sentence in refused(capsys, *words), sentence
    assert not (tmp_path / "o").exists()


def test_without_config_json_the_shapes_are_asked_for(tmp_path: Path, capsys: Any) -> None:
    source = hf_folder(tmp_path / "hf")
    (source / "config.json").unlink()
    said = refused(capsys, "--input_path", source, "--output_path", tmp_path / "o")
    assert "config.json does not exist; put the model's config.json there" in said


def test_files_of_another_model_beside_a_single_file_are_not_touched(tmp_path: Path, capsys: Any) -> None:
    first, second = hf_folder(tmp_path / "first"), hf_folder(tmp_path / "second", "llama")
    assert call("--input_path", first, "--output_path", tmp_path / "out" / "a.ckpt") == 0
    assert call("--input_path", first, "--output_path", tmp_path / "out" / "b.ckpt") == 0
    before = contents(tmp_path / "out")
    said = refused(capsys, "--input_path", second, "--output_path", tmp_path / "out" / "c.ckpt")
    assert "config.json is of another model than" in said
    assert contents(tmp_path / "out") == before


def test_a_file_may_lie_in_its_sources_folder(tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "hf")
    before = contents(source)
    assert call("--input_path", source, "--output_path", source / "ms.ckpt") == 0
    assert {name: data for name, data in contents(source).items() if name != "ms.ckpt"} == before
    assert find_weights(source).format == "safetensors"


def test_a_run_is_not_buried_under_a_conversion(tmp_path: Path, capsys: Any) -> None:
    source = hf_folder(tmp_path / "hf")
    (tmp_path / "run" / "checkpoint_network" / "rank_1").mkdir(parents=True)
    said = refused(capsys, "--input_path", source, "--output_path", tmp_path / "run")
    assert "holds the ranks of a run; give another destination" in said


def test_code_that_a_model_brings_is_carried_along(tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "hf", "baichuan2")
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"}
    write_json(source / "config.json", config)
    tokenizer = {"auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None, "../run_dpo.main"]}}
    write_json(source / "tokenizer_config.json", tokenizer)
    code = {
        "modeling_baichuan.py": "from .configuration_baichuan import BaichuanConfig\nraise SystemExit('never run')\n",
        "configuration_baichuan.py": "from .modeling_baichuan import x\n",
        "tokenization_baichuan.py": "import run_dpo\n",
    }
    for name, text in {**code, "run_dpo.py": "from .tokenization_baichuan import y\n"}.items():
        (source / name).write_text(text)
    assert call("--input_path", source, "--output_path", tmp_path / "ms") == 0
    assert call("--input_path", tmp_path / "ms", "--output_path", tmp_path / "back", "--reversed", "True") == 0
    assert {file.name: file.read_text() for file in (tmp_path / "back").glob("*.py")} == code
