"""The walk through MindFormers' legacy Llama layers that honours position_ids."""

from __future__ import annotations

from mindspore import nn, ops

from mindrlhf.models.cpu import AdditiveMask


class LlamaBackbone(nn.Cell):
    """(input_ids, position_ids, forbidden) -> hidden (R,S,H) after the final norm.

    LlamaModel.construct ignores position_ids in training and derives its mask from pad_token_id, so the layers are
    walked here with rotary tables gathered per row. The cell owns no parameter of its own.
    """

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.model = model.model
        config = model.config
        self.fused = config.use_flash_attention
        self.mask = nn.Identity() if self.fused else AdditiveMask()
        self.cosines = self.model.freqs_mgr.freqs_cos
        self.sines = self.model.freqs_mgr.freqs_sin
        self.swap = self.model.freqs_mgr.swap_mask
        dp = config.parallel_config.data_parallel
        self.gather = ops.Gather().shard(((1, 1), (dp, 1)))
        self.expand = ops.ExpandDims().shard(((dp, 1, 1),))
        self.cast = ops.Cast()
        self.dtype = config.compute_dtype

    def construct(self, input_ids, position_ids, forbidden):
        mask = self.mask(forbidden)
        cosines = self.expand(self.gather(self.cosines, position_ids, 0), 1)
        sines = self.expand(self.gather(self.sines, position_ids, 0), 1)
        hidden = self.cast(self.model.tok_embeddings(input_ids), self.dtype)
        for layer in self.model.layers:
            hidden = layer(hidden, (cosines, sines, self.swap), mask)
        return self.model.norm_out(hidden)
