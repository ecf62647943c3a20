"""Names to and from Hugging Face, what a config.json may ask for, and the registry of families."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindrlhf.checkpoint.store import find_weights, read_weights
from mindrlhf.models import BuildOptions, families, family_of, get_family
from mindrlhf.models.family import register
from mindrlhf.models.llama import LlamaFamily
from mindrlhf.runtime.errors import IncompleteCheckpoint, UserError

OPTIONS = BuildOptions(seq_length=64)
SHAPES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture(params=["llama", "qwen2"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def without(key: str) -> dict[str, Any]:
    return {other: value for other, value in SHAPES.items() if other != key}


def test_names_go_and_come_back(name: str, tiny_folder: Callable[[str], Path]) -> None:
    family, config = get_family(name), config_of(tiny_folder(name))
    theirs = read_weights(find_weights(tiny_folder(name)))
    ours = family.hf_to_ms(theirs, config)
    assert not set(ours) & (set(theirs) - {"lm_head.weight"})
    assert family.hf_to_ms(ours, config) is ours
    back = family.ms_to_hf(ours, config)
    assert back.keys() == theirs.keys()
    for key, array in theirs.items():
        assert back[key].dtype == array.dtype
        assert back[key].tobytes() == array.tobytes(), key


def test_the_names_are_those_of_the_model(name: str, tiny_folder: Callable[[str], Path], cpu: object) -> None:
    family, config = get_family(name), config_of(tiny_folder(name))
    arrays = family.hf_to_ms(read_weights(find_weights(tiny_folder(name))), config)
    model = family.build(family.from_hf_config(config, OPTIONS))
    assert {parameter.name: parameter.shape for parameter in model.get_parameters()} == {
        key: array.shape for key, array in arrays.items()
    }
    assert family.head(model)().shape == (300, 64)


def test_a_tied_head_is_the_embedding(name: str, cpu: object) -> None:
    family = get_family(name)
    model = family.build(family.from_hf_config({**SHAPES, "tie_word_embeddings": True}, OPTIONS))
    assert family.head(model).weight is model.model.tok_embeddings.embedding_weight
    assert "lm_head.weight" not in {parameter.name for parameter in model.get_parameters()}


def test_a_tied_head_and_rotary_tables_are_left_out(name: str, tiny_folder: Callable[[str], Path]) -> None:
    family, config = get_family(name), config_of(tiny_folder(name))
    arrays = read_weights(find_weights(tiny_folder(name)))
    arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(1)
    assert "lm_head.weight" in family.hf_to_ms(arrays, config)
    tied = family.hf_to_ms(arrays, {**config, "tie_word_embeddings": True})
    assert tied.keys() == family.hf_to_ms(arrays, config).keys() - {"lm_head.weight"}


def test_what_is_wrong_with_tensors_is_named(name: str, tiny_folder: Callable[[str], Path]) -> None:
    family, config = get_family(name), config_of(tiny_folder(name))
    arrays = read_weights(find_weights(tiny_folder(name)))
    arrays["visual.patch.weight"] = np.zeros(1)
    del arrays["model.layers.0.self_attn.o_proj.weight"]
    arrays["model.norm.weight"] = np.zeros(3)
    with pytest.raises(IncompleteCheckpoint) as raised:
        family.hf_to_ms(arrays, config)
    said = str(raised.value)
    assert "tensors missing: model.layers.0.self_attn.o_proj.weight; " in said
    assert "1 of another shape: model.norm.weight is (3,), the model's (64,); " in said
    assert said.endswith("1 not the model's: visual.patch.weight")


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_null_or_default_rope_is_plain(name: str, key: str) -> None:
    plain = get_family(name).from_hf_config({**SHAPES, "rope_theta": 5e5}, OPTIONS)
    for rope in (None, {"rope_type": "default"}, {"type": "default"}):
        assert get_family(name).from_hf_config({**SHAPES, "rope_theta": 5e5, key: rope}, OPTIONS) == plain
    assert plain["theta"] == 5e5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope scaling 'longrope' is not supported"),
        ({"rope_parameters": {"rope_type": "axial", "rope_theta": 1e6}}, "rope scaling 'axial' is not supported"),
        ({"sliding_window": 63}, r"sliding_window 63 is shorter than the rows \(64 tokens\)"),
        ({"sliding_window": 16, "use_sliding_window": True}, "sliding_window 16 is shorter"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised weights are not supported"),
        ({"head_dim": 16}, "head_dim 16 x 2 heads is not hidden_size"),
    ],
)
def test_what_would_run_wrongly_is_refused(name: str, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        get_family(name).from_hf_config({**SHAPES, **change}, OPTIONS)


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 64},
        {"sliding_window": 16, "use_sliding_window": False},
        {"sliding_window": None},
        {"head_dim": 32},
        {"hidden_act": "silu"},
    ],
)
def test_what_changes_nothing_is_not_refused(name: str, change: dict[str, Any]) -> None:
    plain = get_family(name).from_hf_config(SHAPES, OPTIONS)
    assert get_family(name).from_hf_config({**SHAPES, **change}, OPTIONS) == plain


@pytest.mark.parametrize("key", [key for key in SHAPES if key != "num_key_value_heads"])
def test_a_missing_shape_is_named(name: str, key: str) -> None:
    with pytest.raises(UserError, match=f"has no {key}"):
        get_family(name).from_hf_config(without(key), OPTIONS)


def test_without_key_value_heads_all_heads_have_their_own(name: str) -> None:
    assert get_family(name).from_hf_config(without("num_key_value_heads"), OPTIONS)["n_kv_heads"] == 2


def test_attention_bias_is_refused_where_the_class_has_none() -> None:
    with pytest.raises(UserError, match="attention_bias is not supported for llama"):
        get_family("llama").from_hf_config({**SHAPES, "attention_bias": True}, OPTIONS)


def test_two_families_of_one_name() -> None:
    before = families()
    with pytest.raises(ValueError, match="two model families are called 'llama'"):
        register(LlamaFamily())
    assert families() == before


def test_an_unknown_family_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"'gpt2'; this version knows .*llama, qwen2"):
        get_family("gpt2")


def test_the_family_of_a_config() -> None:
    for family in families().values():
        for architecture in family.architectures:
            assert family_of({"architectures": [architecture]}, "config.json") is family


@pytest.mark.parametrize(("config", "word"), [({"architectures": ["GPT2Model"]}, "GPT2Model"), ({}, "missing")])
def test_an_unknown_architecture_names_those_there_are(config: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=rf"x/config.json: architecture {word} is not supported.*Qwen2ForCausalLM"):
        family_of(config, "x/config.json")
