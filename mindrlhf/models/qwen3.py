"""Qwen3, dense: norms on queries and keys, a head size of its own."""

from __future__ import annotations

from typing import Any

from mindrlhf.models.family import TINY_HEAD, register
from mindrlhf.models.hf_config import DECODER_KEYS
from mindrlhf.models.mcore import McoreFamily


class Qwen3Family(McoreFamily):
    """Tied and untied heads; a sliding window is refused where it would cut the rows."""

    name = "qwen3"
    architectures = ("Qwen3ForCausalLM",)
    template = "qwen3"
    qk_norm = True
    config_keys = DECODER_KEYS | {"max_window_layers", "layer_types"}

    def tiny_config(self, vocab_size: int, hidden_size: int, layers: int) -> dict[str, Any]:
        """The words of Qwen3-8B."""
        heads = hidden_size // TINY_HEAD
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "intermediate_size": hidden_size * 11 // 4,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "head_dim": TINY_HEAD,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "initializer_range": 0.02,
            "rms_norm_eps": 1.0e-6,
            "rope_theta": 1000000.0,
            "rope_scaling": None,
            "attention_bias": False,
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": layers,
            "tie_word_embeddings": False,
        }


QWEN3 = register(Qwen3Family())
