"""The plain operators of models/cpu.py and models/mcore_cpu.py with strategies, as their Ascend kernels have them.

Without a strategy an operator is split over all workers, and the tensors around it are gathered and scattered, for
which MindSpore has no kernels on CPU.
"""

from __future__ import annotations

import mindspore as ms
from mindformers.parallel_core.training_graph.tensor_parallel.layers import VocabParallelEmbedding
from mindformers.parallel_core.training_graph.transformer.moe.ffn import FFNGroupedGEMM
from mindspore import nn, ops

from mindrlhf.models.mcore_backbone import McoreBackbone
from mindrlhf.parallel.layout import Layout


class DividedMask(nn.Cell):
    """As AdditiveMask."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        rows = layout.rows(4)
        self.cast = ops.Cast().shard((rows,))
        self.times = ops.Mul().shard((rows, ()))

    def construct(self, forbidden):
        return self.times(self.cast(forbidden, ms.float32), -10000.0)


class DividedAttention(nn.Cell):
    """As PlainAttention."""

    def __init__(self, layout: Layout, scale: float) -> None:
        super().__init__()
        dp, mp = layout.data_parallel, layout.model_parallel
        heads, rows = (dp, mp, 1, 1), layout.rows(4)
        self.scale = scale
        self.to_heads = ops.Transpose().shard(((1, dp, mp, 1),))
        self.from_heads = ops.Transpose().shard((heads,))
        self.scores = ops.BatchMatMul(transpose_b=True).shard((heads, heads))
        self.product = ops.BatchMatMul().shard((heads, heads))
        self.softmax = ops.Softmax().shard((heads,))
        self.times = ops.Mul().shard((heads, ()))
        self.cast = ops.Cast().shard((rows,))
        self.times_mask = ops.Mul().shard((rows, ()))
        self.add = ops.Add().shard((heads, rows))

    def construct(self, query, key, value, forbidden):
        length, rows, heads, size = query.shape
        groups = key.shape[2]
        queries = self.to_heads(query, (1, 2, 0, 3)).reshape(rows, groups, heads // groups * length, size)
        keys, values = self.to_heads(key, (1, 2, 0, 3)), self.to_heads(value, (1, 2, 0, 3))
        scores = self.times(self.scores(queries, keys).reshape(rows, heads, length, length), self.scale)
        mask = self.times_mask(self.cast(forbidden, ms.float32), -1e9)
        probabilities = self.softmax(self.add(scores, mask)).reshape(rows, groups, -1, length)
        mixed = self.product(probabilities, values).reshape(rows, heads, length, size)
        return self.from_heads(mixed, (2, 0, 1, 3)).reshape(length, rows, -1)


def divide_functions() -> None:
    """Put in place what MindFormers' cells hand to a Morph while they are made."""
    VocabParallelEmbedding.embedding_func = embedding_func
    FFNGroupedGEMM.forward_func = forward_func


def embedding_func(self, input_, weight):
    """VocabParallelEmbedding's, by operators that the CPU has: in the same Morph, with the same AllReduce."""
    places = ids = input_.reshape(-1)
    if self.enable_embedding_tp:
        ids = ids - self.vocab_start_index
        places = ops.minimum(ops.relu(ids), self.parallel_num_embeddings)
    found = ops.gather(weight, places, 0)
    if self.enable_embedding_tp:
        mine = ops.equal(ids, places).astype(found.dtype)
        found = ops.mul(found, mine.expand_dims(-1))
    found = found.reshape(input_.shape[0], -1, weight.shape[1])
    if self.enable_embedding_tp:
        found = ops.AllReduce(group=self.group)(found)
    return found


def forward_func(self, tokens, probs, routing_map, w1, w2, num_tokens_per_expert=None):
    """FFNGroupedGEMM's where experts are not spread, in the same Morph: every expert sees every token of the worker."""
    count, hidden, inner = self.num_local_experts, self.hidden_size, self.moe_ffn_hidden_size
    inputs = tokens.broadcast_to((count, tokens.shape[1], hidden))
    both = ops.bmm(inputs, w1.reshape(count, hidden, 2 * inner))
    outputs = ops.bmm(ops.silu(both[:, :, :inner]) * both[:, :, inner:], w2.reshape(count, inner, hidden))
    chosen = ops.one_hot(routing_map, count, ms.Tensor(1.0, ms.float32), ms.Tensor(0.0, ms.float32))
    weights = (chosen * probs.expand_dims(-1)).sum(2)[0]
    return (outputs * weights.transpose(1, 0).expand_dims(-1)).sum(0).expand_dims(0)


class DividedTopK(nn.Cell):
    """As PlainTopK."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.largest = ops.TopK().shard(((layout.world, 1, 1),))

    def construct(self, values, k):
        return self.largest(values, k)


def divide_operators(backbone: nn.Cell, layout: Layout) -> None:
    """Put them into a backbone whose layers have the plain ones."""
    if isinstance(backbone, McoreBackbone):
        backbone.embedding.word_embeddings.__class__ = VocabParallelEmbedding
        for layer in backbone.decoder.layers:
            core = layer.self_attention.core_attention
            layer.self_attention.core_attention = DividedAttention(layout, core.scale)
            if hasattr(layer.mlp, "experts"):
                layer.mlp.experts.__class__ = FFNGroupedGEMM
                layer.mlp.router.topk = DividedTopK(layout)
        return
    backbone.positions.mask = DividedMask(layout)
    if hasattr(backbone.positions, "slopes"):  # ALiBi's bias has every head's own row
        return
    for layer in backbone.model.layers:
        heads = (layout.data_parallel, layout.model_parallel, 1, 1)
        layer.attention.add.shard((heads, layout.rows(4)))
