"""What parallel_core's training classes lack on CPU, put in place by `build` when the Ascend kernels are not there.

Names and parameters stay, so checkpoints are the same on both.
"""

from __future__ import annotations

import math

import mindspore as ms
from mindformers.parallel_core.training_graph.tensor_parallel.layers import VocabParallelEmbedding
from mindformers.parallel_core.training_graph.transformer.attention import SelfAttention
from mindformers.parallel_core.training_graph.transformer.moe.ffn import FFNGroupedGEMM
from mindspore import nn, ops


class PlainAttention(nn.Cell):
    """query, key, value (S,R,N,D) and forbidden (R,1,S,S), 1 where a query must not see a key -> (S,R,ND)."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.scale = 1.0 / math.sqrt(head_dim)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.product = ops.BatchMatMul()
        self.softmax = ops.Softmax()

    def construct(self, query, key, value, forbidden):
        length, rows, heads, size = query.shape
        groups = key.shape[2]
        queries = query.transpose(1, 2, 0, 3).reshape(rows, groups, heads // groups * length, size)
        keys, values = key.transpose(1, 2, 0, 3), value.transpose(1, 2, 0, 3)
        scores = self.scores(queries, keys).reshape(rows, heads, length, length).astype(ms.float32) * self.scale
        probabilities = self.softmax(scores + forbidden.astype(ms.float32) * -1e9).astype(query.dtype)
        mixed = self.product(probabilities.reshape(rows, groups, -1, length), values)
        return mixed.reshape(rows, heads, length, size).transpose(2, 0, 1, 3).reshape(length, rows, -1)


class UnrepeatedAttention(SelfAttention):
    """SelfAttention that leaves a head's keys to all its queries; the original repeats them along a wrong axis."""

    def _repeat_kv(self, x, rep):
        return x


class PlainEmbedding(VocabParallelEmbedding):
    """The embedding by an operator whose gradient has a kernel."""

    def construct(self, input_ids):
        return ops.gather(self.weight, input_ids, 0)


class PlainTopK(nn.Cell):
    """The k largest of the last axis and their places, largest first."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = ops.TopK()

    def construct(self, values, k):
        return self.largest(values, k)


class EveryExpert(FFNGroupedGEMM):
    """tokens (1,N,H), weights and experts (1,N,k) -> (1,N,H): every expert sees every token, mostly for nothing."""

    def construct(self, tokens, probs, routing_map):
        count, hidden, inner = self.num_local_experts, self.hidden_size, self.moe_ffn_hidden_size
        inputs = tokens.astype(self.compute_dtype).broadcast_to((count, tokens.shape[1], hidden))
        both = ops.bmm(inputs, self.weight1.reshape(count, hidden, 2 * inner).astype(self.compute_dtype))
        activated = ops.silu(both[:, :, :inner]) * both[:, :, inner:]
        outputs = ops.bmm(activated, self.weight2.reshape(count, inner, hidden).astype(self.compute_dtype))
        on, off = ms.Tensor(1.0, ms.float32), ms.Tensor(0.0, ms.float32)
        chosen = (ops.one_hot(routing_map, count, on, off) * probs.expand_dims(-1)).sum(2)[0]
        mixed = (outputs * chosen.transpose(1, 0).expand_dims(-1).astype(self.compute_dtype)).sum(0)
        return mixed.expand_dims(0).astype(tokens.dtype)


def use_plain_operators(model: nn.Cell) -> None:
    """Put them into a GPTModel."""
    model.embedding.word_embeddings.__class__ = PlainEmbedding
    for layer in model.decoder.layers:
        attention = layer.self_attention
        attention.__class__ = UnrepeatedAttention
        attention.core_attention = PlainAttention(attention.head_dim)
        if model.config.num_moe_experts:
            layer.mlp.router.topk = PlainTopK()
            layer.mlp.experts.__class__ = EveryExpert
