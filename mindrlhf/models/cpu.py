"""What MindFormers' classes lack on CPU, put in place by `build` when the Ascend kernels are not there."""

from __future__ import annotations

import mindspore as ms
from mindformers.models.llama.llama_transformer import LLamaAttention
from mindspore import nn


class MaskedAttention(LLamaAttention):
    """LLamaAttention whose eager path adds the mask it is given.

    The original casts the mask to uint8 and adds 0 or 1 to the scores, which masks nothing and says nothing.
    """

    def _attn(self, query, key, value, mask):
        scores = self.add(self.mul(self.batch_matmul_q_k(query, key), self.inv_norm_factor), mask)
        probabilities = self.softmax(self.cast_attn(scores, self.softmax_dtype))
        return self._merge_heads(self.batch_matmul(self.cast(probabilities, self.dtype), value))


class AdditiveMask(nn.Cell):
    """(R,1,S,S) uint8, 1 = forbidden, as the float32 bias that MaskedAttention adds."""

    def construct(self, forbidden):
        return forbidden.astype(ms.float32) * -10000.0


def use_plain_attention(model: nn.Cell) -> None:
    """Let every layer of a legacy Llama model take the mask; names and parameters stay."""
    for layer in model.model.layers:
        layer.attention.__class__ = MaskedAttention
