"""Mixture-of-experts layers that count how tokens were spread over experts, and the walk that collects it."""

from __future__ import annotations

import mindspore as ms
from mindformers.parallel_core.training_graph.transformer.moe.moe_layer import MoELayer
from mindspore import ops

from mindrlhf.models.mcore_backbone import McoreBackbone


class CountingMoE(MoELayer):
    """MoELayer that adds to (counts (E,), probabilities (E,), tokens (R,S)) what its router did with the tokens.

    counts: tokens per chosen expert; probabilities: the router's, summed; both over tokens that are no padding. The
    original's own loss differs from transformers', and is left out.
    """

    def construct(self, hidden_states, extra_loss=0.0, seq_chunk=None):
        rows_first = self.transpose(hidden_states, (1, 0, 2))
        flat = self.local_reshape_permute(rows_first, (1, -1, self.hidden_size))
        weights, experts, probabilities = self.router.routing(self.router.gating(flat))
        mixed = self.experts(flat, weights, experts)
        if rows_first.shape[1] == self.seq_length:
            shape = (-1, self.seq_length // (self.tp * self.cp), self.hidden_size)
            mixed = self.local_reshape_unpermute(mixed, shape)
        else:
            # The original knows one length. Rows of others, which scoring has, never are under semi-auto parallel.
            mixed = mixed.reshape(rows_first.shape)
        mixed = self.transpose2(mixed, (1, 0, 2))
        if isinstance(extra_loss, tuple):
            counts, total, tokens = extra_loss
            real = self.local_reshape_permute(tokens.expand_dims(-1), (1, -1, 1))
            chosen = ops.one_hot(experts, total.shape[0], ms.Tensor(1.0, ms.float32), ms.Tensor(0.0, ms.float32)).sum(2)
            counts = counts + ops.stop_gradient((chosen * real).sum((0, 1)))
            extra_loss = (counts, total + (probabilities.astype(ms.float32) * real).sum((0, 1)), tokens)
        return mixed, None, extra_loss


class RoutedBackbone(McoreBackbone):
    """(input_ids, position_ids, forbidden) -> hidden (R,S,H), or with tokens (R,S) float32, 0 for padding,
    -> (hidden, balance ()).

    balance is the load-balance loss, k where all experts are used alike: E sum_e f_e P_e with f_e the share of tokens
    that chose expert e (all k choices counted) and P_e its mean probability, both over tokens and layers. Fedus et al.,
    Switch Transformers, arXiv 2101.03961, eq. 4 to 6, as transformers' `load_balancing_loss_func` has it.
    """

    def construct(self, input_ids, position_ids, forbidden, tokens=None):
        if tokens is None:
            return super().construct(input_ids, position_ids, forbidden)
        tables = (self._table(self.cosines, position_ids), self._table(self.sines, position_ids))
        hidden = self.embedding(input_ids, position_ids)
        nothing = ops.zeros(self.experts, ms.float32)
        spread = (nothing, nothing, tokens)
        for layer in self.decoder.layers:
            hidden, _, spread, _ = layer(hidden, forbidden, rotary_pos_emb=tables, extra_loss=spread)
        hidden = self.first_positions(self.decoder.final_layernorm(hidden), (1, 0, 2))
        counts, total, _ = spread
        seen = ops.maximum(tokens.sum() * len(self.decoder.layers), ms.Tensor(1.0, ms.float32))
        return hidden, self.experts * (counts / seen * (total / seen)).sum()

    def __init__(self, model) -> None:
        super().__init__(model)
        self.experts = model.config.num_moe_experts


def count_tokens(model) -> None:
    """Let every mixture-of-experts layer of a GPTModel count."""
    for layer in model.decoder.layers:
        layer.mlp.__class__ = CountingMoE
        # A parameter of one of the original's own losses, which no checkpoint has.
        del layer.mlp.router.fi_accu
