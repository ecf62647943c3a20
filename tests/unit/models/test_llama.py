"""What Llama, Mistral and Qwen2 make of a config.json: scalings, windows, refusals, and the cells that rotate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mindspore import Tensor, nn

from mindrlhf.models import BuildOptions, family_of, get_family
from mindrlhf.models.family import TINY_HEAD
from mindrlhf.models.llama_backbone import RotaryPositions, rope_of
from mindrlhf.models.rope import rope_settings
from mindrlhf.runtime.errors import UserError

OPTIONS = BuildOptions(seq_length=64)
SHAPES = {
    **{"vocab_size": 300, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 1},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mlp_bias": True}, "mlp_bias is not supported for llama"),
        ({"attention_bias": True}, "attention_bias is not supported for llama"),
        ({"head_dim": 32}, "head_dim 32 x 4 heads is not hidden_size"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "head_dim 12 x 5 heads is not hidden_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads 4"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported for llama"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not supported"),
        ({"max_position_embeddings": 63}, "rows of 64 tokens pass the model's 63 positions"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope scaling 'longrope' is not supported"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 31},
            "the model's 62 position",
        ),
    ],
)
def test_what_would_run_wrongly_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        get_family("llama").from_hf_config({**SHAPES, **change}, OPTIONS)


def test_a_scaled_model_takes_longer_rows() -> None:
    """Qwen2.5 as its README has it for long rows: four times the positions."""
    config = {**SHAPES, "max_position_embeddings": 32768, "rope_theta": 1e6}
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    longer = BuildOptions(seq_length=131072)
    with pytest.raises(UserError, match="rows of 131072 tokens pass the model's 32768 positions"):
        get_family("qwen2").from_hf_config(config, longer)
    found = get_family("qwen2").from_hf_config({**config, "rope_scaling": scaling}, longer)
    assert found["rope"]["kind"] == "yarn"
    assert found["theta"] == 1e6


def mistral(**more: Any) -> dict[str, Any]:
    return {**SHAPES, "architectures": ["MistralForCausalLM"], "max_position_embeddings": 32768, **more}


def test_mistrals_window_is_refused_where_rows_are_longer() -> None:
    family = family_of(mistral(), "config.json")
    assert family.name == "llama"
    family.from_hf_config(mistral(sliding_window=4096), BuildOptions(seq_length=4096))
    family.from_hf_config(mistral(sliding_window=None), BuildOptions(seq_length=4097))
    for config in (mistral(sliding_window=4096), mistral()):
        with pytest.raises(UserError, match=r"sliding_window 4096 is shorter than the rows \(4097 tokens\)"):
            family.from_hf_config(config, BuildOptions(seq_length=4097))


def test_qwen2s_window_counts_where_it_is_used() -> None:
    family = get_family("qwen2")
    family.from_hf_config({**SHAPES, "sliding_window": 16, "use_sliding_window": False}, OPTIONS)
    with pytest.raises(UserError, match="sliding_window 16 is shorter"):
        family.from_hf_config({**SHAPES, "sliding_window": 16, "use_sliding_window": True}, OPTIONS)


@pytest.mark.parametrize("name", ["llama", "qwen2", "baichuan2"])
def test_the_lora_targets_are_the_linear_layers(name: str, cpu: object) -> None:
    family = get_family(name)
    config = family.tiny_config(300, 64, 1)
    assert config["hidden_size"] // config["num_attention_heads"] == TINY_HEAD
    model = family.build(family.from_hf_config(config, OPTIONS))
    matrices = {parameter.name for parameter in model.get_parameters() if parameter.ndim == 2}
    targeted = {name for name in matrices if name.split(".")[-2] in family.lora_targets}
    assert {name.split(".")[-2] for name in targeted} == set(family.lora_targets)
    assert matrices - targeted == {"model.tok_embeddings.embedding_weight", "lm_head.weight"}


@pytest.mark.parametrize("scaling", [YARN, LLAMA3, {"type": "linear", "factor": 2.0}, {"type": "dynamic", "factor": 2}])
def test_the_backbone_rotates_by_our_tables(scaling: dict[str, Any], cpu: object) -> None:
    family, config = get_family("llama"), {**SHAPES, "rope_scaling": scaling}
    positions = RotaryPositions(family.build(family.from_hf_config(config, OPTIONS)))
    cosines, sines = rope_settings(config, 16).tables(64)
    np.testing.assert_array_equal(positions.cosines.asnumpy(), cosines)
    np.testing.assert_array_equal(positions.sines.asnumpy(), sines)


def test_a_config_of_mindformers_has_its_plain_base(cpu: object) -> None:
    config = get_family("llama").from_hf_config({**SHAPES, "rope_theta": 5e5}, OPTIONS)
    expected = rope_settings({**SHAPES, "rope_theta": 5e5}, 16)
    assert rope_of(get_family("llama").build(config).config) == expected
    del config["rope"]
    plain = rope_of(get_family("llama").build(config).config)
    np.testing.assert_array_equal(plain.tables(9), expected.tables(9))


@pytest.mark.slow
def test_twice_the_positions_scaled_by_two_are_the_positions(cpu: object) -> None:
    family = get_family("llama")
    plain: nn.Cell = family.build(family.from_hf_config(SHAPES, OPTIONS))
    scaled: nn.Cell = family.build(
        family.from_hf_config({**SHAPES, "rope_scaling": {"type": "linear", "factor": 2.0}}, OPTIONS)
    )
    random = np.random.default_rng(0)
    for ours, theirs in zip(plain.get_parameters(), scaled.get_parameters()):
        values = Tensor(random.normal(0, 0.2, ours.shape).astype(np.float32))
        ours.set_data(values)
        theirs.set_data(values)
    ids, forbidden = Tensor(np.arange(32, dtype=np.int32)[None]), Tensor(np.triu(np.ones((1, 1, 32, 32), np.uint8), 1))
    steps = np.arange(32, dtype=np.int32)[None]
    expected = family.backbone(plain)(ids, Tensor(steps), forbidden).asnumpy()
    found = family.backbone(scaled)(ids, Tensor(2 * steps), forbidden).asnumpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    unscaled = family.backbone(plain)(ids, Tensor(2 * steps), forbidden).asnumpy()
    assert np.abs(unscaled - expected).max() > 1e-3
