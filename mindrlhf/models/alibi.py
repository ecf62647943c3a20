"""ALiBi (arXiv 2108.12409) on MindFormers' legacy Llama layers: a bias by distance instead of rotary positions."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindformers.models.llama.llama_transformer import LLamaDecodeLayer
from mindformers.modules.flash_attention import FlashAttention
from mindspore import Tensor, nn, ops
from mindspore.context import ParallelMode

from mindrlhf.models.cpu import AdditiveMask


def slopes(heads: int) -> np.ndarray:
    """What each head's distances are multiplied by, (N,) float32.

    2^(-8 i / P), i = 1..P, for the power of two P <= N; heads beyond P take every other slope of 2 P heads.
    """
    power = 2 ** int(math.log2(heads))
    first = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    rest = [2.0 ** (-4.0 * i / power) for i in range(1, 2 * (heads - power), 2)]
    return np.array(first + rest, np.float32)


class AlibiPositions(nn.Cell):
    """(position_ids (R,S), forbidden (R,1,S,S)) -> (), and what attention takes: on CPU one bias (R,N,S,S) float32
    with the mask in it, else the pair of forbidden and the bias in the compute dtype.

    The bias of query i and key j is slope * min(position_j - position_i, 0): a query sees no key of a greater
    position, and a masked one must not be lifted above the mask. Positions and not columns: two answers that share a
    prompt both stand right behind it.
    """

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        config = model.config
        dp, mp = config.parallel_config.data_parallel, config.parallel_config.model_parallel
        self.fused = config.use_flash_attention
        # The kernel multiplies the sum of product and bias by 1 / sqrt(D).
        scale = math.sqrt(config.hidden_size // config.num_heads) if self.fused else 1.0
        self.slopes = Tensor((slopes(config.num_heads) * np.float32(scale)).reshape(1, -1, 1, 1))
        self.dtype = config.compute_dtype
        self.mask = AdditiveMask()
        self.to_float = ops.Cast().shard(((dp, 1),))
        self.heads = ops.ExpandDims().shard(((dp, 1),))
        self.columns = ops.ExpandDims().shard(((dp, 1, 1),))
        self.subtract = ops.Sub().shard(((dp, 1, 1, 1), (dp, 1, 1, 1)))
        self.past = ops.Minimum().shard(((dp, 1, 1, 1), ()))
        self.times = ops.Mul().shard(((dp, 1, 1, 1), (1, mp, 1, 1)))
        self.to_dtype = ops.Cast().shard(((dp, mp, 1, 1),))
        self.add = ops.Add().shard(((dp, mp, 1, 1), (dp, 1, 1, 1)))

    def construct(self, position_ids, forbidden):
        positions = self.heads(self.to_float(position_ids, ms.float32), 1)
        distances = self.past(self.subtract(self.columns(positions, 2), self.columns(positions, 3)), 0.0)
        bias = self.times(distances, self.slopes)
        if self.fused:
            return (), (forbidden, self.to_dtype(bias, self.dtype))
        return (), self.add(bias, self.mask(forbidden))


class AlibiLayer(LLamaDecodeLayer):
    """A layer that passes on what it is given; the original asks for rotary tables and one mask."""

    def _check_input(self, x, freqs_cis, mask):
        return True


class Unrotated(nn.Cell):
    """q and k as they are, in the place of rotary positions."""

    def construct(self, query, key, tables):
        return query, key


class AlibiFlashAttention(FlashAttention):
    """The Ascend kernel given a pair of mask (R,1,S,S) uint8 and bias (R,N,S,S) of the dtype of q."""

    def construct(self, query, key, value, attn_mask=None):
        forbidden, bias = attn_mask
        _, _, _, mixed = self.flash_attention(query, key, value, bias, None, None, forbidden, None, None, None)
        return mixed


def use_alibi(model: nn.Cell) -> None:
    """Let every layer of a legacy Llama model take what AlibiPositions gives; names and parameters stay."""
    parallel = model.config.parallel_config
    dp, mp = parallel.data_parallel, parallel.model_parallel
    for layer in model.model.layers:
        layer.__class__ = AlibiLayer
        attention = layer.attention
        attention.apply_rotary_emb = Unrotated()
        attention.add.shard(((dp, mp, 1, 1), (dp, mp, 1, 1)))
        if attention.use_flash_attention:
            flash = attention.flash_attention
            flash.__class__ = AlibiFlashAttention
            flash.use_alibi_mask = True
            flash.alibi_rescale_mul = ops.Mul()  # not called; `shard` gives it a strategy
            if ms.get_auto_parallel_context("parallel_mode") == ParallelMode.SEMI_AUTO_PARALLEL:
                flash.shard(parallel)
