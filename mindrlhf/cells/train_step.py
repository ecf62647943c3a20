"""One optimizer step: gradients, their sum over micro-batches and workers, the norm, the clip, the update."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops


class Clip(nn.Cell):
    """gradients -> (gradients of a global norm of at most `max_grad_norm`, None for any; the norm () before).

    As torch clips: g min(1, max / (norm + 1e-6)).
    """

    def __init__(self, max_grad_norm: float | None) -> None:
        super().__init__(auto_prefix=False)
        self.max_grad_norm = max_grad_norm
        self.map = ops.HyperMap()
        # By this mark semi-auto parallel knows the square sum of a gradient's slice, and adds up those of all slices.
        self.square_sum = ops.ExpandDims().add_prim_attr("grad_scale", True)

    def construct(self, gradients):
        # One sum over all of them: a stage of a pipeline leaves out of a tuple what is not its own, while a chain of
        # sums would break at the first such, and with it everything behind, the update too, silently.
        norm = ops.sqrt(ops.addn(self.map(self._square_sum, gradients))).reshape(())
        if self.max_grad_norm is not None:
            scale = ops.minimum(ops.ones((), ms.float32), self.max_grad_norm / (norm + 1e-6))
            gradients = self.map(ops.partial(_scale, scale), gradients)
        return gradients, norm

    def _square_sum(self, gradient):
        return self.square_sum(ops.square(gradient.astype(ms.float32)).sum(), 0)


class TrainStep(nn.Cell):
    """Wraps a cell (batch) -> (loss, sums, logps, figures); losses and sums add up over micro-batches and workers.

    Called as `step(update, *batch)`: with update False the micro-batch's gradients and sums are only kept; with True
    they are joined with the kept ones, summed over workers, clipped as torch does (g min(1, max / (norm + 1e-6))) and
    given to the optimizer. Returns (sums of this step, grad_norm before clipping, logps of this micro-batch); the
    first two mean something only after an update.

    reduce_over: workers whose gradients are summed explicitly; 1 where semi-auto parallel does it.
    split_over: workers over which semi-auto parallel splits the cell; 1 where it does not.
    """

    def __init__(
        self,
        cell: nn.Cell,
        optimizer: nn.Optimizer,
        max_grad_norm: float | None,
        passes: int,
        reduce_over: int,
        split_over: int = 1,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.optimizer = optimizer
        self.accumulates = passes > 1
        self.reduces = reduce_over > 1
        self.split_over = split_over
        self.gradients = ops.value_and_grad(self._share, None, optimizer.parameters, has_aux=True)
        self.map = ops.HyperMap()
        # The parts of a norm are not found past the sum of several passes.
        assert passes == 1 or split_over == 1
        self.clip = Clip(max_grad_norm)
        if self.accumulates:
            self.kept = optimizer.parameters.clone(prefix="accumulated", init="zeros")
            self.kept_sums = ms.Parameter(
                ops.zeros(cell.num_sums, ms.float32), name="accumulated_sums", requires_grad=False
            )
        if self.reduces:
            self.reducer = nn.DistributedGradReducer(optimizer.parameters, mean=False, degree=reduce_over)
            self.all_reduce = ops.AllReduce()

    def _share(self, *batch):
        """The cell, its loss divided into shares, one of each worker.

        Every worker of semi-auto parallel comes to the whole loss, and their gradients are added. MindSpore divides
        the loss by itself only where a cell has no other output (its _VirtualDiv), silently.
        """
        loss, sums, logps, _ = self.cell(*batch)
        return loss / self.split_over, sums, logps

    def construct(self, update, *batch):
        (_, sums, logps), gradients = self.gradients(*batch)
        if not update:
            sums = ops.depend(sums, self.map(ops.assign_add, self.kept, gradients))
            ops.assign_add(self.kept_sums, sums)
            return sums, ops.zeros((), ms.float32), logps
        if self.accumulates:
            gradients = self.map(ops.add, gradients, self.kept)
            sums = ops.add(sums, self.kept_sums)
        if self.reduces:
            gradients = self.reducer(gradients)
            sums = self.all_reduce(sums)
        gradients, norm = self.clip(gradients)
        # The sums read weights too, which nothing else keeps from being updated before.
        gradients = ops.depend(gradients, sums)
        sums = ops.depend(sums, self.optimizer(gradients))
        if self.accumulates:
            # Emptied only once everything that reads them is done.
            sums = ops.depend(sums, self.map(ops.partial(_clear, sums), self.kept))
            norm = ops.depend(norm, ops.assign(self.kept_sums, ops.zeros_like(self.kept_sums)))
        return sums, norm, logps


def _scale(scale, gradient):
    return gradient * scale.astype(gradient.dtype)


def _clear(after, kept):
    return ops.assign(kept, ops.depend(ops.zeros_like(kept), after))
