"""Baichuan2 in plain torch, for which transformers has no class: 7B with rotary positions, 13B with ALiBi."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ROPE_THETA = 10000.0


class Baichuan(nn.Module):
    """Called as transformers' models are; parameters have the names of the published checkpoints."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        vocabulary, hidden = config["vocab_size"], config["hidden_size"]
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(vocabulary, hidden)
        self.model.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.model.norm = nn.RMSNorm(hidden, eps=config["rms_norm_eps"])
        self.lm_head = nn.Linear(hidden, vocabulary, bias=False)
        self.heads, self.head_size = config["num_attention_heads"], hidden // config["num_attention_heads"]
        # The 13B has no positions of its own, and no limit of them in config.json.
        self.rotary = "max_position_embeddings" in config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> SimpleNamespace:
        """(R,S) each, attention_mask 0 for padding -> logits (R,S,V)."""
        seen = attention_mask[:, None, None, :].bool() & torch.ones(2 * input_ids.shape[-1:]).tril().bool()
        bias = torch.zeros(()).where(seen, torch.finfo(torch.float32).min)
        cosines = sines = None
        if self.rotary:
            rates = ROPE_THETA ** -(torch.arange(0, self.head_size, 2) / self.head_size)
            angles = (position_ids[..., None] * rates).repeat(1, 1, 2)[:, None]
            cosines, sines = angles.cos(), angles.sin()
        else:
            distances = position_ids[:, None, None, :] - position_ids[:, None, :, None]
            bias = bias + torch.tensor(slopes(self.heads))[:, None, None] * distances
        hidden = self.model.embed_tokens(input_ids)
        for layer in self.model.layers:
            hidden = layer(hidden, bias, cosines, sines)
        head = functional.normalize(self.lm_head.weight)
        return SimpleNamespace(logits=functional.linear(self.model.norm(hidden), head))


class Layer(nn.Module):
    """Attention and SwiGLU, each behind its norm."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, inner, eps = config["hidden_size"], config["intermediate_size"], config["rms_norm_eps"]
        self.input_layernorm = nn.RMSNorm(hidden, eps=eps)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps=eps)
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        self.self_attn.W_pack = nn.Linear(hidden, 3 * hidden, bias=False)
        self.self_attn.o_proj = nn.Linear(hidden, hidden, bias=False)
        self.mlp.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.mlp.up_proj = nn.Linear(hidden, inner, bias=False)
        self.mlp.down_proj = nn.Linear(inner, hidden, bias=False)
        self.heads = config["num_attention_heads"]

    def forward(self, hidden: Tensor, bias: Tensor, cosines: Tensor | None, sines: Tensor | None) -> Tensor:
        """hidden (R,S,H), bias (R,1 or N,S,S), tables (R,1,S,D) -> (R,S,H)."""
        packed = self.self_attn.W_pack(self.input_layernorm(hidden)).unflatten(-1, (3, self.heads, -1))
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        if cosines is not None and sines is not None:
            query, key = (states * cosines + turned(states) * sines for states in (query, key))
        scores = query @ key.mT / math.sqrt(query.shape[-1]) + bias
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        hidden = hidden + self.self_attn.o_proj(mixed)
        inner = self.post_attention_layernorm(hidden)
        return hidden + self.mlp.down_proj(functional.silu(self.mlp.gate_proj(inner)) * self.mlp.up_proj(inner))


def turned(states: Tensor) -> Tensor:
    """The halves of each head as (-second, first)."""
    first, second = states.chunk(2, -1)
    return torch.cat([-second, first], -1)


def slopes(heads: int) -> list[float]:
    """Those of the ALiBi paper: 2^(-8k/n); other counts than powers of 2 take every second one of the next power."""
    below = 2 ** int(math.log2(heads))
    plain = [2.0 ** (-8.0 * k / below) for k in range(1, below + 1)]
    return plain if below == heads else plain + slopes(2 * below)[::2][: heads - below]
