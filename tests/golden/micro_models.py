"""Micro models whose weights are a closed formula, so that figures made elsewhere need no copied weights."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

LENGTH = 16  # S
LOSS, BETA = "sigmoid", 0.3
SHAPES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "initializer_range": 0.02,
}
# config.json in its older form, by family and then by variant; every value differs from its default.
QWEN2 = {**SHAPES, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rms_norm_eps": 3e-5}
LLAMA = {**SHAPES, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 2e-5}
MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "qwen2": {
        "qwen2": {**QWEN2, "rope_theta": 3000.0, "tie_word_embeddings": False, "use_sliding_window": False},
        "qwen2-tied": {**QWEN2, "rope_theta": 3000.0, "tie_word_embeddings": True, "use_sliding_window": False},
    },
    "llama": {
        "llama": {**LLAMA, "rope_theta": 700.0, "tie_word_embeddings": False, "attention_bias": False},
        "llama-tied": {**LLAMA, "rope_theta": 700.0, "tie_word_embeddings": True, "attention_bias": False},
    },
}
# prompt, chosen, rejected; token 0, which MindFormers takes for padding, is an ordinary one here.
PAIRS = [
    ([5, 0, 17, 40], [11, 0, 23, 8, 31], [11, 29, 2]),
    ([33, 7], [45, 1, 19], [3, 3, 3, 3, 0, 12, 27]),
    ([9, 21, 14, 0, 38, 26], [6], [44, 35]),
]
# Log-probs of a reference model: chosen, rejected.
REFERENCE = [[-19.5, -10.25], [-12.0, -30.75], [-3.5, -8.0]]
# A training run over PAIRS, one batch a step, with what each step of ours takes from the yaml.
TRAINING = {"learning_rate": 4e-3, "weight_decay": 0.1, "eps": 1e-6, "max_grad_norm": 0.5, "steps": 10}
WARMUP_STEPS = 2


def newer_form(config: dict[str, Any]) -> dict[str, Any]:
    """The same config.json as transformers 5 writes it."""
    rest = {key: value for key, value in config.items() if key != "rope_theta"}
    return {**rest, "rope_parameters": {"rope_theta": config["rope_theta"], "rope_type": "default"}}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face names and shapes of a Llama-like model's parameters, a tied head left out."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    narrow = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    table: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, width in (("q_proj", hidden), ("k_proj", narrow), ("v_proj", narrow)):
            table[f"{prefix}self_attn.{name}.weight"] = (width, hidden)
            if config["model_type"] == "qwen2":
                table[f"{prefix}self_attn.{name}.bias"] = (width,)
        table[f"{prefix}self_attn.o_proj.weight"] = (hidden, hidden)
        table[f"{prefix}mlp.gate_proj.weight"] = (inner, hidden)
        table[f"{prefix}mlp.up_proj.weight"] = (inner, hidden)
        table[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
        table[f"{prefix}input_layernorm.weight"] = (hidden,)
        table[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    table["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        table["lm_head.weight"] = (vocabulary, hidden)
    return table


def weights(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Float32 tensors under Hugging Face names: scale sin(a (i + 1)^2) with an a of each name, norms around 1."""
    made = {}
    for name, shape in shapes(config).items():
        a = 1.0 + zlib.crc32(name.encode()) % 1000 / 997.0
        wave = np.sin(a * (np.arange(np.prod(shape), dtype=np.float64) + 1.0) ** 2)
        wave = 1.0 + 0.3 * wave if "norm" in name else 0.5 * wave
        made[name] = wave.reshape(shape).astype(np.float32)
    return made


def sequences() -> list[list[int]]:
    """Prompt and answer of every pair, chosen and rejected in turn."""
    return [prompt + answer for prompt, *answers in PAIRS for answer in answers]


def probes(size: int) -> list[int]:
    """The entries of a flat gradient that are compared one by one."""
    return [size // 5, size // 2, size - 1]
