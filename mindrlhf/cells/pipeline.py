"""The preference cell in a pipeline of stages, and the step that trains it.

Compiled by MindSpore's passes for the first and the last stage of every family (tests/layouts), and checked there:
what is sent, which parameters a stage updates, by what each gradient's share of the norm is divided. Never run:
MindSpore has no pipelines on CPU.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import lazy_inline, nn, ops
from mindspore.context import ParallelMode

from mindrlhf.cells.train_step import Clip
from mindrlhf.parallel.layout import Layout


class OneGraph(nn.Cell):
    """A cell that is compiled once however often it is called; without it MindFormers' newer models do not compile in
    a pipeline.

    Within it no other such cell may be called, and no cell that is recomputed as a whole.
    """

    @lazy_inline
    def __init__(self, cell: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell

    def construct(self, *batch):
        return self.cell(*batch)


class MicroBatches(nn.Cell):
    """A cell (batch) -> (loss, sums, logps, figures), called for one part of the batch after the other.

    Every field of the batch is divided along its first axis, so that units stay together where `parts` divides them;
    num_pairs and num_chosen_tokens come as (parts,), the same number for each part. Returns (loss (), sums, logps) of
    the whole batch, logps in the order of its units: losses and sums add up, as their denominators are of the global
    batch. Only the workers of the last stage return these; on all others they are constants without meaning.

    MindSpore's own nn.PipelineCell adds up all outputs, or takes one alone.
    """

    def __init__(self, cell: nn.Cell, parts: int) -> None:
        super().__init__(auto_prefix=False)
        # One worker, as tests have it, has no kernels for a graph within a graph.
        divided = ms.get_auto_parallel_context("parallel_mode") == ParallelMode.SEMI_AUTO_PARALLEL
        self.cell = OneGraph(cell) if divided else cell
        self.parts = parts
        # MindSpore knows a part by the slice that makes it, and its end by the addition of what it gave.
        self.slices = [ops.StridedSlice() for _ in range(parts)]
        self.add_losses = [ops.Add().add_prim_attr("pipeline_end", part) for part in range(parts)]
        self.add_sums = [ops.Add().add_prim_attr("pipeline_end", part) for part in range(parts)]
        self.join = ops.Concat()
        # A constant gradient has no operator that could send it to the stage before.
        self.one = ms.Parameter(ms.Tensor(1.0, ms.float32), name="one", requires_grad=False, parallel_optimizer=False)

    def construct(self, *batch):
        total, totals = None, None
        everyone: tuple = ()
        for part in range(self.parts):
            fields: tuple = ()
            for field in batch:
                count, whole = field.shape[0] // self.parts, field.shape[1:]
                rest = (0,) * len(whole)
                start, stop = (part * count, *rest), ((part + 1) * count, *whole)
                fields += (self.slices[part](field, start, stop, (1,) * len(field.shape)),)
            loss, sums, logps, _ = self.cell(*fields[:-2], fields[-2].reshape(()), fields[-1].reshape(()))
            loss = loss * self.one
            total = loss if total is None else self.add_losses[part](total, loss)
            totals = sums if totals is None else self.add_sums[part](totals, sums)
            everyone += (logps,)
        return total, totals, self.join(everyone)


class PipelineStep(nn.Cell):
    """`TrainStep` in a pipeline: one update from one global batch, its fields as `MicroBatches` takes them.

    Returns (sums, grad_norm before clipping, logps): the norm, of the gradients of all stages, on every worker; the
    others on those of the last stage alone, see `MicroBatches`. What the trainer reports it must take from there.
    """

    def __init__(
        self, cell: MicroBatches, optimizer: nn.Optimizer, max_grad_norm: float | None, layout: Layout
    ) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        # Without this mark MindSpore does not find the parts' backward passes.
        self.cell.set_grad()
        self.optimizer = optimizer
        self.parameters = optimizer.parameters
        # Every worker of the last stage comes to the whole loss, see `TrainStep`.
        self.share = layout.pipeline_stage / layout.world
        # MindSpore looks for parameters of these names, and adds to them what each part gives.
        self.kept = optimizer.parameters.clone(prefix="accu_grads", init="zeros")
        self.sharded = layout.optimizer_shard
        # Not ops.value_and_grad: on the first stage, where outputs are constants, it does not compile.
        self.gradient = ops.GradOperation(get_by_list=True, sens_param=True)
        self.clip = Clip(max_grad_norm)
        self.map = ops.HyperMap()

    def construct(self, update, *batch):
        loss, sums, logps = self.cell(*batch)
        shares = (ops.ones_like(loss) * self.share, ops.zeros_like(sums), ops.zeros_like(logps))
        gradients = self.gradient(self.cell, self.parameters)(*batch, shares)
        # Summed over parts and workers: as they are where the optimizer is sharded, else in what was kept.
        whole = gradients if self.sharded else self.map(ops.depend, self.kept, gradients)
        whole, norm = self.clip(whole)
        # The sums read weights too, which nothing else keeps from being updated before.
        whole = ops.depend(whole, sums)
        sums = ops.depend(sums, self.optimizer(whole))
        sums = ops.depend(sums, self.map(ops.partial(_clear, sums), self.kept, gradients))
        return sums, norm, logps


def _clear(after, kept, gradient):
    kept = ops.depend(kept, gradient)
    return ops.assign(kept, ops.depend(ops.zeros_like(kept), after))
