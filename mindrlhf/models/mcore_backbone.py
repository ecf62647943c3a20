"""The walk through GPTModel's layers that honours position_ids."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Layout, Tensor, nn, ops

from mindrlhf.models.rope import Rope

WORKERS = ("dp", "cp", "mp")


class Rotary(nn.Cell):
    """Queries or keys (..., D) and tables (cos, sin), which broadcast to them -> turned; halves of a head form the
    pairs (arXiv 2104.09864, section 3.4.2).

    heads, tables: how both are divided over the workers. GPTModel's own takes one table for all rows and
    knows no attention factor.
    """

    def __init__(self, heads: Any, tables: Any) -> None:
        super().__init__()
        self.halves = ops.Split(-1, 2).shard((heads,))
        self.negate = ops.Neg().shard((heads,))
        # Concat takes a Layout only so.
        self.join = ops.Concat(-1).add_prim_attr("self_define_shard", True)
        self.join.shard(in_strategy=((heads, heads),), out_strategy=(heads,))
        self.times = ops.Mul().shard((heads, tables))
        self.add = ops.Add().shard((heads, heads))
        self.cast = ops.Cast()

    def construct(self, heads, tables):
        cosines, sines = tables
        turned = self.cast(heads, cosines.dtype)
        first, second = self.halves(turned)
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
        sizes = config.data_parallel_size, config.context_parallel_size, config.tensor_model_parallel_size
        # A plain tuple would place the parts of the sequence on other devices than the layers do.
        workers = Layout(sizes, WORKERS)
        heads, tables = workers("cp", "dp", "mp", "None"), workers("cp", "dp", "None", "None")
        for layer in self.decoder.layers:
            layer.self_attention.apply_rotary_pos_emb = Rotary(heads, tables)
        cosines, sines = Rope(**model.rope).tables(config.seq_length)
        self.cosines = Tensor(_whole_head(cosines, config.kv_channels, 1.0))
        self.sines = Tensor(_whole_head(sines, config.kv_channels, 0.0))
        dp, cp, _ = sizes
        self.gather = ops.Gather().shard(((1, 1), (dp, cp)))
        self.first_rows = ops.Transpose().shard(((dp, cp, 1),))
        self.expand = ops.ExpandDims().shard((workers("cp", "dp", "None"),))
        positions = ("cp", "mp") if config.sequence_parallel else "cp"
        self.first_positions = ops.Transpose().shard((workers(positions, "dp", "None"),))

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
