"""Groups of tensors that MindFormers' parallel_core keeps as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Callable

from mindrlhf.models.hf_weights import Group, Join
from mindrlhf.parallel.slices import Box, Shape, extent

if TYPE_CHECKING:
    import numpy as np

    from mindrlhf.models.hf_weights import Read

    # (number of a MindFormers tensor, its rows) -> of each the number of its Hugging Face tensor, and its row there.
    Places = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]

BLOCK = 1 << 20  # bytes of rows that are moved at once


def moved_rows(shapes: tuple[Shape, ...], places: Places) -> Join:
    """Tensors of these shapes, every row of which is a row of some other tensor.

    Of each other tensor is read what lies between the first and the last row that the box needs.
    """
    import numpy as np

    def cut(number: int, box: Box, read: Read) -> np.ndarray:
        (start, stop), *columns = box
        sources, rows = places(number, np.arange(start, stop))
        parts = []
        for source in np.unique(sources):
            here = np.flatnonzero(sources == source)
            there = rows[here]
            first, last = int(there.min()), int(there.max()) + 1
            parts.append((here, there - first, read(int(source), ((first, last), *columns))))
        if len(parts) == 1 and np.array_equal(parts[0][1], np.arange(stop - start)):
            return parts[0][2]
        moved = np.empty(extent(box), np.result_type(*{part.dtype for _, _, part in parts}))
        # Rows picked by number are copied twice; in blocks the copy between stays small.
        count = max(1, BLOCK * len(moved) // max(1, moved.nbytes))
        for here, there, part in parts:
            for k in range(0, len(here), count):
                moved[here[k : k + count]] = part[there[k : k + count]]
        return moved

    return Join(shapes, cut)


def fused_qkv(
    theirs: str,
    ours: str,
    kind: str,
    heads: int,
    groups: int,
    head_dim: int,
    hidden: int,
    order: Sequence[int] | None = None,
) -> Group:
    """q, k, v <-> linear_qkv: of each key-value head its queries' rows, its key's and its value's.

    kind: weight or bias. order: of the rows of every query and key head, new to old; None as they are.
    """
    import numpy as np

    widths = (heads // groups * head_dim, head_dim, head_dim)
    end = (hidden,) if kind == "weight" else ()
    names = tuple(f"{theirs}.{name}_proj.{kind}" for name in "qkv")
    ends = np.cumsum(widths)
    new_to_old = np.arange(head_dim) if order is None else np.asarray(order)
    old_to_new = None if order is None else np.argsort(new_to_old)

    def within_heads(array: np.ndarray) -> np.ndarray:
        if old_to_new is None:
            return array
        return array.reshape(-1, head_dim, *end)[:, old_to_new].reshape(array.shape)

    def places(_: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        group, within = np.divmod(rows, ends[-1])
        part = np.searchsorted(ends, within, side="right")
        head, place = np.divmod(group * np.take(widths, part) + within - np.take([0, *ends], part), head_dim)
        return part, head * head_dim + np.where(part < 2, new_to_old[place], place)

    def split(fused: np.ndarray) -> tuple[np.ndarray, ...]:
        parts = np.split(fused.reshape(groups, -1, *end), ends[:2], axis=1)
        query, key, value = (part.reshape(-1, *end) for part in parts)
        return within_heads(query), within_heads(key), value

    joined = moved_rows(((groups * int(ends[-1]), *end),), places)
    return Group({name: (groups * width, *end) for name, width in zip(names, widths)}, (ours,), joined, split)


def half_split_order(head_dim: int, rotary_dim: int) -> list[int]:
    """Places of a head's entries, new to old, so that the pairs that rotate together lie half a head apart.

    Of a head whose first `rotary_dim` entries rotate, neighbour with neighbour. What does not rotate fills the rest of
    both halves.
    """
    still = list(range(rotary_dim, head_dim))
    middle = len(still) // 2
    return [*range(0, rotary_dim, 2), *still[:middle], *range(1, rotary_dim, 2), *still[middle:]]


def chained(first: Group, second: Group) -> Group:
    """first's Hugging Face tensors <-> second's MindFormers tensors, where what first makes is what second takes."""

    def cut(number: int, box: Box, read: Read) -> np.ndarray:
        return second.cut(number, box, lambda middle, part: first.cut(middle, part, read))

    return Group(
        first.hf,
        second.ms,
        Join(tuple(second.ms_shapes.values()), cut),
        lambda *arrays: first.split(*second.split(*arrays)),
    )


def stacked(hf: str, *rows: int, hidden: int | None = None, ours: tuple[str, ...] = ()) -> Group:
    """One tensor of rows upon rows (of `hidden` entries, or one each) <-> the parts, called by numbers or `ours`."""
    import numpy as np

    end = () if hidden is None else (hidden,)
    starts = [sum(rows[:part]) for part in range(len(rows))]

    def places(number: int, within: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros_like(within), starts[number] + within

    return Group(
        {hf: (sum(rows), *end)},
        ours or tuple(str(part) for part in range(len(rows))),
        moved_rows(tuple((count, *end) for count in rows), places),
        lambda *arrays: (np.concatenate(arrays),),
    )


def fused_gate_up(gate: str, up: str, ours: str, inner: int, hidden: int) -> Group:
    """gate, up <-> linear_fc1: their rows by turns."""

    def places(_: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return rows % 2, rows // 2

    def split(fused: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        by_turns = fused.reshape(inner, 2, hidden)
        return by_turns[:, 0], by_turns[:, 1]

    joined = moved_rows(((2 * inner, hidden),), places)
    return Group({gate: (inner, hidden), up: (inner, hidden)}, (f"{ours}.linear_fc1.weight",), joined, split)


def stacked_experts(places: Sequence[str], parts: Sequence[str], ours: str, rows: int, columns: int) -> Group:
    """(rows, columns) of each part of each expert <-> experts upon experts, each its parts side by side, transposed."""
    import numpy as np

    names = [f"{place}.{part}.weight" for place in places for part in parts]
    shape = len(places) * columns, len(parts) * rows

    def cut(_: int, box: Box, read: Read) -> np.ndarray:
        down, across = box
        pieces = [
            (top, left, read(expert * len(parts) + part, (across_part, down_expert)))
            for expert, top, down_expert in _shares(down, columns)
            for part, left, across_part in _shares(across, rows)
        ]
        fused = np.empty(extent(box), np.result_type(*{piece.dtype for _, _, piece in pieces}))
        for top, left, piece in pieces:
            fused[top : top + piece.shape[1], left : left + piece.shape[0]] = piece.T
        return fused

    def split(fused: np.ndarray) -> list[np.ndarray]:
        by_part = fused.reshape(len(places), columns, len(parts), rows)
        return [by_part[expert, :, part].T for expert in range(len(places)) for part in range(len(parts))]

    return Group(dict.fromkeys(names, (rows, columns)), (ours,), Join((shape,), cut), split)


def _shares(bounds: tuple[int, int], size: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """What (start, stop) takes of parts of `size` one behind the other: the part's number, where its share begins
    counted from start, and the share counted from where the part begins."""
    start, stop = bounds
    for number in range(start // size, -(-stop // size)):
        first, last = max(start, number * size), min(stop, (number + 1) * size)
        yield number, first - start, (first - number * size, last - number * size)
