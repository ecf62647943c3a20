"""Qwen3, dense: norms on queries and keys, a head size of its own."""

from __future__ import annotations

from typing import Any

from mindrlhf.models.family import TINY_HEAD, register
from mindrlhf.models.hf_config import DECODER_KEYS, tiny_decoder
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
        return {
            **tiny_decoder(vocab_size, hidden_size, layers, TINY_HEAD),
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "head_dim": TINY_HEAD,
            "rms_norm_eps": 1.0e-6,
            "rope_theta": 1000000.0,
            "rope_scaling": None,
            "attention_bias": False,
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": layers,
        }


QWEN3 = register(Qwen3Family())
