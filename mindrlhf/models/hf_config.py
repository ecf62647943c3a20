"""Reading a Hugging Face `config.json`: what every family needs of it and none supports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mindrlhf.runtime.errors import UserError

# What rotary, RMSNorm and SwiGLU decoders say in their config.json.
DECODER_KEYS = frozenset(
    [
        *("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps"),
        *("rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings", "initializer_range"),
        *("hidden_act", "attention_bias", "sliding_window", "use_sliding_window", "quantization_config"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    ]
)


def need(hf_config: Mapping[str, Any], key: str) -> int:
    """A size that every model has; UserError where it is absent or no whole number above 0."""
    value = hf_config.get(key)
    if value is None:
        raise UserError(f"config.json has no {key}; give a folder whose config.json has it, or set model.config.{key}")
    if type(value) is not int or value < 1:
        raise UserError(f"config.json: {key} is {value!r}; it must be a whole number above 0")
    return value


def whole(hf_config: Mapping[str, Any], key: str, default: int) -> int:
    """A size that a config.json may leave out; UserError as `need`."""
    return default if hf_config.get(key) is None else need(hf_config, key)


def number(hf_config: Mapping[str, Any], key: str, default: float) -> float:
    """A number above or equal to 0 that a config.json may leave out; UserError for anything else.

    Text that is a number counts: yaml reads 1e-6 as text.
    """
    value = hf_config.get(key)
    try:
        found = default if value is None else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(value, bool) or not 0 <= found < math.inf:
        raise UserError(f"config.json: {key} is {value!r}; it must be a number")
    return found


def check_heads(heads: int, groups: int, head_dim: int) -> None:
    """UserError where heads do not share key-value heads evenly, or a head cannot rotate in halves."""
    if heads % groups:
        raise UserError(f"config.json: num_key_value_heads {groups} does not divide num_attention_heads {heads}")
    if head_dim % 2:
        raise UserError(f"config.json: a head of {head_dim} entries cannot rotate in pairs")


def refuse_unsupported(hf_config: Mapping[str, Any], seq_length: int, family: str, has_bias: bool) -> None:
    """UserError, by name, for an activation, biases, a sliding window or quantised weights that would run wrongly.

    seq_length: S, tokens of a row. has_bias: whether the family's q, k and v have one.
    """
    activation = hf_config.get("hidden_act", "silu")
    if activation != "silu":
        raise UserError(f"config.json: hidden_act {activation!r} is not supported for {family}; only silu is")
    if not has_bias and hf_config.get("attention_bias"):
        raise UserError(f"config.json: attention_bias is not supported for {family}")
    if hf_config.get("mlp_bias"):
        raise UserError(f"config.json: mlp_bias is not supported for {family}")
    window = hf_config.get("sliding_window") if hf_config.get("use_sliding_window", True) else None
    if window and window < seq_length:
        raise UserError(f"config.json: sliding_window {window} is shorter than the rows ({seq_length} tokens)")
    if hf_config.get("quantization_config"):
        raise UserError("config.json: quantised weights are not supported; use the original ones")


def tiny_decoder(vocab_size: int, hidden_size: int, layers: int, head_size: int) -> dict[str, Any]:
    """What the config.json of every small decoder says: sizes, two queries to a key, silu, an untied head."""
    heads = hidden_size // head_size
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
    }
