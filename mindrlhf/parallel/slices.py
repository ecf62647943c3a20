"""Which part of a tensor a rank holds: arithmetic over a `TensorLayout`, no file and no device.

A box is (start, stop) for every axis of the full tensor. Ranks are counted within their stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

from mindrlhf.parallel.strategy import TensorLayout

Box = tuple[tuple[int, int], ...]
Shape = tuple[int, ...]


class Uncut(ValueError):
    """A shape that a layout does not divide; the message is a clause that says which axis by what."""


def parts(layout: TensorLayout, ndim: int) -> Shape:
    """Into how many parts each of `ndim` axes is cut; on axis 0 the optimizer's share of a slice counts too.

    Raises `Uncut` where the layout is of a tensor with another number of axes.
    """
    cut = [math.prod(layout.dev_matrix[-1 - axis] for axis in axes) for axes in _axes(layout, ndim)]
    if sharers(layout) > 1:
        if not cut:
            raise Uncut("it has no axis to be cut along")
        cut[0] *= sharers(layout)
    return tuple(cut)


def sharers(layout: TensorLayout) -> int:
    """Number of the ranks that share axis 0 of one slice between them (optimizer parallel); 1 where none do."""
    if not layout.opt_weight_shard_step or not layout.opt_weight_shard_size:
        return 1
    size = layout.opt_weight_shard_size
    return size if size > 0 else replicas(layout)


def replicas(layout: TensorLayout) -> int:
    """Number of ranks whose coordinates on the splitting axes of the grid are the same."""
    used = {axis for axes in layout.tensor_map for axis in axes}
    return math.prod(size for axis, size in enumerate(reversed(layout.dev_matrix)) if axis not in used)


def full_shape(layout: TensorLayout, piece: Sequence[int]) -> Shape:
    """The shape of the tensor of which each rank holds a slice of shape `piece`."""
    return tuple(size * count for size, count in zip(piece, parts(layout, len(piece))))


@lru_cache(maxsize=1 << 16)
def box_of(layout: TensorLayout, shape: Shape, rank: int) -> Box:
    """The box of a tensor of `shape` that `rank` holds.

    Ranks that hold the same slice are counted in ascending order; of `sharers` that follow each other, each has one
    part of the slice's axis 0. Raises `Uncut` where the shape is not divisible.
    """
    counts = parts(layout, len(shape))
    for axis, (size, count) in enumerate(zip(shape, counts)):
        if size % count:
            raise Uncut(f"axis {axis} of {tuple(shape)} is not divisible by {count}")
    place = _coordinates(layout, rank)
    bounds: list[tuple[int, int]] = []
    for size, count, axes in zip(shape, counts, _axes(layout, len(shape))):
        index = 0
        for axis in axes:
            index = index * layout.dev_matrix[-1 - axis] + place[axis]
        width = size // count
        # On axis 0 `index` counts slices before they are shared.
        if not bounds and sharers(layout) > 1:
            index = index * sharers(layout) + _replica(layout, place) % sharers(layout)
        bounds.append((index * width, (index + 1) * width))
    return tuple(bounds)


def whole(shape: Sequence[int]) -> Box:
    """The box that is all of a tensor."""
    return tuple((0, size) for size in shape)


def extent(box: Box) -> Shape:
    """The shape of a box."""
    return tuple(stop - start for start, stop in box)


def common(one: Box, other: Box) -> Box | None:
    """What two boxes have in common; None where that is nothing."""
    both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other))
    return both if all(start < stop for start, stop in both) else None


def within(box: Box, outer: Box) -> tuple[slice, ...]:
    """`box` as an index into an array that holds `outer`."""
    return tuple(slice(start - first, stop - first) for (start, stop), (first, _) in zip(box, outer))


def relative(box: Box, outer: Box) -> Box:
    """`box` counted from where `outer` begins."""
    return tuple((start - first, stop - first) for (start, stop), (first, _) in zip(box, outer))


def bands(shape: Sequence[int], limit: int) -> Iterator[Box]:
    """Boxes of at most `limit` numbers (but at least one) that make up a tensor, in the order of its bytes."""
    if 0 in shape:
        return
    axis, inner = len(shape), 1
    while axis and inner * shape[axis - 1] <= limit:
        axis -= 1
        inner *= shape[axis]
    if not axis:
        yield whole(shape)
        return
    rows = max(1, limit // inner)
    rest = whole(shape[axis:])
    for leading in _indices(shape[: axis - 1]):
        for start in range(0, shape[axis - 1], rows):
            yield (*leading, (start, min(start + rows, shape[axis - 1])), *rest)


def _indices(shape: Sequence[int]) -> Iterator[Box]:
    """Every single place of a grid, the last axis fastest."""
    if not shape:
        yield ()
        return
    for rest in _indices(shape[:-1]):
        for index in range(shape[-1]):
            yield (*rest, (index, index + 1))


def _axes(layout: TensorLayout, ndim: int) -> tuple[Shape, ...]:
    """The axes of the grid that split each axis of the tensor."""
    axes = layout.tensor_map
    if len(axes) == ndim:
        return axes
    # A list of several entries says one axis each or, of a tensor with a single axis, all that split it.
    if ndim == 1 and axes and all(axes):
        return (tuple(axis for split in axes for axis in split),)
    raise Uncut(f"it has {ndim} axes, its strategy says {len(axes)}")


def _coordinates(layout: TensorLayout, rank: int) -> list[int]:
    """Where a rank stands on the grid, by axis counted from the right."""
    place = []
    for size in reversed(layout.dev_matrix):
        rank, index = divmod(rank, size)
        place.append(index)
    return place


def _replica(layout: TensorLayout, place: Sequence[int]) -> int:
    """The place of a rank, from 0, among those that hold the same slice, in ascending order."""
    used = {axis for axes in layout.tensor_map for axis in axes}
    index = 0
    for axis in reversed(range(len(place))):
        if axis not in used:
            index = index * layout.dev_matrix[-1 - axis] + place[axis]
    return index
