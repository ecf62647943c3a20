"""Tensors in Hugging Face's words and in MindFormers': maps names and arrays, opens no file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable

from mindrlhf.parallel.slices import Box, Shape, whole
from mindrlhf.runtime.errors import Shapes, misfits

if TYPE_CHECKING:
    import numpy as np

    # The number of a Hugging Face tensor in its group, and the box of it that is wanted.
    Read = Callable[[int, Box], np.ndarray]


def same(*arrays: np.ndarray) -> Sequence[np.ndarray]:
    """The arrays as they are."""
    return arrays


@dataclass(frozen=True)
class Join:
    """How MindFormers' tensors of a group are made of Hugging Face's.

    shapes: of MindFormers' tensors. cut: a box of one of them, by number, out of the boxes that it asks a reader for,
    which hold no more than it needs, or little more. Called with whole arrays it makes whole ones, which may be views.
    """

    shapes: tuple[Shape, ...]
    cut: Callable[[int, Box, Read], np.ndarray]

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """MindFormers' tensors, whole."""

        def read(number: int, box: Box) -> np.ndarray:
            return arrays[number][tuple(slice(start, stop) for start, stop in box)]

        return [self.cut(number, whole(shape), read) for number, shape in enumerate(self.shapes)]


@dataclass(frozen=True)
class Group:
    """The smallest set of tensors that are one another's.

    hf: Hugging Face names with their shapes, in the order in which `join` takes and `split` returns arrays. ms:
    MindFormers names, likewise. joined: how those are made of these, None where they have but two names. `join` and
    `split` move entries and compute nothing, so that they undo each other bit for bit and serve gradients too.
    """

    hf: Shapes
    ms: tuple[str, ...]
    joined: Join | None = None
    split: Callable[..., Sequence[np.ndarray]] = same

    @property
    def join(self) -> Callable[..., Sequence[np.ndarray]]:
        """Hugging Face's arrays -> MindFormers'; `same` where they have but two names."""
        return self.joined or same

    @property
    def ms_shapes(self) -> dict[str, Shape]:
        """MindFormers names with their shapes."""
        return dict(zip(self.ms, self.joined.shapes if self.joined else map(tuple, self.hf.values())))

    def cut(self, number: int, box: Box, read: Read) -> np.ndarray:
        """A box of one of MindFormers' tensors, by number, out of boxes of Hugging Face's; see `Join`."""
        return self.joined.cut(number, box, read) if self.joined else read(number, box)


def renamed(hf: str, ms: str, *shape: int) -> Group:
    """One tensor that has two names."""
    return Group({hf: shape}, (ms,))


def to_ms(groups: Iterable[Group], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays under Hugging Face names as arrays under MindFormers names; groups of which none is there are left out.

    Raises KeyError where part of a group is missing; see `faults`.
    """
    joined: dict[str, np.ndarray] = {}
    for group in groups:
        if any(name in arrays for name in group.hf):
            joined.update(zip(group.ms, group.join(*(arrays[name] for name in group.hf))))
    return joined


def to_hf(groups: Iterable[Group], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `to_ms`."""
    split: dict[str, np.ndarray] = {}
    for group in groups:
        if any(name in arrays for name in group.ms):
            split.update(zip(group.hf, group.split(*(arrays[name] for name in group.ms))))
    return split


def faults(groups: Iterable[Group], shapes: Shapes, ignored: Callable[[str], bool] = lambda name: False) -> list[str]:
    """What is wrong with tensors of these Hugging Face names and shapes: missing, of another shape, foreign.

    Clauses for a message, none where all is well. ignored: names that may be there and mean nothing.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for group in groups:
        expected.update(group.hf)
    return misfits(expected, shapes, "tensors", ignored)


def are_ms(groups: Iterable[Group], names: Collection[str]) -> bool:
    """Whether tensors have MindFormers names: more of those that tell are MindFormers' than Hugging Face's."""
    hf: set[str] = set()
    ms: set[str] = set()
    for group in groups:
        hf.update(group.hf)
        ms.update(group.ms)
    return len((ms - hf) & set(names)) > len((hf - ms) & set(names))
