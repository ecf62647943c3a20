"""Llama and what is built like it, on MindFormers' legacy LlamaForCausalLM."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from mindrlhf.models.family import TINY_HEAD, BuildOptions, ModelFamily, is_tied, recompute_layers, register
from mindrlhf.models.hf_config import DECODER_KEYS, check_heads, need, number, refuse_unsupported, tiny_decoder, whole
from mindrlhf.models.hf_weights import Group, renamed
from mindrlhf.runtime.errors import UserError

if TYPE_CHECKING:
    from mindspore import nn

    from mindrlhf.models.rope import Rope


class LlamaFamily(ModelFamily):
    """Rotary attention, RMSNorm before each block, SwiGLU; a subclass says what differs."""

    name = "llama"
    architectures: ClassVar[tuple[str, ...]] = ("LlamaForCausalLM", "MistralForCausalLM")
    lora_targets = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
    template = "llama3"
    qkv_has_bias = False
    config_keys = DECODER_KEYS | {"mlp_bias", "partial_rotary_factor"}

    def from_hf_config(self, hf_config: Mapping[str, Any], options: BuildOptions) -> dict[str, Any]:
        """Arguments of MindFormers' LlamaConfig. UserError where config.json asks for what this class cannot do."""
        heads = need(hf_config, "num_attention_heads")
        if options.layout.context_parallel > 1:
            raise UserError(
                f"parallel.context_parallel is {options.layout.context_parallel}, and {self.name} is built on "
                f"MindFormers' LlamaForCausalLM, which would regroup the rows around every matrix; divide long rows "
                f"with parallel.model_parallel and parallel.sequence_parallel=true"
            )
        self._refuse_unsupported(hf_config, options.seq_length)
        rope = self._rope(hf_config)
        rope.admit(options.seq_length)
        kernels = {
            "use_flash_attention": options.fused,
            "fused_rms_norm": options.fused,
            "recompute_layers": options.recompute,
            "use_rope_slice": not options.rope_by_product,
        }
        return {
            "type": "LlamaConfig",
            "batch_size": 1,
            "seq_length": options.seq_length,
            "hidden_size": need(hf_config, "hidden_size"),
            "num_layers": need(hf_config, "num_hidden_layers"),
            "num_heads": heads,
            "n_kv_heads": whole(hf_config, "num_key_value_heads", heads),
            "vocab_size": need(hf_config, "vocab_size"),
            "intermediate_size": need(hf_config, "intermediate_size"),
            "rms_norm_eps": number(hf_config, "rms_norm_eps", 1e-6),
            "theta": rope.theta,
            "rope": asdict(rope),
            "tie_word_embeddings": is_tied(hf_config),
            "init_method_std": number(hf_config, "initializer_range", 0.02),
            "qkv_has_bias": self.qkv_has_bias,
            "pad_token_id": 0,  # masks come from segment_ids, never from a token's number
            "use_past": False,
            "compute_dtype": options.compute_dtype,
            "layernorm_compute_type": "float32",
            "softmax_compute_type": "float32",
            "rotary_dtype": "float32",
            "param_init_type": options.param_dtype,
            "parallel_optimizer": options.layout.optimizer_shard,
            "parallel_config": {
                "data_parallel": options.layout.data_parallel,
                "model_parallel": options.layout.model_parallel,
                "pipeline_stage": options.layout.pipeline_stage,
                "micro_batch_num": options.layout.micro_batch_num,
                "vocab_emb_dp": options.layout.vocab_emb_dp,
                "use_seq_parallel": options.layout.sequence_parallel,
            },
            **kernels,
        }

    def mindformers_keys(self) -> frozenset[str]:
        """The arguments of LlamaConfig."""
        from mindformers import LlamaConfig

        return frozenset(inspect.signature(LlamaConfig.__init__).parameters)

    def _refuse_unsupported(self, hf_config: Mapping[str, Any], seq_length: int) -> None:
        heads, hidden = need(hf_config, "num_attention_heads"), need(hf_config, "hidden_size")
        head_size = whole(hf_config, "head_dim", hidden // heads)
        if head_size * heads != hidden:
            raise UserError(f"config.json: head_dim {head_size} x {heads} heads is not hidden_size; not supported")
        check_heads(heads, whole(hf_config, "num_key_value_heads", heads), head_size)
        if hf_config.get("architectures") == ["MistralForCausalLM"]:
            # Mistral's window where its config.json says nothing.
            hf_config = {"sliding_window": 4096, **hf_config}
        refuse_unsupported(hf_config, seq_length, self.name, self.qkv_has_bias)

    def _rope(self, hf_config: Mapping[str, Any]) -> Rope:
        from mindrlhf.models.rope import rope_settings

        head_size = need(hf_config, "hidden_size") // need(hf_config, "num_attention_heads")
        rope = rope_settings(hf_config, head_size)
        if rope.rotary_dim != head_size:
            raise UserError(f"config.json: partial_rotary_factor is not supported for {self.name}")
        return rope

    def build(self, config: Any) -> nn.Cell:
        """LlamaForCausalLM; on CPU with the eager attention that honours the mask."""
        from mindformers import LlamaConfig, LlamaForCausalLM

        if isinstance(config, Mapping):
            config = LlamaConfig(**{key: value for key, value in config.items() if key != "type"})
        # Lazily inlined layers pay with a pipeline alone, and do not compile in data_parallel mode on CPU.
        config.disable_lazy_inline = config.parallel_config.pipeline_stage == 1
        model = LlamaForCausalLM(config=config)
        _sum_rows_whole(model)
        if getattr(config, "recompute_layers", False):
            recompute_layers(model.model.layers, config.parallel_optimizer)
        if not config.use_flash_attention:
            from mindrlhf.models.cpu import use_plain_attention

            use_plain_attention(model)
        return model

    def backbone(self, model: nn.Cell) -> nn.Cell:
        """Embedding -> layers -> norm with rotary tables picked by position_ids."""
        from mindrlhf.models.llama_backbone import LlamaBackbone, RotaryPositions

        return LlamaBackbone(model, RotaryPositions(model))

    def head(self, model: nn.Cell) -> nn.Cell:
        """lm_head.weight, which is the embedding where they are tied."""
        from mindrlhf.models.head import Head

        return Head(model.lm_head.weight)

    def tensors(self, hf_config: Mapping[str, Any]) -> Iterator[Group]:
        """One tensor of MindFormers' for one of Hugging Face's."""
        heads, hidden = need(hf_config, "num_attention_heads"), need(hf_config, "hidden_size")
        inner, vocabulary = need(hf_config, "intermediate_size"), need(hf_config, "vocab_size")
        narrow = hidden // heads * whole(hf_config, "num_key_value_heads", heads)
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
            yield renamed(f"{place}.mlp.up_proj.weight", f"{place}.feed_forward.w3.weight", inner, hidden)
            yield renamed(f"{place}.mlp.down_proj.weight", f"{place}.feed_forward.w2.weight", hidden, inner)
            yield renamed(f"{place}.input_layernorm.weight", f"{place}.attention_norm.weight", hidden)
            yield renamed(f"{place}.post_attention_layernorm.weight", f"{place}.ffn_norm.weight", hidden)
        yield renamed("model.norm.weight", "model.norm_out.weight", hidden)
        if not is_tied(hf_config):
            yield renamed("lm_head.weight", "lm_head.weight", vocabulary, hidden)

    def tiny_config(self, vocab_size: int, hidden_size: int, layers: int) -> dict[str, Any]:
        """Llama 3's words."""
        return {
            **tiny_decoder(vocab_size, hidden_size, layers, TINY_HEAD),
            "architectures": [self.architectures[0]],
            "model_type": self.name,
            "rms_norm_eps": 1.0e-5,
            "rope_theta": 500000.0,
        }


def _sum_rows_whole(model: nn.Cell) -> None:
    """Give an embedding that is divided over its vocabulary rows that are whole on every worker of model_parallel.

    Where it is divided over all workers of a stage MindSpore divides its rows too unless told, for two operators to
    gather them again.
    """
    parallel = model.config.parallel_config
    dp, mp = parallel.data_parallel, parallel.model_parallel
    if not parallel.vocab_emb_dp and model.config.vocab_size % mp == 0:
        model.model.tok_embeddings.gather.shard(((mp, 1), (dp, 1)), out_strategy=((dp, 1, 1),))


LLAMA = register(LlamaFamily())
