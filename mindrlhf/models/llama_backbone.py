"""The walk through MindFormers' legacy Llama layers that honours position_ids."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, nn, ops

from mindrlhf.models.cpu import AdditiveMask
from mindrlhf.models.rope import Rope


class RotaryPositions(nn.Cell):
    """(position_ids (R,S), forbidden (R,1,S,S)) -> what the layers take of them: rotary tables per row, and the mask.

    Tables are ours, of `config.rope` (`Rope` as a dict), so that every scaling is as in PyTorch.
    """

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        config = model.config
        self.mask = nn.Identity() if config.use_flash_attention else AdditiveMask()
        cosines, sines = rope_of(config).tables(config.seq_length)
        self.cosines, self.sines = Tensor(cosines), Tensor(sines)
        self.swap = model.model.freqs_mgr.swap_mask
        dp = config.parallel_config.data_parallel
        self.gather = ops.Gather().shard(((1, 1), (dp, 1)))
        self.expand = ops.ExpandDims().shard(((dp, 1, 1),))

    def construct(self, position_ids, forbidden):
        cosines = self.expand(self.gather(self.cosines, position_ids, 0), 1)
        sines = self.expand(self.gather(self.sines, position_ids, 0), 1)
        return (cosines, sines, self.swap), self.mask(forbidden)


class LlamaBackbone(nn.Cell):
    """(input_ids, position_ids, forbidden) -> hidden (R,S,H) after the final norm.

    LlamaModel.construct ignores position_ids in training and derives its mask from pad_token_id, so the layers are
    walked here with what `positions` makes of the row. The cell owns no parameter of its own.
    """

    def __init__(self, model: nn.Cell, positions: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.model = model.model
        self.positions = positions
        self.cast = ops.Cast()
        self.dtype = model.config.compute_dtype

    def construct(self, input_ids, position_ids, forbidden):
        rotary, mask = self.positions(position_ids, forbidden)
        hidden = self.cast(self.model.tok_embeddings(input_ids), self.dtype)
        for layer in self.model.layers:
            hidden = layer(hidden, rotary, mask)
        return self.model.norm_out(hidden)


def rope_of(config: Any) -> Rope:
    """The Rope of a MindFormers config; one that carries none has MindFormers' plain base."""
    head_size = config.hidden_size // config.num_heads
    return Rope(**getattr(config, "rope", None) or {"kind": "default", "rotary_dim": head_size, "theta": config.theta})
