"""The walk through GPTModel's layers that honours position_ids."""

from __future__ import annotations

import numpy as np
from mindspore import Layout, Tensor, nn, ops

from mindrlhf.models.rope import Rope


class Rotary(nn.Cell):
    """Queries or keys (S,R,N,D) and tables (cos, sin) (S,R,1,D) -> turned (S,R,N,D); halves of a head form the pairs.

    GPTModel's own takes one table for all rows and angles without an attention factor.
    """

    def __init__(self, data_parallel: int = 1, model_parallel: int = 1) -> None:
        super().__init__()
        dp, mp = data_parallel, model_parallel
        heads, table = (1, dp, mp, 1), (1, dp, 1, 1)
        self.half = ops.StridedSlice().shard((heads,))
        self.negate = ops.Neg().shard((heads,))
        self.join = ops.Concat(-1).shard((heads, heads))
        self.times = ops.Mul().shard((heads, table))
        self.add = ops.Add().shard((heads, heads))
        self.cast = ops.Cast()

    def construct(self, heads, tables):
        cosines, sines = tables
        length, rows, count, size = heads.shape
        turned = self.cast(heads, cosines.dtype)
        first = self.half(turned, (0, 0, 0, 0), (length, rows, count, size // 2), (1, 1, 1, 1))
        second = self.half(turned, (0, 0, 0, size // 2), (length, rows, count, size), (1, 1, 1, 1))
        turned = self.add(self.times(turned, cosines), self.times(self.join((self.negate(second), first)), sines))
        return self.cast(turned, heads.dtype)


class McoreBackbone(nn.Cell):
    """(input_ids, position_ids, forbidden) -> hidden (R,S,H) after the final norm.

    The cell owns no parameter of its own.
    """

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.embedding = model.embedding
        self.decoder = model.decoder
        config = model.config
        dp, mp = config.data_parallel_size, config.tensor_model_parallel_size
        for layer in self.decoder.layers:
            layer.self_attention.apply_rotary_pos_emb = Rotary(dp, mp)
        cosines, sines = Rope(**model.rope).tables(config.seq_length)
        self.cosines = Tensor(_whole_head(cosines, config.kv_channels, 1.0))
        self.sines = Tensor(_whole_head(sines, config.kv_channels, 0.0))
        self.gather = ops.Gather().shard(((1, 1), (dp, 1)))
        self.first_rows = ops.Transpose().shard(((dp, 1, 1),))
        self.expand = ops.ExpandDims().shard(((1, dp, 1),))
        # A plain tuple would place the parts of the sequence on other devices than the layers do.
        parts = Layout((dp, mp), ("dp", "mp"))("mp", "dp", "None") if config.sequence_parallel else (1, dp, 1)
        self.first_positions = ops.Transpose().shard((parts,))

    def construct(self, input_ids, position_ids, forbidden):
        tables = (self._table(self.cosines, position_ids), self._table(self.sines, position_ids))
        hidden, _, _ = self.decoder(self.embedding(input_ids, position_ids), forbidden, tables)
        return self.first_positions(hidden, (1, 0, 2))

    def _table(self, table, position_ids):
        return self.expand(self.first_rows(self.gather(table, position_ids, 0), (1, 0, 2)), 2)


def _whole_head(table: np.ndarray, head_dim: int, rest: float) -> np.ndarray:
    """Each half of the table filled up with `rest` to half a head: those entries stay where they are."""
    still = np.full((len(table), (head_dim - table.shape[1]) // 2), rest, table.dtype)
    first, second = np.split(table, 2, axis=1)
    return np.concatenate([first, still, second, still], axis=1)
