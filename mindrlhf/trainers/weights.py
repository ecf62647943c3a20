"""Weights into a model, one group of tensors at a time: whole, or of each the slice that this rank holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from mindrlhf.checkpoint import store
from mindrlhf.checkpoint.tensors import Tensors
from mindrlhf.models.hf_weights import Group, are_ms
from mindrlhf.parallel.context import recorded_strategy
from mindrlhf.parallel.layout import Layout
from mindrlhf.parallel.slices import Box, box_of
from mindrlhf.parallel.strategy import read_strategy
from mindrlhf.runtime.device import Device
from mindrlhf.runtime.errors import IncompleteCheckpoint, misfits, some
from mindrlhf.trainers.policy import Source

DIGEST = 64  # letters of a fingerprint

if TYPE_CHECKING:
    from mindspore import Parameter, nn

    Arrays = dict[str, np.ndarray]
    Parameters = Mapping[str, Parameter]


def load_weights(source: Source, parameters: Parameters) -> str:
    """Set every parameter, by MindFormers' names, to its whole tensor; returns the weights' fingerprint.

    Raises `IncompleteCheckpoint` where names or shapes are not the model's, before anything is set.
    """
    with _opened(source) as tensors:
        tensors.check(parameters)

        def every() -> Iterator[tuple[str, np.ndarray]]:
            for group in tensors.groups:
                ours, theirs = tensors.read(group)
                for name, array in ours.items():
                    _set(parameters[name], array)
                yield from theirs.items()

        digest = store.fingerprint(every())
        tensors.opened.check()
    return digest


def first_weights(source: Source, parameters: Parameters, device: Device, layout: Layout) -> str:
    """The weights that a run starts from, set before anything is compiled; returns their fingerprint.

    Under semi-auto parallel nothing is set, for the slices are not known yet: `load_slices` follows.
    """
    if not layout.semi_auto:
        return load_weights(source, parameters)
    device.barrier()  # so that no rank still waits for its peers to appear while the first one reads
    return device.of_first(_fingerprint(source, parameters) if device.rank == 0 else "0" * DIGEST)


def _fingerprint(source: Source, parameters: Parameters) -> str:
    with _opened(source) as tensors:
        tensors.check(parameters)
        return store.fingerprint(pair for group in tensors.groups for pair in tensors.sampled(group))


def load_slices(
    source: Source, parameters: Parameters, boxes: Mapping[str, Box], rank: int = 0, world: int = 1
) -> None:
    """Set the parameters that `boxes` names, which have the shapes of these boxes already, to them.

    Of every tensor on the disk only what the boxes hold is read, of experts those that are in a box; where rows change
    places within a head (GLM-4's q and k), up to a head more at either end of a box. Of the files' checksums each of
    `world` ranks compares its share.
    """
    with _opened(source) as tensors:
        for group in tensors.groups:
            for name, array in tensors.cut(group, boxes):
                _set(parameters[name], array, slice_shape=True)
        tensors.opened.check(rank, world)


def named(model: nn.Cell) -> dict[str, Parameter]:
    """The parameters of a model by name."""
    return {parameter.name: parameter for parameter in model.get_parameters()}


@dataclass(frozen=True)
class Slices:
    """What a rank holds. boxes: of each parameter's whole tensor; one of another stage of the pipeline has none.
    strategy: MindSpore's file that says so."""

    boxes: dict[str, Box]
    strategy: bytes


def compiled_slices(cell: nn.Cell, inputs: Sequence[Any], weights: Parameters, rank: int, layout: Layout) -> Slices:
    """Compile `cell` under semi-auto parallel: each of its parameters becomes the slice that this rank holds.

    weights: those of its parameters whose slices are wanted, by the names that they have now.
    """
    full = {name: tuple(parameter.shape) for name, parameter in weights.items()}
    trained_only = any(parameter.requires_grad for parameter in weights.values())
    with TemporaryDirectory(prefix="mindrlhf-strategy-") as scratch:
        file = Path(scratch) / "strategy.ckpt"
        with recorded_strategy(file, trained_only):
            cell.compile(*inputs)
        layouts, strategy = read_strategy(file), file.read_bytes()
    lost = full.keys() - layouts.keys()
    if lost and layout.pipeline_stage == 1:
        raise RuntimeError(f"MindSpore has given {len(lost)} parameters no layout: {some(sorted(lost))}")
    boxes = {name: box_of(layouts[name], full[name], rank % layout.per_stage) for name in full if name in layouts}
    return Slices(boxes, strategy)


class _Sampled:
    """A tensor on the disk as `store.fingerprint` asks it: for its shape, and for single values."""

    def __init__(self, opened: Tensors, name: str) -> None:
        self.opened, self.name = opened, name
        self.shape = opened.specs[name].shape
        self.size = math.prod(self.shape)

    @property
    def flat(self) -> _Sampled:
        return self

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        indices = zip(*np.unravel_index(places, self.shape))
        found = [self.opened.read(self.name, tuple((int(at), int(at) + 1) for at in index)) for index in indices]
        return np.concatenate([value.reshape(1) for value in found])


class _Grouped:
    """Opened weights by the groups of their family. ours: whether they have MindFormers' names."""

    def __init__(self, source: Source, opened: Tensors) -> None:
        self.source, self.opened = source, opened
        self.groups = list(source.family.tensors(source.hf_config))
        self.ours = are_ms(self.groups, opened.specs)

    def check(self, parameters: Parameters) -> None:
        """Raise where they do not fit; of those under Hugging Face's names `Source.check` has told already."""
        expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        if self.ours:
            found = {name: spec.shape for name, spec in self.opened.specs.items()}
        else:
            found = {name: expected.get(name, ()) for group in self.groups for name in group.ms}
        wrong = misfits(expected, found, "parameters")
        if wrong:
            raise IncompleteCheckpoint(f"{self.source.weights} does not fit the model: {'; '.join(wrong)}")

    def read(self, group: Group) -> tuple[Arrays, Arrays]:
        """The tensors of a group under MindFormers' names and under Hugging Face's."""
        if self.ours:
            ours = {name: self.opened.read(name) for name in group.ms}
            return ours, dict(zip(group.hf, group.split(*ours.values())))
        theirs = {name: self.opened.read(name) for name in group.hf}
        return dict(zip(group.ms, group.join(*theirs.values()))), theirs

    def sampled(self, group: Group) -> Iterator[tuple[str, Any]]:
        """Those of a group under Hugging Face's names, unread where they lie on the disk as they are there."""
        if self.ours and group.joined:
            yield from self.read(group)[1].items()
        else:
            lying = group.ms if self.ours else tuple(group.hf)
            yield from ((theirs, _Sampled(self.opened, name)) for theirs, name in zip(group.hf, lying))

    def cut(self, group: Group, boxes: Mapping[str, Box]) -> Iterator[tuple[str, np.ndarray]]:
        """Those of a group's tensors that `boxes` names, cut to these."""
        theirs = tuple(group.hf)
        for number, name in enumerate(group.ms):
            if name in boxes and self.ours:
                yield name, self.opened.read(name, boxes[name])
            elif name in boxes:
                yield name, group.cut(number, boxes[name], lambda part, box: self.opened.read(theirs[part], box))


@contextmanager
def _opened(source: Source) -> Iterator[_Grouped]:
    with Tensors(source.weights) as opened:
        yield _Grouped(source, opened)


def _set(target: Parameter, array: np.ndarray, slice_shape: bool = False) -> None:
    from mindspore import Tensor

    if tuple(target.shape) != array.shape:
        raise IncompleteCheckpoint(
            f"the weights do not fit the model: {target.name} has shape {array.shape}, the model's "
            f"{tuple(target.shape)}"
        )
    target.set_data(Tensor(array, target.dtype), slice_shape=slice_shape)
