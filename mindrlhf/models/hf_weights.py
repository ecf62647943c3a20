"""Parameter names in Hugging Face's words and in MindFormers': maps names and arrays, opens no file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# Hugging Face part -> MindFormers part, inside `model.layers.N.` and at the top.
LLAMA_LAYER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
LLAMA_TOP = {
    "model.embed_tokens.weight": "model.tok_embeddings.embedding_weight",
    "model.norm.weight": "model.norm_out.weight",
    "lm_head.weight": "lm_head.weight",
}
_LAYER = re.compile(r"(model\.layers\.\d+\.)(.+)\.(weight|bias)")


def rename(name: str, top: dict[str, str], layer: dict[str, str]) -> str:
    """The other spelling of one parameter name; a name in neither table is returned as it is, to be reported later."""
    if name in top:
        return top[name]
    match = _LAYER.fullmatch(name)
    if match and match.group(2) in layer:
        return f"{match.group(1)}{layer[match.group(2)]}.{match.group(3)}"
    return name


def llama_to_ms(arrays: dict[str, np.ndarray], tied: bool) -> dict[str, np.ndarray]:
    """Llama-like tensors under MindFormers names. Drops rotary tables, and the head where it is the embedding."""
    skipped = {"lm_head.weight"} if tied else set()
    return {
        rename(name, LLAMA_TOP, LLAMA_LAYER): array
        for name, array in arrays.items()
        if name not in skipped and not name.endswith("rotary_emb.inv_freq")
    }


def llama_to_hf(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `llama_to_ms`."""
    top = {ms: hf for hf, ms in LLAMA_TOP.items()}
    layer = {ms: hf for hf, ms in LLAMA_LAYER.items()}
    return {rename(name, top, layer): array for name, array in arrays.items()}
