"""Weights into MindFormers' names and back: every family, both directions, all formats and dtypes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
from convert_folders import (
    KINDS,
    bits,
    call,
    config_of,
    contents,
    hf_folder,
    models,
    refused,
)
from mindspore import Parameter, Tensor

from mindrlhf.checkpoint.find import find_weights
from mindrlhf.checkpoint.store import read_weights, save_weights
from mindrlhf.commands import convert as command
from mindrlhf.commands.conversion import rounded
from mindrlhf.config.schema import Config, Model
from mindrlhf.models import families, get_family
from mindrlhf.runtime.files import write_json
from mindrlhf.trainers.policy import Source, find_source
from mindrlhf.trainers.weights import load_weights

# there and back


@pytest.mark.parametrize(("name", "variant", "tied"), list(models()))
def test_there_and_back_is_equal_bit_for_bit(tmp_path: Path, name: str, variant: str, tied: bool) -> None:
    source = hf_folder(tmp_path / "hf", name, variant, tied, dtype="bf16")
    for number, output in enumerate(("one/ms.ckpt", "two/ms.safetensors", "three")):
        assert call("--input_path", source, "--output_path", tmp_path / output) == 0
        ours = read_weights(find_weights(tmp_path / output))
        assert ours.keys() == {
            key for group in get_family(name).tensors(config_of(name, variant, tied)) for key in group.ms
        }
        back = tmp_path / f"back{number}"
        assert call("--input_path", tmp_path / output, "--output_path", back, "--reversed", "True") == 0
        assert bits(read_weights(find_weights(back))) == bits(read_weights(find_weights(source)))
        theirs, config = (json.loads((folder / "config.json").read_text()) for folder in (source, back))
        assert config == {**theirs, "torch_dtype": "bfloat16"}
        for file in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            assert (back / file).read_bytes() == (source / file).read_bytes()


@pytest.mark.parametrize("name", sorted(families()))
def test_the_tensors_are_those_of_the_whole_mapping(tmp_path: Path, name: str) -> None:
    source = hf_folder(tmp_path / "hf", name)
    assert call("--input_path", source, "--output_path", tmp_path / "out") == 0
    expected = get_family(name).hf_to_ms(read_weights(find_weights(source)), config_of(name))
    assert bits(read_weights(find_weights(tmp_path / "out"))) == bits(
        {key: np.ascontiguousarray(array) for key, array in expected.items()}
    )


def everything(source: Source) -> dict[str, np.ndarray]:
    """What a model is given of a source."""
    arrays = source.family.hf_to_ms(read_weights(source.weights), source.hf_config)
    parameters = {
        name: Parameter(Tensor(np.zeros(array.shape, np.float32)), name=name) for name, array in arrays.items()
    }
    load_weights(source, parameters)
    return {name: parameter.asnumpy().copy() for name, parameter in parameters.items()}


@pytest.mark.parametrize("name", sorted(families()))
def test_load_checkpoint_takes_what_was_written_and_what_it_was_written_from(tmp_path: Path, name: str) -> None:
    source = hf_folder(tmp_path / "hf", name)
    found = []
    for place in ("hf", "one/ms.ckpt", "two/ms.safetensors", "three", "three/checkpoint_network"):
        if place in ("one/ms.ckpt", "two/ms.safetensors", "three"):
            assert call("--input_path", source, "--output_path", tmp_path / place) == 0
        weights = find_source(Config(model=Model(load_checkpoint=str(tmp_path / place))))
        assert weights.family.name == name
        found.append(bits(everything(weights)))
    assert found[1:] == found[:-1]


@pytest.mark.parametrize("output", ["ms.ckpt", "ms.safetensors", "folder"])
def test_equal_input_gives_equal_bytes(tmp_path: Path, output: str) -> None:
    source = hf_folder(tmp_path / "hf")
    for place in ("a", "b"):
        assert call("--input_path", source, "--output_path", tmp_path / place / output) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_mindspore_loads_what_was_written_with_its_checksum(tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "hf")
    for output, kind in (("ms.ckpt", "ckpt"), ("ms.safetensors", "safetensors")):
        assert call("--input_path", source, "--output_path", tmp_path / output, "--dtype", "bf16") == 0
        # MindSpore's own sum of a .safetensors file fails on bfloat16.
        loaded = mindspore.load_checkpoint(str(tmp_path / output), format=kind, crc_check=kind == "ckpt")
        ours = read_weights(find_weights(tmp_path / output))
        assert bits({key: value.asnumpy() for key, value in loaded.items()}) == bits(ours)


def test_the_older_spellings_mean_what_lies_there(tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "hf")
    new, old, back = tmp_path / "new" / "ms.ckpt", tmp_path / "old" / "ms.ckpt", tmp_path / "back"
    assert call("--input_path", source, "--output_path", new, "--dtype", "bf16") == 0
    assert call("--torch_ckpt_dir", source, "--mindspore_ckpt_path", old, "--dtype", "bf16") == 0
    assert contents(new.parent) == contents(old.parent)
    assert call("--mindspore_ckpt_path", old, "--torch_ckpt_path", back, "--reversed", "True") == 0
    assert find_weights(back).format == "safetensors"


@pytest.mark.parametrize(
    ("name", "model"),
    [("glm4", "glm-n"), ("glm4", "glm4"), ("qwen2", "qwen2_5"), ("llama", "Yi"), ("baichuan2", "baichuan")],
)
def test_names_of_families_of_earlier_commands(tmp_path: Path, name: str, model: str) -> None:
    source = hf_folder(tmp_path / "hf", name)
    assert call("--model", model, "--input_path", source, "--output_path", tmp_path / "o") == 0


def test_every_historical_name_is_of_a_family_there_is() -> None:
    assert set(command.MODELS.values()) <= set(families())
    assert not set(command.MODELS) & set(families())


# dtypes


@pytest.mark.parametrize("dtype", sorted(KINDS))
@pytest.mark.parametrize("source", sorted(KINDS))
def test_dtypes(tmp_path: Path, source: str, dtype: str) -> None:
    folder = hf_folder(tmp_path / "hf", dtype=source)
    assert call("--input_path", folder, "--output_path", tmp_path / "ms.ckpt", "--dtype", dtype) == 0
    back = tmp_path / "back"
    assert call("--input_path", tmp_path / "ms.ckpt", "--output_path", back, "--reversed", "True") == 0
    config = json.loads((back / "config.json").read_text())
    assert config["torch_dtype"] == KINDS[dtype].name
    expected = {
        key: array.astype(np.float32).astype(KINDS[dtype]) for key, array in read_weights(find_weights(folder)).items()
    }
    assert bits(read_weights(find_weights(back))) == bits(expected)


def test_rounding_is_to_nearest_and_ties_to_even() -> None:
    words = np.array([0x3F808000, 0x3F808001, 0x3F818000, 0x3F817FFF, 0xBF808000, 0x7F800000, 0x80000000], np.uint32)
    found = rounded(words.view(np.float32), "bfloat16", "x").view(np.uint16)
    assert [f"{word:04x}" for word in found] == ["3f80", "3f81", "3f82", "3f81", "bf80", "7f80", "8000"]
    # 1 + 2^-11 lies halfway between two float16 numbers, 1 + 3 * 2^-11 too.
    halves = rounded(np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-25, np.inf], np.float32), "float16", "x")
    assert [f"{word:04x}" for word in halves.view(np.uint16)] == ["3c00", "3c02", "0000", "7c00"]
    assert np.isnan(rounded(np.array([np.nan], np.float32), "bfloat16", "x").astype(np.float32)).all()


def test_numbers_beyond_float16_are_refused_not_made_infinite(tmp_path: Path, capsys: Any) -> None:
    source = hf_folder(tmp_path / "hf", limit=10**9)
    arrays = read_weights(find_weights(source))
    arrays["model.norm.weight"][3] = 1.0e5
    save_weights(arrays, source / "model.safetensors", for_hugging_face=True)
    before = contents(tmp_path)
    said = refused(capsys, "--input_path", source, "--output_path", tmp_path / "new" / "o.ckpt", "--dtype", "fp16")
    assert "model.norm.weight has numbers beyond 65504, where float16 ends; give --dtype bf16" in said
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_the_newer_word_for_the_dtype_is_set_too(tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    config["dtype"] = config.pop("torch_dtype")
    write_json(source / "config.json", config)
    assert call("--input_path", source, "--output_path", tmp_path / "ms", "--dtype", "bf16") == 0
    assert call("--input_path", tmp_path / "ms", "--output_path", tmp_path / "back", "--reversed", "True") == 0
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == {**config, "dtype": "bfloat16"}


# tied heads and tensors that mean nothing


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_a_head_in_a_tied_source_is_left_out_and_said(tmp_path: Path, capsys: Any, name: str) -> None:
    source = hf_folder(tmp_path / "hf", name, tied=True, limit=10**9)
    arrays = read_weights(find_weights(source))
    extra = {
        "lm_head.weight": arrays["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
    }
    save_weights({**arrays, **extra}, source / "model.safetensors", for_hugging_face=True)
    assert call("--input_path", source, "--output_path", tmp_path / "ms") == 0
    assert "left out 2 tensor(s)" in capsys.readouterr().out
    assert call("--input_path", tmp_path / "ms", "--output_path", tmp_path / "back", "--reversed", "True") == 0
    assert bits(read_weights(find_weights(tmp_path / "back"))) == bits(arrays)


def test_a_missing_head_of_a_model_that_is_not_tied_is_named(tmp_path: Path, capsys: Any) -> None:
    source = hf_folder(tmp_path / "hf", tied=True)
    write_json(source / "config.json", config_of("qwen2", tied=False))
    assert "1 of 27 tensors missing: lm_head.weight" in refused(
        capsys, "--input_path", source, "--output_path", tmp_path / "o"
    )
