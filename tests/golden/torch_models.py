"""The micro models in torch, in the vocabulary of published checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from baichuan_torch import Baichuan
from micro_models import newer_form
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

CHATGLM_NAMES = {
    "model.embed_tokens.": "transformer.embedding.word_embeddings.",
    "model.layers.": "transformer.encoder.layers.",
    "model.norm.": "transformer.encoder.final_layernorm.",
    "lm_head.": "transformer.output_layer.",
    ".self_attn.o_proj.": ".self_attention.dense.",
    ".mlp.gate_up_proj.": ".mlp.dense_h_to_4h.",
    ".mlp.down_proj.": ".mlp.dense_4h_to_h.",
}
QUERY, FUSED = ".self_attn.q_proj.", ".self_attention.query_key_value."


def build(config: Mapping[str, Any]) -> torch.nn.Module:
    """The model of a config.json; its weights are whatever torch draws."""
    if config["model_type"] == "baichuan":
        return Baichuan(dict(config))
    words = newer_form(as_glm(config) if config["model_type"] == "chatglm" else config)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(words.pop("model_type"), **words), attn_implementation="eager", dtype=torch.float32
    )


def as_glm(config: Mapping[str, Any]) -> dict[str, Any]:
    """The other published form of a ChatGLMModel's config.json."""
    return {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "vocab_size": config["padded_vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["ffn_hidden_size"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["multi_query_group_num"],
        "head_dim": config["kv_channels"],
        "rms_norm_eps": config["layernorm_epsilon"],
        "rope_theta": 10000.0 * config["rope_ratio"],
        "partial_rotary_factor": 0.5,
        "attention_bias": config["add_qkv_bias"],
        "max_position_embeddings": config["seq_length"],
        "tie_word_embeddings": config["tie_word_embeddings"],
        "pad_token_id": config["pad_token_id"],
        "torch_dtype": config["torch_dtype"],
    }


def published(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters, or their gradients, under the names and in the pieces of published checkpoints."""
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".mlp.experts." in name:
            prefix, kind = name.rsplit(".", 1)
            parts = ["gate_proj", "up_proj"] if kind == "gate_up_proj" else ["down_proj"]
            for expert, matrix in enumerate(tensor):
                for part, piece in zip(parts, matrix.chunk(len(parts))):
                    made[f"{prefix}.{expert}.{part}.weight"] = piece
        elif config["model_type"] != "chatglm":
            made[name] = tensor
        elif QUERY in name:
            triple = [tensors[name.replace("q_proj", letter)] for letter in ("q_proj", "k_proj", "v_proj")]
            made[chatglm_name(name.replace(QUERY, FUSED))] = torch.cat(triple)
        elif not re.search(r"\.[kv]_proj\.", name):
            made[chatglm_name(name)] = tensor
    return made


def loaded(config: Mapping[str, Any], arrays: Mapping[str, Any]) -> torch.nn.Module:
    """The model with the tensors of a published checkpoint: the inverse of `published`, and held to be."""
    model = build(config)
    ours = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.no_grad():
        own = dict(model.named_parameters())
        for name, parameter in own.items():
            parameter.copy_(_taken(name, own, ours))
        for name, tensor in published(config, own).items():
            assert torch.equal(tensor, ours.pop(name)), name
    assert not ours
    return model


def _taken(name: str, own: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> Tensor:
    """The parameter `name`, of those of transformers' model (`own`), out of published tensors."""
    if name in ours:
        return ours[name]
    if ".mlp.experts." in name:
        prefix, kind = name.rsplit(".", 1)
        parts = ["gate_proj", "up_proj"] if kind == "gate_up_proj" else ["down_proj"]
        count = sum(other.startswith(prefix) for other in ours) // 3
        experts = range(count)
        return torch.stack([torch.cat([ours[f"{prefix}.{e}.{part}.weight"] for part in parts]) for e in experts])
    if match := re.search(r"\.self_attn\.([qkv])_proj\.", name):
        sizes = [len(own[name.replace(match[0], f".self_attn.{letter}_proj.")]) for letter in "qkv"]
        fused = ours[chatglm_name(name.replace(match[0], FUSED))]
        return fused.split(sizes)["qkv".index(match[1])]
    return ours[chatglm_name(name)]


def chatglm_name(name: str) -> str:
    """A name of GlmForCausalLM as ChatGLMModel's checkpoints spell it."""
    for theirs, spelled in CHATGLM_NAMES.items():
        name = name.replace(theirs, spelled)
    return name
