"""Micro models of every family, whose weights are a closed formula, so that figures made elsewhere need no copies."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 16  # S
LOSS, BETA = "sigmoid", 0.3
FIGURES = Path(__file__).with_name("figures")
HOW_TO = "add its config.json to MODELS in tests/golden/micro_models.py and run tests/golden/make_figures.py"
# prompt, chosen, rejected; token 0, which MindFormers takes for padding, is an ordinary one here.
PAIRS = [
    ([5, 0, 17, 40], [11, 0, 23, 8, 31], [11, 29, 2]),
    ([33, 7], [43, 1, 19], [3, 3, 3, 3, 0, 12, 27]),
    ([9, 21, 14, 0, 38, 26], [6], [44, 35]),
]
# Log-probs of a reference model: chosen, rejected.
REFERENCE = [[-19.5, -10.25], [-12.0, -30.75], [-3.5, -8.0]]
# A training run over PAIRS, one batch a step, with what each step of ours takes from the yaml.
TRAINING = {"learning_rate": 4e-3, "weight_decay": 0.1, "eps": 1e-6, "max_grad_norm": 0.5, "steps": 10}
WARMUP_STEPS = 2

SHAPES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "bos_token_id": 46,
    "eos_token_id": 45,
    "pad_token_id": 47,  # in no pair: torch keeps the gradient of the pad row at 0
    "torch_dtype": "float32",
}
# config.json in its older form; every value that a family may overlook differs from its default.
LLAMA = {
    **SHAPES,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rms_norm_eps": 2e-5,
    "rope_theta": 700.0,
    "rope_scaling": None,
    "attention_bias": False,
}
QWEN2 = {
    **SHAPES,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "rms_norm_eps": 3e-5,
    "rope_theta": 3000.0,
    "use_sliding_window": False,
    "sliding_window": 8,
}
QWEN3 = {
    **QWEN2,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 12,
    "sliding_window": None,
    "attention_bias": False,
}
QWEN3_MOE = {
    **QWEN3,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 12,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "output_router_logits": False,
    "router_aux_loss_coef": 0.05,
}
GLM4 = {
    **SHAPES,
    "architectures": ["GlmForCausalLM"],
    "model_type": "glm",
    "head_dim": 8,
    "rms_norm_eps": 4e-5,
    "rope_theta": 5000.0,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
}
CHATGLM = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_softmax_in_fp32": True,
    "ffn_hidden_size": 40,
    "fp32_residual_connection": False,
    "hidden_size": 32,
    "kv_channels": 8,
    "layernorm_epsilon": 4e-5,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 4,
    "num_layers": 2,
    "original_rope": True,
    "eos_token_id": [45],
    "pad_token_id": 47,
    "padded_vocab_size": 48,
    "post_layer_norm": True,
    "rmsnorm": True,
    "rope_ratio": 0.5,
    "seq_length": 64,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
BAICHUAN2 = {
    **{key: value for key, value in SHAPES.items() if key not in ("num_key_value_heads", "max_position_embeddings")},
    "architectures": ["BaichuanForCausalLM"],
    "model_type": "baichuan",
    "rms_norm_eps": 6e-5,
    "model_max_length": 64,
}
LLAMA3_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 48}
YARN_ROPE = {"factor": 4.0, "original_max_position_embeddings": 16}
YARN_DETAILS = {"factor": 6.4, "original_max_position_embeddings": 10, "beta_fast": 2.0, "beta_slow": 0.1}
MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "llama": LLAMA,
        "llama-tied": {**LLAMA, "tie_word_embeddings": True},
        "llama-linear": {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.5}},
        "llama-dynamic": {
            **LLAMA,
            "max_position_embeddings": 12,  # fewer than LENGTH, so that the base moves
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
        },
        "llama-yarn": {**LLAMA, "rope_scaling": {"rope_type": "yarn", "attention_factor": 1.3, **YARN_DETAILS}},
        "llama-llama3": {**LLAMA, "rope_scaling": {"rope_type": "llama3", **LLAMA3_ROPE}},
    },
    "qwen2": {
        "qwen2": QWEN2,
        "qwen2-tied": {**QWEN2, "tie_word_embeddings": True},
        "qwen2-yarn": {**QWEN2, "rope_scaling": {"type": "yarn", **YARN_ROPE}},
    },
    "qwen3": {
        "qwen3": QWEN3,
        "qwen3-tied": {**QWEN3, "tie_word_embeddings": True},
        "qwen3-yarn": {**QWEN3, "rope_scaling": {"rope_type": "yarn", **YARN_ROPE}},
    },
    "qwen3_moe": {
        "qwen3_moe": QWEN3_MOE,
        "qwen3_moe-balanced": {**QWEN3_MOE, "output_router_logits": True, "norm_topk_prob": False},
    },
    "glm4": {
        "glm4": GLM4,
        "glm4-chatglm": CHATGLM,
    },
    "baichuan2": {
        "baichuan2-7b": {**BAICHUAN2, "max_position_embeddings": 64},
        "baichuan2-13b": {**BAICHUAN2, "hidden_size": 40, "num_attention_heads": 5},
    },
}
NO_NEWER_FORM = ("baichuan", "chatglm")  # transformers has no class for them


def figures(family: str) -> dict[str, Any]:
    """What make_figures.py wrote of a family's models; FileNotFoundError where it wrote nothing."""
    return json.loads((FIGURES / f"{family}.json").read_text(encoding="utf-8"))


def newer_form(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config.json as transformers 5 writes it."""
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"], **(config.get("rope_scaling") or {})}
    rope["rope_type"] = rope.pop("type", rope["rope_type"])
    gone = {"rope_theta", "rope_scaling", "partial_rotary_factor", "num_experts", "torch_dtype"}
    made = {key: value for key, value in config.items() if key not in gone}
    if "partial_rotary_factor" in config:
        rope["partial_rotary_factor"] = config["partial_rotary_factor"]
    if "num_experts" in config:
        made["num_local_experts"] = config["num_experts"]
    return {**made, "rope_parameters": rope, "dtype": config["torch_dtype"]}


def weights(shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Float32 tensors of these names and shapes: scale sin(a (i + 1)^2) with an a of each name, norms around 1."""
    made = {}
    for name, shape in shapes.items():
        a = 1.0 + zlib.crc32(name.encode()) % 1000 / 997.0
        wave = np.sin(a * (np.arange(np.prod(shape), dtype=np.float64) + 1.0) ** 2)
        wave = 1.0 + 0.3 * wave if "norm" in name else 0.35 * wave
        made[name] = wave.reshape(shape).astype(np.float32)
    return made


def sequences() -> list[list[int]]:
    """Prompt and answer of every pair, chosen and rejected in turn."""
    return [prompt + answer for prompt, *answers in PAIRS for answer in answers]


def probes(size: int) -> list[int]:
    """The entries of a flat gradient that are compared one by one."""
    return [size // 5, size // 2, size - 1]
