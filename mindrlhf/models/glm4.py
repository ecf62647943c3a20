"""GLM-4-9B, in both forms in which it is published: GlmForCausalLM and ChatGLMModel."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mindrlhf.models.family import TINY_HEAD, BuildOptions, register
from mindrlhf.models.fused_weights import chained, fused_gate_up, fused_qkv, half_split_order, stacked
from mindrlhf.models.hf_config import DECODER_KEYS, need, number, tiny_decoder
from mindrlhf.models.hf_weights import Group, renamed
from mindrlhf.models.mcore import McoreFamily
from mindrlhf.parallel.layout import ModelShape
from mindrlhf.runtime.errors import UserError

if TYPE_CHECKING:
    import numpy as np

# What ChatGLMModel's config.json calls the sizes.
OLDER_WORDS = {
    "num_layers": "num_hidden_layers",
    "padded_vocab_size": "vocab_size",
    "ffn_hidden_size": "intermediate_size",
    "kv_channels": "head_dim",
    "multi_query_group_num": "num_key_value_heads",
    "layernorm_epsilon": "rms_norm_eps",
    "seq_length": "max_position_embeddings",
    "add_qkv_bias": "attention_bias",
}
# What it must say where it says it; anything else is another model.
OLDER_FIXED = {
    "add_bias_linear": False,
    "rmsnorm": True,
    "post_layer_norm": True,
    "original_rope": True,
    "multi_query_attention": True,
    "apply_residual_connection_post_layernorm": False,
}
OLDER_THETA = 10000.0
ROTARY_SHARE = 0.5
# What makes another model of it wherever it stands.
OTHERS = ("pre_seq_len", "quantization_bit", "vision_config")


def older_words(config: dict[str, Any]) -> dict[str, Any]:
    """config.json of GlmForCausalLM's form in ChatGLMModel's, in which glm-4-9b-chat is published."""
    return {
        "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration"},
        "model_type": "chatglm",
        "hidden_size": config["hidden_size"],
        "num_attention_heads": config["num_attention_heads"],
        "num_hidden_layers": config["num_hidden_layers"],
        "rope_ratio": config["rope_theta"] / OLDER_THETA,
        "tie_word_embeddings": config["tie_word_embeddings"],
        **{older: config[newer] for older, newer in OLDER_WORDS.items()},
        **OLDER_FIXED,
    }


class Glm4Family(McoreFamily):
    """Half of each head rotates, neighbour with neighbour; q, k and v have biases."""

    name = "glm4"
    architectures = ("GlmForCausalLM", "ChatGLMModel", "ChatGLMForConditionalGeneration")
    template = "glm4"
    tokenizer_kind = "tiktoken"
    tiny_variants = MappingProxyType({"ChatGLMModel": older_words})
    qkv_has_bias = True
    partly_rotary = True
    config_keys = DECODER_KEYS | {"partial_rotary_factor", "rope_ratio"} | OLDER_WORDS.keys() | OLDER_FIXED.keys()

    def from_hf_config(self, hf_config: Mapping[str, Any], options: BuildOptions) -> dict[str, Any]:
        """See McoreFamily; UserError also for a ChatGLM that is built otherwise than GLM-4."""
        for key, value in OLDER_FIXED.items():
            if hf_config.get(key, value) != value:
                raise UserError(
                    f"config.json: {key} is {hf_config[key]!r}; only {value!r} is supported for {self.name}"
                )
        for key in OTHERS:
            if hf_config.get(key):
                raise UserError(f"config.json: {key} is not supported for {self.name}")
        words = newer_words(hf_config)
        if not words.get("attention_bias", True):
            raise UserError(f"config.json: attention_bias is false; {self.name} has biases on q, k and v")
        return super().from_hf_config(words, options)

    def mindformers_keys(self) -> frozenset[str]:
        """See McoreFamily; and the arguments of ChatGLM2Config, in which MindFormers' own yaml files of GLM-4 are."""
        from mindformers import ChatGLM2Config

        return super().mindformers_keys() | frozenset(inspect.signature(ChatGLM2Config.__init__).parameters)

    def shape(self, hf_config: Mapping[str, Any]) -> ModelShape:
        """See ModelFamily."""
        return super().shape(newer_words(hf_config))

    def tensors(self, hf_config: Mapping[str, Any]) -> Iterator[Group]:
        """Names as in the form that config.json has; see McoreFamily."""
        groups = super().tensors(newer_words(hf_config))
        yield from groups if is_newer(hf_config) else map(_older_form, groups)

    def constants(self, hf_config: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The frequencies that ChatGLMModel keeps beside its weights, (r/2,) for r entries that rotate."""
        import numpy as np

        if is_newer(hf_config):
            return {}
        words = newer_words(hf_config)
        rotary = int(need(words, "head_dim") * number(words, "partial_rotary_factor", ROTARY_SHARE))
        return {"transformer.rotary_pos_emb.inv_freq": words["rope_theta"] ** -(np.arange(0, rotary, 2) / rotary)}

    def _attention(self, hf_config: Mapping[str, Any], theirs: str, ours: str) -> Iterator[Group]:
        heads, hidden, size = (need(hf_config, key) for key in ("num_attention_heads", "hidden_size", "head_dim"))
        groups = need(hf_config, "num_key_value_heads")
        order = half_split_order(size, int(size * number(hf_config, "partial_rotary_factor", ROTARY_SHARE)))
        for kind in ("weight", "bias"):
            yield fused_qkv(theirs, f"{ours}.linear_qkv.{kind}", kind, heads, groups, size, hidden, order)
        yield renamed(f"{theirs}.o_proj.weight", f"{ours}.linear_proj.weight", hidden, heads * size)

    def _mlp(self, hf_config: Mapping[str, Any], theirs: str, ours: str) -> Iterator[Group]:
        hidden, inner = need(hf_config, "hidden_size"), need(hf_config, "intermediate_size")
        fused = fused_gate_up("gate", "up", ours, inner, hidden)
        yield chained(stacked(f"{theirs}.gate_up_proj.weight", inner, inner, hidden=hidden), fused)
        yield renamed(f"{theirs}.down_proj.weight", f"{ours}.linear_fc2.weight", hidden, inner)

    def tiny_config(self, vocab_size: int, hidden_size: int, layers: int) -> dict[str, Any]:
        """The words of glm-4-9b-chat-hf."""
        return {
            **tiny_decoder(vocab_size, hidden_size, layers, TINY_HEAD),
            "architectures": ["GlmForCausalLM"],
            "model_type": "glm",
            "head_dim": TINY_HEAD,
            "rms_norm_eps": 1.5625e-07,
            "rope_theta": 5000000.0,
            "partial_rotary_factor": 0.5,
            "attention_bias": True,
        }


def is_newer(hf_config: Mapping[str, Any]) -> bool:
    """Whether a config.json, and so the names of the tensors beside it, have GlmForCausalLM's form."""
    return "padded_vocab_size" not in hf_config and "ffn_hidden_size" not in hf_config


def newer_words(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """The config in GlmForCausalLM's words, which win where both are there."""
    words = {ours: hf_config[theirs] for theirs, ours in OLDER_WORDS.items() if theirs in hf_config}
    if not is_newer(hf_config):
        words["rope_theta"] = OLDER_THETA * number(hf_config, "rope_ratio", 1.0)
    rope = hf_config.get("rope_parameters") or {}
    nested = rope.get("partial_rotary_factor") if isinstance(rope, Mapping) else None
    words["partial_rotary_factor"] = ROTARY_SHARE if nested is None else nested
    given = {key: value for key, value in hf_config.items() if key != "partial_rotary_factor" or value is not None}
    return {**words, **given}


def _older_form(group: Group) -> Group:
    """The same group in ChatGLMModel's form: under its names, q, k and v one below the other in one tensor."""
    if len(group.hf) == 3:
        first, *_ = group.hf
        rows = [shape[0] for shape in group.hf.values()]
        hidden = group.hf[first][1] if len(group.hf[first]) == 2 else None
        group = chained(stacked(first.replace("q_proj", "query_key_value"), *rows, hidden=hidden), group)
    return Group({_older(name): shape for name, shape in group.hf.items()}, group.ms, group.joined, group.split)


def _older(name: str) -> str:
    for newer, older in (
        ("model.embed_tokens", "transformer.embedding.word_embeddings"),
        ("model.layers", "transformer.encoder.layers"),
        ("model.norm", "transformer.encoder.final_layernorm"),
        ("lm_head", "transformer.output_layer"),
        ("self_attn.o_proj", "self_attention.dense"),
        ("self_attn", "self_attention"),
        ("gate_up_proj", "dense_h_to_4h"),
        ("down_proj", "dense_4h_to_h"),
    ):
        name = name.replace(newer, older)
    return name


GLM4 = register(Glm4Family())
