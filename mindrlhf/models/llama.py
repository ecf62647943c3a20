"""Llama and what is built like it, on MindFormers' legacy LlamaForCausalLM."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mindrlhf.models import hf_weights
from mindrlhf.models.family import BuildOptions, ModelFamily, register
from mindrlhf.runtime.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from mindspore import Parameter, nn


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
        heads = _need(hf_config, "num_attention_heads")
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
            "hidden_size": _need(hf_config, "hidden_size"),
            "num_layers": _need(hf_config, "num_hidden_layers"),
            "num_heads": heads,
            "n_kv_heads": hf_config.get("num_key_value_heads") or heads,
            "vocab_size": _need(hf_config, "vocab_size"),
            "intermediate_size": _need(hf_config, "intermediate_size"),
            "rms_norm_eps": hf_config.get("rms_norm_eps", 1e-6),
            "theta": _rope(hf_config).get("rope_theta", 10000.0),
            "tie_word_embeddings": bool(hf_config.get("tie_word_embeddings", False)),
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
        heads = _need(hf_config, "num_attention_heads")
        hidden = _need(hf_config, "hidden_size")
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

    def head_weight(self, model: nn.Cell) -> Parameter:
        """lm_head.weight, which is the embedding where they are tied."""
        return model.lm_head.weight

    def hf_to_ms(self, arrays: dict[str, np.ndarray], tied: bool = False) -> dict[str, np.ndarray]:
        """Names only; no tensor changes."""
        return hf_weights.llama_to_ms(arrays, tied)

    def ms_to_hf(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Names only; no tensor changes."""
        return hf_weights.llama_to_hf(arrays)


def _need(hf_config: Mapping[str, Any], key: str) -> int:
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
