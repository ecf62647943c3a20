"""The preference cell in a pipeline of stages, and the step that trains it."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from mindrlhf.cells.train_step import Clip


class MicroBatches(nn.Cell):
    """A cell (batch) -> (loss, sums, logps, figures), called for one part of the batch after the other.

    Every field of the batch is divided along its first axis, so that units stay together; one that is one number for
    the whole batch comes as an array (parts,) of it, see `by_part`. Returns (loss, sums, logps) of the whole batch;
    losses and sums add up, as their denominators are of the global batch.

    MindSpore's own nn.PipelineCell adds up one output alone.
    """

    def __init__(self, cell: nn.Cell, parts: int) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.parts = parts
        # MindSpore knows a part by the slice that makes it, and its end by the addition of what it gave.
        self.slices = [ops.StridedSlice() for _ in range(parts)]
        self.add_losses = [ops.Add().add_prim_attr("pipeline_end", part) for part in range(parts)]
        self.add_sums = [ops.Add().add_prim_attr("pipeline_end", part) for part in range(parts)]
        self.join = ops.Concat()
        # A constant gradient has no operator that could receive it of the next stage.
        self.one = ms.Parameter(ms.Tensor(1.0, ms.float32), name="one", requires_grad=False, parallel_optimizer=False)

    def construct(self, *batch):
        total, totals, everyone = None, None, ()
        for part in range(self.parts):
            fields = ()
            for field in batch:
                count, whole = field.shape[0] // self.parts, field.shape[1:]
                rest = (0,) * len(whole)
                start, stop = (part * count, *rest), ((part + 1) * count, *whole)
                fields += (self.slices[part](field, start, stop, (1,) * len(start)),)
            loss, sums, logps, _ = self.cell(*fields[:-2], fields[-2].reshape(()), fields[-1].reshape(()))
            loss = loss * self.one
            total = loss if total is None else self.add_losses[part](total, loss)
            totals = sums if totals is None else self.add_sums[part](totals, sums)
            everyone += (logps,)
        return total, totals, totals


class PipelineStep(nn.Cell):
    """`TrainStep` for a cell of `MicroBatches`, in which MindSpore adds the parts' gradients up.
    """

    def __init__(self, cell: nn.Cell, optimizer: nn.Optimizer, max_grad_norm: float | None, split_over: int) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        # Without this mark MindSpore does not find the parts' backward passes.
        self.cell.set_grad()
        self.optimizer = optimizer
        self.parameters = optimizer.parameters
        self.share = 1.0 / split_over
        # MindSpore looks for these names, and adds to these parameters what each part gives.
        self.kept = optimizer.parameters.clone(prefix="accu_grads", init="zeros")
        self.sharded = ms.get_auto_parallel_context("enable_parallel_optimizer")
        self.gradient = ops.GradOperation(get_by_list=True, sens_param=True)
        self.clip = Clip(max_grad_norm)
        self.map = ops.HyperMap()

    def construct(self, update, *batch):
        loss, sums, logps = self.cell(*batch)
        sensitivities = (ops.ones_like(loss) * self.share, ops.zeros_like(sums), ops.zeros_like(logps))
        gradients = self.gradient(self.cell, self.parameters)(*batch, sensitivities)
        kept = gradients if self.sharded else self.map(_kept, self.kept, gradients)
        clipped, norm = self.clip(kept)
        clipped = ops.depend(clipped, sums)
        sums = ops.depend(sums, self.optimizer(clipped))
        sums = ops.depend(sums, self.map(ops.partial(_clear, sums), self.kept, gradients))
        return sums, norm, logps


def _kept(kept, gradient):
    return ops.depend(kept, gradient)


def _clear(after, kept, gradient):
    kept = ops.depend(kept, gradient)
    return ops.assign(kept, ops.depend(ops.zeros_like(kept), after))
