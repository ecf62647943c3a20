"""Tensors from one vocabulary into another: a few at a time, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

from mindrlhf.checkpoint.hf_folder import Put
from mindrlhf.checkpoint.tensor_file import Spec
from mindrlhf.checkpoint.tensors import Tensors
from mindrlhf.models import ModelFamily
from mindrlhf.models.hf_weights import Group, are_ms, faults
from mindrlhf.runtime.errors import IncompleteCheckpoint, UserError
from mindrlhf.runtime.progress import Progress

CAST = 1 << 22  # numbers that are rounded at once
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Step:
    """Tensors that become others: name -> shape before and after, the dtype after, and what moves the entries."""

    before: Shapes
    after: Shapes
    move: Callable[..., Sequence[np.ndarray]]
    dtype: str


def check(
    groups: Sequence[Group],
    specs: Mapping[str, Spec],
    family: ModelFamily,
    hf_config: Mapping[str, Any],
    reverse: bool,
    source: str,
) -> list[str]:
    """Names that may be there and mean nothing; raises `UserError` where the tensors are not the model's."""
    shapes = {name: spec.shape for name, spec in specs.items()}
    if are_ms(groups, shapes) != reverse:
        now, then = ("Hugging Face's", "False") if reverse else ("MindFormers'", "True")
        raise UserError(f"the tensors of {source} have {now} names already; with --reversed {then} they are converted")
    wanted = in_ms(groups) if reverse else groups
    wrong = faults(wanted, shapes, lambda name: family.ignored(name, hf_config))
    if wrong:
        raise IncompleteCheckpoint(f"{source} does not fit its config.json: {'; '.join(wrong)}")
    expected = {name for group in wanted for name in group.hf}
    return [name for name in shapes if name not in expected]


def in_ms(groups: Sequence[Group]) -> list[Group]:
    """The groups as they are under MindFormers' names."""
    return [Group(group.ms_shapes, group.ms) for group in groups]


def plan(groups: Sequence[Group], opened: Tensors, dtype: str | None, reverse: bool) -> Iterator[Step]:
    """What is to be done, in order. dtype: of what is written, None as the source.

    Raises `UserError` for tensors that are no float numbers.
    """
    for group in groups:
        ours = group.ms_shapes
        before = ours if reverse else group.hf
        found = {opened.specs[name].dtype for name in before}
        for name in before:
            if "float" not in opened.specs[name].dtype:
                raise UserError(f"{name} is {opened.specs[name].dtype}; weights are float numbers: use other weights")
        # Tensors that are joined must be alike.
        kind = dtype or (found.pop() if len(found) == 1 else "float32")
        yield Step(ours, group.hf, group.split, kind) if reverse else Step(group.hf, ours, group.join, kind)


def constants(family: ModelFamily, hf_config: Mapping[str, Any], dtype: str) -> Iterator[Step]:
    """What Hugging Face's form holds beside the weights, written and not read."""
    for name, array in family.constants(hf_config).items():
        yield Step({}, {name: array.shape}, lambda name=name, array=array: [rounded(array, dtype, name)], dtype)


def specs_of(steps: Sequence[Step]) -> dict[str, Spec]:
    """Dtype and shape of everything that is written, in the order of the steps."""
    return {name: Spec(step.dtype, tuple(shape)) for step in steps for name, shape in step.after.items()}


def move(steps: Sequence[Step], opened: Tensors, put: Put, wrote: Put | None = None) -> None:
    """Read, round, rearrange and write, one step after the other; no array outlives its step.

    wrote: called with every tensor that was written.
    """
    progress = Progress("convert", len(steps), unit="group")
    for step in steps:
        moved = list(step.move(*(rounded(opened.read(name), step.dtype, name) for name in step.before)))
        for k, (name, shape) in enumerate(step.after.items()):
            assert moved[k].shape == tuple(shape), f"{name} became {moved[k].shape}, announced as {shape}"
            put(name, moved[k])
            if wrote:
                wrote(name, moved[k])
        del moved
        progress.advance()
    progress.close()
    opened.check()


def rounded(array: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """The array in another dtype, to nearest and ties to even; `UserError` where float16 is too small for a number."""
    if array.dtype.name == dtype:
        return array
    flat, result = array.reshape(-1), np.empty(array.shape, np.dtype(dtype))
    with np.errstate(over="ignore"):
        for start in range(0, flat.size, CAST):
            part = flat[start : start + CAST]
            done = result.reshape(-1)[start : start + CAST]
            done[...] = part
            if dtype == "float16" and np.isinf(done).sum() != np.isinf(part.astype(np.float32)).sum():
                raise UserError(f"{name} has numbers beyond 65504, where float16 ends; give --dtype bf16 or fp32")
    return result
