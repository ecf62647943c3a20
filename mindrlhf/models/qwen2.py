"""Qwen2 and Qwen2.5: Llama with biases on q, k and v."""

from __future__ import annotations

from typing import Any

from mindrlhf.models.family import register
from mindrlhf.models.llama import LlamaFamily


class Qwen2Family(LlamaFamily):
    """Tied and untied heads; a sliding window is refused where it would cut the rows."""

    name = "qwen2"
    architectures = ("Qwen2ForCausalLM",)
    template = "qwen"
    qkv_has_bias = True

    def tiny_config(self, vocab_size: int, hidden_size: int, layers: int) -> dict[str, Any]:
        """Qwen2's words."""
        return {
            **super().tiny_config(vocab_size, hidden_size, layers),
            "rms_norm_eps": 1.0e-6,
            "rope_theta": 1000000.0,
            "sliding_window": 4096,
            "max_window_layers": layers,
            "use_sliding_window": False,
        }


QWEN2 = register(Qwen2Family())
