"""Families on MindFormers' GPTModel (parallel_core): what they share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import mock

from mindrlhf.models.family import BuildOptions, ModelFamily, is_tied, recompute_layers
from mindrlhf.models.fused_weights import fused_gate_up, fused_qkv
from mindrlhf.models.hf_config import DECODER_KEYS, check_heads, need, number, refuse_unsupported, whole
from mindrlhf.models.hf_weights import Group, renamed
from mindrlhf.runtime.errors import UserError

if TYPE_CHECKING:
    from mindspore import nn

# Words of ours in a model_config that TransformerConfig does not have: the head's, rope's and the router's.
OURS = ("type", "tied", "rope", "aux_loss_coef", "parallel_config", "recompute_layers", "optimizer_shard")


class McoreFamily(ModelFamily):
    """RMSNorm, rotary grouped-query attention, SwiGLU; a subclass says what differs."""

    qk_norm: ClassVar[bool] = False
    qkv_has_bias: ClassVar[bool] = False
    partly_rotary: ClassVar[bool] = False
    lora_targets: ClassVar[tuple[str, ...]] = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
    config_keys = DECODER_KEYS

    def from_hf_config(self, hf_config: Mapping[str, Any], options: BuildOptions) -> dict[str, Any]:
        """Fields of MindFormers' TransformerConfig. UserError where config.json asks for what GPTModel cannot do."""
        from mindrlhf.models.rope import rope_settings

        heads = need(hf_config, "num_attention_heads")
        head_dim = whole(hf_config, "head_dim", need(hf_config, "hidden_size") // heads)
        groups = whole(hf_config, "num_key_value_heads", heads)
        check_heads(heads, groups, head_dim)
        rope = rope_settings(hf_config, head_dim)
        if rope.rotary_dim != head_dim and not self.partly_rotary:
            raise UserError(f"config.json: partial_rotary_factor is not supported for {self.name}")
        refuse_unsupported(hf_config, options.seq_length, self.name, self.qkv_has_bias)
        rope.admit(options.seq_length)
        return {
            "type": "McoreConfig",
            "seq_length": options.seq_length,
            "num_layers": need(hf_config, "num_hidden_layers"),
            "hidden_size": need(hf_config, "hidden_size"),
            "num_attention_heads": heads,
            "num_query_groups": groups,
            "kv_channels": head_dim,
            "ffn_hidden_size": need(hf_config, "intermediate_size"),
            "vocab_size": need(hf_config, "vocab_size"),
            "max_position_embeddings": options.seq_length,
            "layernorm_epsilon": number(hf_config, "rms_norm_eps", 1e-6),
            "init_method_std": number(hf_config, "initializer_range", 0.02),
            "add_qkv_bias": self.qkv_has_bias,
            "qk_layernorm": self.qk_norm,
            "tied": is_tied(hf_config),
            "recompute_layers": options.recompute,
            "optimizer_shard": options.layout.optimizer_shard,
            "rope": asdict(rope),
            **_kernels(options),
            **_layout(options),
        }

    def mindformers_keys(self) -> frozenset[str]:
        """The fields of TransformerConfig."""
        from mindformers.parallel_core.transformer_config import TransformerConfig

        return frozenset(field.name for field in fields(TransformerConfig))

    def build(self, config: Any) -> nn.Cell:
        """GPTModel of a config from `from_hf_config`; on CPU with plain operators in place of Ascend's."""
        from mindformers.parallel_core.training_graph.base_models.gpt.gpt_model import GPTModel
        from mindformers.parallel_core.transformer_config import TransformerConfig

        given = dict(config) if isinstance(config, Mapping) else config.to_dict()
        known = {field.name for field in fields(TransformerConfig)}
        words = {name: value for name, value in given.items() if name in known and name not in OURS}
        with _training_graph():
            settings = TransformerConfig(**words)
            model = GPTModel(
                config=settings,
                transformer_layer_spec=self._layers(settings),
                vocab_size=settings.vocab_size,
                max_sequence_length=settings.seq_length,
                position_embedding_type="none",
                share_embeddings_and_output_weights=given["tied"],
            )
        if not settings.use_flash_attention:
            from mindrlhf.models.mcore_cpu import use_plain_operators

            use_plain_operators(model)
        if given.get("recompute_layers"):
            recompute_layers(model.decoder.layers, given["optimizer_shard"])
        model.rope = given["rope"]
        return model

    def _layers(self, settings: Any) -> Any:
        """The layers' specification: plain norms where there are no fused kernels."""
        from mindformers.parallel_core.training_graph.base_models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
        from mindformers.parallel_core.training_graph.transformer.norm import get_norm_cls
        from mindformers.parallel_core.training_graph.transformer.transformer_block import TransformerBlockSubmodules

        layer = get_gpt_layer_local_spec(
            num_experts=settings.num_moe_experts,
            moe_grouped_gemm=settings.moe_grouped_gemm,
            qk_layernorm=self.qk_norm,
            fused_norm=settings.fused_norm,
        )
        return TransformerBlockSubmodules(
            layer_specs=[layer] * settings.num_layers, layer_norm=get_norm_cls(settings.fused_norm)
        )

    def backbone(self, model: nn.Cell) -> nn.Cell:
        """Embedding -> layers -> norm with our rotary tables, picked by position_ids."""
        from mindrlhf.models.mcore_backbone import McoreBackbone

        return McoreBackbone(model)

    def head(self, model: nn.Cell) -> nn.Cell:
        """output_layer.weight, or the embedding where they are tied."""
        from mindrlhf.models.head import Head

        tied = model.share_embeddings_and_output_weights
        return Head(model.embedding.word_embeddings.weight if tied else model.output_layer.weight)

    def tensors(self, hf_config: Mapping[str, Any]) -> Iterator[Group]:
        """q, k and v make one tensor, gate and up another; the rest has two names."""
        hidden, vocabulary = need(hf_config, "hidden_size"), need(hf_config, "vocab_size")
        yield renamed("model.embed_tokens.weight", "embedding.word_embeddings.weight", vocabulary, hidden)
        for layer in range(need(hf_config, "num_hidden_layers")):
            theirs, ours = f"model.layers.{layer}", f"decoder.layers.{layer}"
            yield from self._attention(hf_config, f"{theirs}.self_attn", f"{ours}.self_attention")
            yield from self._mlp(hf_config, f"{theirs}.mlp", f"{ours}.mlp")
            yield renamed(f"{theirs}.input_layernorm.weight", f"{ours}.input_layernorm.weight", hidden)
            yield renamed(f"{theirs}.post_attention_layernorm.weight", f"{ours}.pre_mlp_layernorm.weight", hidden)
        yield renamed("model.norm.weight", "decoder.final_layernorm.weight", hidden)
        if not is_tied(hf_config):
            yield renamed("lm_head.weight", "output_layer.weight", vocabulary, hidden)

    def _attention(self, hf_config: Mapping[str, Any], theirs: str, ours: str) -> Iterator[Group]:
        heads, hidden = need(hf_config, "num_attention_heads"), need(hf_config, "hidden_size")
        head_dim = whole(hf_config, "head_dim", hidden // heads)
        groups = whole(hf_config, "num_key_value_heads", heads)
        for kind in ("weight", "bias") if self.qkv_has_bias else ("weight",):
            yield fused_qkv(theirs, f"{ours}.linear_qkv.{kind}", kind, heads, groups, head_dim, hidden)
        yield renamed(f"{theirs}.o_proj.weight", f"{ours}.linear_proj.weight", hidden, heads * head_dim)
        if self.qk_norm:
            yield renamed(f"{theirs}.q_norm.weight", f"{ours}.q_layernorm.weight", head_dim)
            yield renamed(f"{theirs}.k_norm.weight", f"{ours}.k_layernorm.weight", head_dim)

    def _mlp(self, hf_config: Mapping[str, Any], theirs: str, ours: str) -> Iterator[Group]:
        hidden, inner = need(hf_config, "hidden_size"), need(hf_config, "intermediate_size")
        yield fused_gate_up(f"{theirs}.gate_proj.weight", f"{theirs}.up_proj.weight", ours, inner, hidden)
        yield renamed(f"{theirs}.down_proj.weight", f"{ours}.linear_fc2.weight", hidden, inner)


def _kernels(options: BuildOptions) -> dict[str, Any]:
    """Precision and operators; what MindFormers would by default drop or fuse is said."""
    return {
        "compute_dtype": options.compute_dtype,
        "params_dtype": options.param_dtype,
        "layernorm_compute_dtype": "float32",
        "softmax_compute_dtype": "float32",
        "rotary_dtype": "float32",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "use_flash_attention": options.fused,
        "fused_norm": options.fused,
        "normalization": "RMSNorm",
        "add_bias_linear": False,
        "gated_linear_unit": True,
        "hidden_act": "silu",
        "position_embedding_type": "none",
        "pad_token_id": 0,  # masks come from segment_ids, never from a token's number
    }


def _layout(options: BuildOptions) -> dict[str, Any]:
    """The parallel layout in TransformerConfig's words, and in those that a cell's maker reads."""
    layout = options.layout
    return {
        "data_parallel_size": layout.data_parallel,
        "tensor_model_parallel_size": layout.model_parallel,
        "pipeline_model_parallel_size": layout.pipeline_stage,
        "context_parallel_size": layout.context_parallel,
        "expert_model_parallel_size": layout.expert_parallel,
        "sequence_parallel": layout.sequence_parallel,
        "micro_batch_num": layout.micro_batch_num,
        "parallel_config": {
            "data_parallel": layout.data_parallel,
            "model_parallel": layout.model_parallel,
            "pipeline_stage": layout.pipeline_stage,
            "context_parallel": layout.context_parallel,
            # GPTModel splits embedding and head over model_parallel wherever the vocabulary divides.
            "vocab_emb_dp": False,
        },
    }


@contextlib.contextmanager
def _training_graph() -> Iterator[None]:
    """What MindFormers asks of the process while it builds layers, answered for this model alone.

    Its older classes are not meant; and where every worker has a whole model, there are no groups to make.
    """
    from mindspore import get_auto_parallel_context

    graph = "mindformers.parallel_core.training_graph"
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch(f"{graph}.transformer.utils.is_legacy_model", return_value=False))
        if get_auto_parallel_context("parallel_mode") == "data_parallel":
            stack.enter_context(mock.patch(f"{graph}.base_models.gpt.gpt_model.initialize_model_parallel"))
        yield
