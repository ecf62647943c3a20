"""Llama and what is built like it, on MindFormers' legacy LlamaForCausalLM."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mindrlhf.models.family import TINY_HEAD, BuildOptions, ModelFamily, is_tied, register
from mindrlhf.models.hf_weights import Group, renamed
from mindrlhf.runtime.errors import UserError

if TYPE_CHECKING:
    from mindspore import nn


class LlamaFamily(ModelFamily):
    """Rotary attention, RMSNorm before each block, SwiGLU; a subclass says what differs."""

    name = "llama"
    architectures = ("LlamaForCausalLM",)
    qkv_has_bias = False
    config_keys = frozenset(
        [
            *("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
            *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps"),
            *("rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings", "initializer_range"),
            *("hidden_act", "attention_bias", "sliding_window", "use_sliding_window", "quantization_config"),
            *("bos_token_id", "eos_token_id", "pad_token_id"),
        ]
    )

    def from_hf_config(self, hf_config: Mapping[str, Any], options: BuildOptions) -> dict[str, Any]:
        """Arguments of MindFormers' LlamaConfig. UserError where config.json asks for what this class cannot do."""
        heads = need(hf_config, "num_attention_heads")
        self._refuse_unsupported(hf_config, options.seq_length)
        kernels = {
            "use_flash_attention": options.fused,
            "fused_rms_norm": options.fused,
            # The swap-matrix form of rotary is a 4-D by 2-D batched product, which only Ascend broadcasts.
            "use_rope_slice": not options.fused,
        }
        return {
            "type": "LlamaConfig",
            "batch_size": 1,
            "seq_length": options.seq_length,
            "hidden_size": need(hf_config, "hidden_size"),
            "num_layers": need(hf_config, "num_hidden_layers"),
            "num_heads": heads,
            "n_kv_heads": hf_config.get("num_key_value_heads") or heads,
            "vocab_size": need(hf_config, "vocab_size"),
            "intermediate_size": need(hf_config, "intermediate_size"),
            "rms_norm_eps": hf_config.get("rms_norm_eps", 1e-6),
            "theta": _rope(hf_config).get("rope_theta", 10000.0),
            "tie_word_embeddings": is_tied(hf_config),
            "init_method_std": hf_config.get("initializer_range", 0.02),
            "qkv_has_bias": self.qkv_has_bias,
            "pad_token_id": 0,  # masks come from segment_ids, never from a token's number
            "use_past": False,
            "compute_dtype": options.compute_dtype,
            "layernorm_compute_type": "float32",
            "softmax_compute_type": "float32",
            "rotary_dtype": "float32",
            "param_init_type": options.param_dtype,
            "parallel_optimizer": options.optimizer_shard,
            "parallel_config": {
                "data_parallel": options.data_parallel,
                "model_parallel": options.model_parallel,
                "pipeline_stage": options.pipeline_stage,
                "micro_batch_num": options.micro_batch_num,
                "vocab_emb_dp": options.vocab_emb_dp,
            },
            **kernels,
        }

    def mindformers_keys(self) -> frozenset[str]:
        """The arguments of LlamaConfig."""
        from mindformers import LlamaConfig

        return frozenset(inspect.signature(LlamaConfig.__init__).parameters)

    def _refuse_unsupported(self, hf_config: Mapping[str, Any], seq_length: int) -> None:
        positions = hf_config.get("max_position_embeddings")
        if positions and seq_length > positions:
            raise UserError(
                f"rows of {seq_length} tokens pass the model's {positions} positions; lower --seq_len, in training "
                f"data.seq_len"
            )
        kind = _rope(hf_config).get("rope_type", "default")
        if kind != "default":
            raise UserError(f"config.json: rope scaling {kind!r} is not supported for {self.name}")
        heads = need(hf_config, "num_attention_heads")
        hidden = need(hf_config, "hidden_size")
        head_size = hf_config.get("head_dim") or hidden // heads
        if head_size * heads != hidden:
            raise UserError(f"config.json: head_dim {head_size} x {heads} heads is not hidden_size; not supported")
        activation = hf_config.get("hidden_act", "silu")
        if activation != "silu":
            raise UserError(f"config.json: hidden_act {activation!r} is not supported for {self.name}; only silu is")
        if not self.qkv_has_bias and hf_config.get("attention_bias"):
            raise UserError(f"config.json: attention_bias is not supported for {self.name}")
        window = hf_config.get("sliding_window") if hf_config.get("use_sliding_window", True) else None
        if window and window < seq_length:
            raise UserError(f"config.json: sliding_window {window} is shorter than the rows ({seq_length} tokens)")
        if hf_config.get("quantization_config"):
            raise UserError("config.json: quantised weights are not supported; use the original ones")

    def build(self, config: Any) -> nn.Cell:
        """LlamaForCausalLM; on CPU with the eager attention that honours the mask."""
        from mindformers import LlamaConfig, LlamaForCausalLM

        if isinstance(config, Mapping):
            config = LlamaConfig(**{key: value for key, value in config.items() if key != "type"})
        # Lazily inlined layers pay with a pipeline alone, and do not compile in data_parallel mode on CPU.
        config.disable_lazy_inline = config.parallel_config.pipeline_stage == 1
        model = LlamaForCausalLM(config=config)
        if not config.use_flash_attention:
            from mindrlhf.models.cpu import use_plain_attention

            use_plain_attention(model)
        return model

    def backbone(self, model: nn.Cell) -> nn.Cell:
        """Embedding -> layers -> norm with rotary tables picked by position_ids."""
        from mindrlhf.models.llama_backbone import LlamaBackbone

        return LlamaBackbone(model)

    def head(self, model: nn.Cell) -> nn.Cell:
        """lm_head.weight, which is the embedding where they are tied."""
        from mindrlhf.models.head import Head

        return Head(model.lm_head.weight)

    def tensors(self, hf_config: Mapping[str, Any]) -> Iterator[Group]:
        """One tensor of MindFormers' for one of Hugging Face's."""
        heads, hidden = need(hf_config, "num_attention_heads"), need(hf_config, "hidden_size")
        inner, vocabulary = need(hf_config, "intermediate_size"), need(hf_config, "vocab_size")
        narrow = hidden // heads * (hf_config.get("num_key_value_heads") or heads)
        yield renamed("model.embed_tokens.weight", "model.tok_embeddings.embedding_weight", vocabulary, hidden)
        for layer in range(need(hf_config, "num_hidden_layers")):
            place = f"model.layers.{layer}"
            for name, ours, rows in (("q", "wq", hidden), ("k", "wk", narrow), ("v", "wv", narrow)):
                theirs = f"{place}.self_attn.{name}_proj"
                yield renamed(f"{theirs}.weight", f"{place}.attention.{ours}.weight", rows, hidden)
                if self.qkv_has_bias:
                    yield renamed(f"{theirs}.bias", f"{place}.attention.{ours}.bias", rows)
            yield renamed(f"{place}.self_attn.o_proj.weight", f"{place}.attention.wo.weight", hidden, hidden)
            yield renamed(f"{place}.mlp.gate_proj.weight", f"{place}.feed_forward.w1.weight", inner, hidden)
            yield renamed(f"{place}.mlp.down_proj.weight", f"{place}.feed_forward.w2.weight", hidden, inner)
            yield renamed(f"{place}.mlp.up_proj.weight", f"{place}.feed_forward.w3.weight", inner, hidden)
            yield renamed(f"{place}.input_layernorm.weight", f"{place}.attention_norm.weight", hidden)
            yield renamed(f"{place}.post_attention_layernorm.weight", f"{place}.ffn_norm.weight", hidden)
        yield renamed("model.norm.weight", "model.norm_out.weight", hidden)
        if not is_tied(hf_config):
            yield renamed("lm_head.weight", "lm_head.weight", vocabulary, hidden)

    def tiny_config(self, vocab_size: int, hidden_size: int, layers: int) -> dict[str, Any]:
        """Llama 3's words."""
        heads = hidden_size // TINY_HEAD
        return {
            "architectures": [self.architectures[0]],
            "model_type": self.name,
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "intermediate_size": hidden_size * 11 // 4,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "initializer_range": 0.02,
            "rms_norm_eps": 1.0e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
        }


def need(hf_config: Mapping[str, Any], key: str) -> int:
    """A size that every model has."""
    value = hf_config.get(key)
    if value is None:
        raise UserError(f"config.json has no {key}; give a folder whose config.json has it, or set model.config.{key}")
    if type(value) is not int or value < 1:
        raise UserError(f"config.json: {key} is {value!r}; it must be a whole number above 0")
    return value


def _rope(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """rope_theta and rope_type of a config.json in its older form (flat keys) or its newer one (rope_parameters)."""
    rope = dict(hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {})
    if "type" in rope:
        rope.setdefault("rope_type", rope.pop("type"))
    if hf_config.get("rope_theta") is not None:
        rope.setdefault("rope_theta", hf_config["rope_theta"])
    return rope


LLAMA = register(LlamaFamily())
