"""What a config.json of GLM-4, Qwen3 and Qwen3-MoE means, and what of it is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mindrlhf.models import BuildOptions, family_of, get_family
from mindrlhf.runtime.errors import UserError

OPTIONS = BuildOptions(seq_length=64)


def config(family: str, **more: Any) -> dict[str, Any]:
    return {**get_family(family).tiny_config(300, 64, 1), **more}


def read(family: str, **more: Any) -> dict[str, Any]:
    return get_family(family).from_hf_config(config(family, **more), OPTIONS)


CHATGLM = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "padded_vocab_size": 300,
    "hidden_size": 64,
    "ffn_hidden_size": 176,
    "num_layers": 1,
    "num_attention_heads": 2,
    "kv_channels": 32,
    "multi_query_attention": True,
    "multi_query_group_num": 1,
    "layernorm_epsilon": 1.5625e-07,
    "seq_length": 4096,
    "rope_ratio": 500,
    "add_qkv_bias": True,
    "add_bias_linear": False,
    "rmsnorm": True,
    "post_layer_norm": True,
    "original_rope": True,
    "apply_residual_connection_post_layernorm": False,
    "tie_word_embeddings": False,
}


def test_both_forms_of_glm4_are_one_model() -> None:
    family = family_of(CHATGLM, "config.json")
    assert family is get_family("glm4")
    assert family.from_hf_config(CHATGLM, OPTIONS) == read("glm4")


def test_both_forms_of_glm4_make_the_same_tensors_under_names_of_their_own() -> None:
    family = get_family("glm4")
    older, newer = list(family.tensors(CHATGLM)), list(family.tensors(config("glm4")))
    assert sorted(name for group in older for name in group.ms) == sorted(name for group in newer for name in group.ms)
    names = {name for group in older for name in group.hf}
    layer = "transformer.encoder.layers.0"
    assert names == {
        "transformer.embedding.word_embeddings.weight",
        f"{layer}.self_attention.query_key_value.weight",
        f"{layer}.self_attention.query_key_value.bias",
        f"{layer}.self_attention.dense.weight",
        f"{layer}.mlp.dense_h_to_4h.weight",
        f"{layer}.mlp.dense_4h_to_h.weight",
        f"{layer}.input_layernorm.weight",
        f"{layer}.post_attention_layernorm.weight",
        "transformer.encoder.final_layernorm.weight",
        "transformer.output_layer.weight",
    }
    assert "model.layers.0.mlp.gate_up_proj.weight" in {name for group in newer for name in group.hf}


def test_the_older_form_keeps_its_frequencies() -> None:
    """5e6 ** -(2 i / 16) for the 16 entries of a head that rotate."""
    (found,) = get_family("glm4").constants(CHATGLM).items()
    assert found[0] == "transformer.rotary_pos_emb.inv_freq"
    assert found[1].tolist() == pytest.approx([5e6 ** -(2 * i / 16) for i in range(8)], rel=1e-12)
    assert get_family("glm4").ignored(found[0], CHATGLM)
    assert get_family("glm4").constants(config("glm4")) == {}


def test_a_share_of_the_head_rotates() -> None:
    assert read("glm4")["rope"]["rotary_dim"] == 16
    assert read("glm4", partial_rotary_factor=1.0)["rope"]["rotary_dim"] == 32
    assert read("qwen3")["rope"]["rotary_dim"] == 32


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("add_bias_linear", True, "add_bias_linear is True; only False is supported"),
        ("rmsnorm", False, "rmsnorm is False; only True is supported"),
        ("post_layer_norm", False, "post_layer_norm is False"),
        ("add_qkv_bias", False, "attention_bias is false; glm4 has biases"),
        ("seq_length", 32, "rows of 64 tokens pass the model's 32 positions"),
    ],
)
def test_another_chatglm_is_refused_by_name(key: str, value: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        get_family("glm4").from_hf_config({**CHATGLM, key: value}, OPTIONS)


def test_the_later_glm4_is_another_architecture() -> None:
    with pytest.raises(UserError, match="architecture Glm4ForCausalLM is not supported"):
        family_of(config("glm4", architectures=["Glm4ForCausalLM"]), "config.json")


@pytest.mark.parametrize(
    ("more", "coefficient"),
    [
        ({}, 0.0),
        ({"output_router_logits": True}, 0.001),
        ({"output_router_logits": True, "router_aux_loss_coef": 0.02}, 0.02),
        ({"router_aux_loss_coef": 0.02}, 0.0),
    ],
)
def test_the_load_balance_loss_counts_where_config_json_shows_the_routers(more: dict, coefficient: float) -> None:
    assert read("qwen3_moe", **more)["aux_loss_coef"] == coefficient
    given = get_family("qwen3_moe").from_hf_config(
        config("qwen3_moe", **more), BuildOptions(seq_length=64, aux_loss_coef=0.5)
    )
    assert given["aux_loss_coef"] == 0.5


def test_experts_by_the_newer_word() -> None:
    newer = config("qwen3_moe", num_local_experts=8)
    del newer["num_experts"]
    assert get_family("qwen3_moe").from_hf_config(newer, OPTIONS) == read("qwen3_moe")


@pytest.mark.parametrize(
    ("family", "more", "said"),
    [
        ("qwen3_moe", {"mlp_only_layers": [0]}, "layers without experts are not supported"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "layers without experts are not supported"),
        ("qwen3_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok 9 is more than the 8 experts"),
        ("qwen3_moe", {"num_experts_per_tok": None}, "config.json has no num_experts_per_tok"),
        ("qwen3", {"attention_bias": True}, "attention_bias is not supported for qwen3"),
        ("qwen3", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported for qwen3"),
        ("qwen3", {"quantization_config": {"bits": 4}}, "quantised weights are not supported"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 32}, "sliding_window 32 is shorter than the rows"),
        ("qwen3", {"max_position_embeddings": 32}, "rows of 64 tokens pass the model's 32 positions"),
        ("qwen3", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope scaling 'longrope'"),
    ],
)
def test_what_would_run_wrongly_is_refused_by_name(family: str, more: dict, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        read(family, **more)
