"""Qwen3 with a mixture of experts in every layer, such as Qwen3-30B-A3B."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mindrlhf.models.family import TINY_HEAD, BuildOptions, register
from mindrlhf.models.fused_weights import stacked_experts
from mindrlhf.models.hf_config import need, number
from mindrlhf.models.hf_weights import Group, renamed
from mindrlhf.models.qwen3 import Qwen3Family
from mindrlhf.parallel.layout import ModelShape
from mindrlhf.runtime.errors import UserError

if TYPE_CHECKING:
    from mindspore import nn


class Qwen3MoeFamily(Qwen3Family):
    """A softmax router whose k best experts share the token; the rest is Qwen3's."""

    name = "qwen3_moe"
    architectures = ("Qwen3MoeForCausalLM",)
    routed = True
    lora_targets = ("linear_qkv", "linear_proj")  # experts are no linear cells
    config_keys = Qwen3Family.config_keys | {
        *("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"),
        *("decoder_sparse_step", "mlp_only_layers", "output_router_logits", "router_aux_loss_coef"),
    }

    def from_hf_config(self, hf_config: Mapping[str, Any], options: BuildOptions) -> dict[str, Any]:
        """See McoreFamily; the weight of the load-balance loss is 0 unless `output_router_logits`, as in TRL."""
        if hf_config.get("decoder_sparse_step", 1) != 1 or hf_config.get("mlp_only_layers"):
            raise UserError(f"config.json: layers without experts are not supported for {self.name}")
        experts, chosen = count_experts(hf_config), need(hf_config, "num_experts_per_tok")
        if chosen > experts:
            raise UserError(f"config.json: num_experts_per_tok {chosen} is more than the {experts} experts")
        coefficient = options.aux_loss_coef
        if coefficient is None:
            enabled = hf_config.get("output_router_logits", False)
            coefficient = number(hf_config, "router_aux_loss_coef", 0.001) if enabled else 0.0
        return {
            **super().from_hf_config(
                {"intermediate_size": need(hf_config, "moe_intermediate_size"), **hf_config}, options
            ),
            "num_moe_experts": experts,
            "moe_router_topk": chosen,
            "moe_ffn_hidden_size": need(hf_config, "moe_intermediate_size"),
            "norm_topk_prob": bool(hf_config.get("norm_topk_prob", False)),
            "moe_router_topk_scaling_factor": 1.0,
            "moe_router_score_function": "softmax",
            "moe_router_dtype": "float32",
            "moe_grouped_gemm": True,
            "moe_token_dispatcher_type": "alltoall",
            "moe_shared_expert_intermediate_size": None,
            # GPTModel refuses experts beside split tensors without it.
            "sequence_parallel": options.layout.model_parallel > 1,
            "aux_loss_coef": coefficient,
        }

    def shape(self, hf_config: Mapping[str, Any]) -> ModelShape:
        """See ModelFamily; the intermediate size is an expert's."""
        inner = need(hf_config, "moe_intermediate_size")
        return replace(
            super().shape({**hf_config, "intermediate_size": inner}),
            experts=count_experts(hf_config),
            experts_per_token=need(hf_config, "num_experts_per_tok"),
        )

    def build(self, config: Any) -> nn.Cell:
        """See McoreFamily."""
        from mindrlhf.models.routing import count_tokens

        model = super().build(config)
        count_tokens(model)
        return model

    def backbone(self, model: nn.Cell) -> nn.Cell:
        """See McoreFamily; it also takes which tokens are real, and then gives the load-balance loss."""
        from mindrlhf.models.routing import RoutedBackbone

        return RoutedBackbone(model)

    def _mlp(self, hf_config: Mapping[str, Any], theirs: str, ours: str) -> Iterator[Group]:
        experts, hidden = count_experts(hf_config), need(hf_config, "hidden_size")
        inner = need(hf_config, "moe_intermediate_size")
        yield renamed(f"{theirs}.gate.weight", f"{ours}.router.weight", experts, hidden)
        places = [f"{theirs}.experts.{expert}" for expert in range(experts)]
        yield stacked_experts(places, ("gate_proj", "up_proj"), f"{ours}.experts.weight1", inner, hidden)
        yield stacked_experts(places, ("down_proj",), f"{ours}.experts.weight2", hidden, inner)

    def tiny_config(self, vocab_size: int, hidden_size: int, layers: int) -> dict[str, Any]:
        """The words of Qwen3-30B-A3B; 8 experts of which a token takes 2."""
        return {
            **super().tiny_config(vocab_size, hidden_size, layers),
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": TINY_HEAD * 2,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
        }


def count_experts(hf_config: Mapping[str, Any]) -> int:
    """Experts of a layer, by the older word or the newer one."""
    return need(hf_config, "num_experts" if "num_experts" in hf_config else "num_local_experts")


QWEN3_MOE = register(Qwen3MoeFamily())
