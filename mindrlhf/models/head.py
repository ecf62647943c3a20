"""The matrix that turns hidden states into logits."""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Layout, Parameter, nn, ops
from mindspore.context import ParallelMode


class Head(nn.Cell):
    """() -> the (V,H) weight as it is. The cell owns no parameter of its own."""

    def __init__(self, weight: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weight

    def construct(self):
        return self.weight


class NormalisedHead(nn.Cell):
    """() -> the (V,H) weight with rows of length 1, float32; rows shorter than 1e-12 are divided by that, as in torch.

    The cell owns no parameter of its own.
    """

    def __init__(self, weight: Parameter, config: Any) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weight
        # One reader of the weight: each of them would reduce a gradient of its own over the workers.
        self.whole = ops.Identity()
        self.cast, self.square, self.sum = ops.Cast(), ops.Square(), ops.ReduceSum(keep_dims=True)
        # Of the squares: the root of a row of zeros has no derivative.
        self.bound, self.inverse, self.scale = ops.Maximum(), ops.Rsqrt(), ops.Mul()
        if ms.get_auto_parallel_context("parallel_mode") == ParallelMode.SEMI_AUTO_PARALLEL:
            self._shard(config)

    def _shard(self, config: Any) -> None:
        parallel = config.parallel_config
        if parallel.pipeline_stage > 1:
            self.pipeline_stage = parallel.pipeline_stage - 1
        split = not parallel.vocab_emb_dp and config.vocab_size % parallel.model_parallel == 0
        # A plain tuple would place the parts of the vocabulary on other devices than the product after it does.
        layout = Layout((parallel.data_parallel, parallel.model_parallel), ("dp", "mp"))
        rows = layout("mp" if split else "None", "None")
        for operator in (self.whole, self.cast, self.square, self.inverse):
            operator.shard((rows,))
        # ReduceSum takes a Layout only so.
        self.sum.add_prim_attr("self_define_shard", True)
        self.sum.shard(in_strategy=(rows,), out_strategy=(rows,))
        self.bound.shard((rows, layout()))
        self.scale.shard((rows, rows))

    def construct(self):
        weight = self.cast(self.whole(self.weight), ms.float32)
        squares = self.bound(self.sum(self.square(weight), 1), 1e-24)
        return self.scale(weight, self.inverse(squares))
