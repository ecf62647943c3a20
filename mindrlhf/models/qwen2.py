"""Qwen2 and Qwen2.5: Llama with biases on q, k and v."""

from __future__ import annotations

from mindrlhf.models.family import register
from mindrlhf.models.llama import LlamaFamily


class Qwen2Family(LlamaFamily):
    """Tied and untied heads; a sliding window is refused where it would cut the rows."""

    name = "qwen2"
    architectures = ("Qwen2ForCausalLM",)
    qkv_has_bias = True


QWEN2 = register(Qwen2Family())
