"""Functions of any shape from which losses are made: good in float32, with a gradient for every finite argument."""

from __future__ import annotations

import math

from mindspore import Tensor, ops

# e^80 = 5.5e34: such a number may still be multiplied by a gradient and a weight, and float32 ends at 3.4e38. e^-104 is
# 0 there, and so is the gradient below, whatever it is multiplied by.
LARGEST_EXPONENT, LEAST_EXPONENT = 80.0, -104.0
LARGEST_ROOT = 1e18
# No mean log-prob is finer than this: it is a difference of float32 logits. At 0 itself log(1 - p) is -inf.
FINEST_LOGP = -1e-6
# 1 - log of e as float32 has it.
SHORT_OF_E = 3.04e-8


def exp(x: Tensor) -> Tensor:
    """e^min(x, 80), good to 2e-7 on CPU, where ops.exp is good to 2e-5, and pow of the float32 e to 3e-8 |x|."""
    x = ops.maximum(ops.minimum(x, LARGEST_EXPONENT), LEAST_EXPONENT)
    return ops.pow(math.e, x) * (1 + SHORT_OF_E * x)


def log_sigmoid(x: Tensor) -> Tensor:
    """log sigma(x) = -softplus(-x) = min(x, 0) - log(1 + e^-|x|).

    Through sign the gradient at 0, where training starts, is 1/2 on every backend; through minimum it is whatever the
    backend does with ties.
    """
    sign = ops.sign(x)
    return x * (1 - sign) / 2 - ops.log1p(ops.pow(math.e, -x * sign))


def sigmoid(x: Tensor) -> Tensor:
    """sigma(x) = e^log sigma(x). On CPU ops.sigmoid is good to 5e-6 only."""
    return exp(log_sigmoid(x))


def square(x: Tensor) -> Tensor:
    """x^2, level beyond |x| = 1e18, where float32 ends."""
    return ops.square(ops.maximum(ops.minimum(x, LARGEST_ROOT), -LARGEST_ROOT))


def log_one_minus_exp(x: Tensor) -> Tensor:
    """log(1 - e^x) of a mean log-prob x <= 0; level above -1e-6.

    1 - e^x is 2t / (1 + t), t = tanh(-x/2), above x = -log 2, where the difference would lose its digits. Each of the
    two forms stays at log(1/2) where the other one holds.
    """
    tanh = ops.tanh(ops.maximum(ops.minimum(x, FINEST_LOGP), -math.log(2)) / -2)
    near = ops.log(2 * tanh / (1 + tanh))
    far = ops.log1p(-ops.pow(math.e, ops.minimum(x, -math.log(2))))
    return near + far + math.log(2)


def matched(values: Tensor, others: Tensor, mask: Tensor) -> Tensor:
    """For each pair the one of `others` that has the place among others which the pair's own has among `values`.

    values, others, mask (B,) -> (B,). Where i is the place of values[k], sorted from the least, element k is sorted
    others[i]. Pairs whose mask is 0 stand after all others and get 0. Equal values stand in the order of the batch.
    The gradient is that of others. Not a sort but B x B comparisons, which every backend has, with their gradient.
    """
    same = _places(values, mask).expand_dims(1) == _places(others, mask).expand_dims(0)
    return (same.astype(others.dtype) * real(others, mask).expand_dims(0)).sum(-1)


def _places(values: Tensor, mask: Tensor) -> Tensor:
    keys = ops.where(mask > 0, ops.stop_gradient(values), 3.4e38)
    index = ops.arange(values.shape[0])
    tied = ops.logical_and(keys.expand_dims(0) == keys.expand_dims(1), index.expand_dims(0) < index.expand_dims(1))
    before = ops.logical_or(keys.expand_dims(0) < keys.expand_dims(1), tied)
    return before.astype(values.dtype).sum(-1)


def real(values: Tensor, mask: Tensor) -> Tensor:
    """values (B,) where mask is 1, and 0 elsewhere, whatever stands there."""
    return ops.where(mask > 0, values, 0.0)


def mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B,), mask (B,) -> () mean over the real pairs; 0 if there is none."""
    return real(values, mask).sum() / ops.maximum(mask.sum(), 1.0)
