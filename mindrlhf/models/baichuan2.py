"""Baichuan2: Llama with q, k and v in one matrix and a head of normalised rows; the 13B has ALiBi, not rotary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mindrlhf.models.family import BuildOptions, register
from mindrlhf.models.fused_weights import stacked
from mindrlhf.models.hf_config import need
from mindrlhf.models.hf_weights import Group
from mindrlhf.models.llama import LlamaFamily
from mindrlhf.parallel.parameters import Traits
from mindrlhf.runtime.errors import UserError

if TYPE_CHECKING:
    from mindspore import nn

_FIRST_VOCABULARY = 64000  # of Baichuan 1, whose head is not normalised
_SIZES = {(4096, 32): False, (5120, 40): True}  # hidden_size, heads -> ALiBi, of the published models


def _of_13b(config: dict[str, Any]) -> dict[str, Any]:
    """A config of the 13B's kind."""
    return {key: value for key, value in config.items() if key != "max_position_embeddings"}


class Baichuan2Family(LlamaFamily):
    """7B and 13B, told apart by max_position_embeddings, which only the 7B has."""

    name = "baichuan2"
    architectures = ("BaichuanForCausalLM",)
    template = "baichuan2"
    tokenizer_kind = "sentencepiece"
    tiny_variants = MappingProxyType({"13b": _of_13b})
    config_keys = LlamaFamily.config_keys | {"model_max_length"}

    def from_hf_config(self, hf_config: Mapping[str, Any], options: BuildOptions) -> dict[str, Any]:
        """Arguments of MindFormers' LlamaConfig, and `alibi`. UserError for Baichuan 1 and for a mixture of sizes."""
        if "BaiChuanForCausalLM" in (hf_config.get("architectures") or ()) or (
            hf_config.get("vocab_size") == _FIRST_VOCABULARY
        ):
            raise UserError(
                f"config.json: Baichuan 1 (BaiChuanForCausalLM, or a vocabulary of {_FIRST_VOCABULARY}) is not "
                f"supported; use Baichuan2"
            )
        if hf_config.get("num_key_value_heads") not in (None, need(hf_config, "num_attention_heads")):
            raise UserError(
                "config.json: num_key_value_heads is not supported for baichuan2, whose heads have their own"
            )
        longest = hf_config.get("model_max_length")
        alibi = has_alibi(hf_config)
        if alibi and longest and options.seq_length > longest:
            raise UserError(
                f"rows of {options.seq_length} tokens pass the model's {longest} positions; lower --seq_len, in "
                f"training data.seq_len"
            )
        return {**super().from_hf_config(hf_config, options), "alibi": alibi}

    def traits(self, hf_config: Mapping[str, Any]) -> Traits:
        """See ModelFamily."""
        return replace(super().traits(hf_config), alibi=has_alibi(hf_config), normalised_head=True)

    def build(self, config: Any) -> nn.Cell:
        """LlamaForCausalLM; of the 13B with attention that adds the bias of ALiBi and rotates nothing."""
        model = super().build(config)
        if getattr(model.config, "alibi", False):
            from mindrlhf.models.alibi import use_alibi

            use_alibi(model)
        return model

    def backbone(self, model: nn.Cell) -> nn.Cell:
        """Embedding -> layers -> norm; the 13B's with the distances of position_ids."""
        if not getattr(model.config, "alibi", False):
            return super().backbone(model)
        from mindrlhf.models.alibi import AlibiPositions
        from mindrlhf.models.llama_backbone import LlamaBackbone

        return LlamaBackbone(model, AlibiPositions(model))

    def head(self, model: nn.Cell) -> nn.Cell:
        """lm_head.weight with rows of length 1."""
        from mindrlhf.models.head import NormalisedHead

        return NormalisedHead(model.lm_head.weight, model.config)

    def tensors(self, hf_config: Mapping[str, Any]) -> Iterator[Group]:
        """W_pack is wq, wk and wv, one below the other; the rest as Llama."""
        hidden = need(hf_config, "hidden_size")
        for group in super().tensors(hf_config):
            place, found, _ = next(iter(group.hf)).partition(".self_attn.q_proj.")
            if found:
                ours = tuple(f"{place}.attention.{name}.weight" for name in ("wq", "wk", "wv"))
                yield stacked(f"{place}.self_attn.W_pack.weight", hidden, hidden, hidden, hidden=hidden, ours=ours)
            elif not any(f".self_attn.{name}_proj." in place for name in "kv"):
                yield group

    def tiny_config(self, vocab_size: int, hidden_size: int, layers: int) -> dict[str, Any]:
        """The words of the 7B."""
        llama = super().tiny_config(vocab_size, hidden_size, layers)
        absent = ("num_key_value_heads", "rope_theta")
        return {
            **{key: value for key, value in llama.items() if key not in absent},
            "model_type": "baichuan",
            "model_max_length": llama["max_position_embeddings"],
            "rms_norm_eps": 1.0e-6,
        }


def has_alibi(hf_config: Mapping[str, Any]) -> bool:
    """Whether a config.json is a 13B's: it has no max_position_embeddings. UserError where its sizes say the other."""
    alibi = hf_config.get("max_position_embeddings") is None
    size = need(hf_config, "hidden_size"), need(hf_config, "num_attention_heads")
    if _SIZES.get(size, alibi) != alibi:
        other, what = ("7B", "give it") if alibi else ("13B", "remove it")
        raise UserError(
            f"config.json: hidden_size {size[0]} of {size[1]} heads is Baichuan2-{other}, which "
            f"{'has' if alibi else 'has no'} max_position_embeddings; {what}"
        )
    return alibi


BAICHUAN2 = register(Baichuan2Family())
