"""Groups of tensors that MindFormers' parallel_core keeps as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mindrlhf.models.hf_weights import Group

if TYPE_CHECKING:
    import numpy as np


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
    new_to_old = None if order is None else np.asarray(order)
    old_to_new = None if new_to_old is None else np.argsort(new_to_old)

    def within_heads(array: np.ndarray, places: np.ndarray | None) -> np.ndarray:
        if places is None:
            return array
        return array.reshape(-1, head_dim, *end)[:, places].reshape(array.shape)

    def join(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray]:
        parts = (within_heads(query, new_to_old), within_heads(key, new_to_old), value)
        fused = np.concatenate([part.reshape(groups, -1, *end) for part in parts], axis=1)
        return (fused.reshape(-1, *end),)

    def split(fused: np.ndarray) -> tuple[np.ndarray, ...]:
        parts = np.split(fused.reshape(groups, -1, *end), np.cumsum(widths)[:2], axis=1)
        query, key, value = (part.reshape(-1, *end) for part in parts)
        return within_heads(query, old_to_new), within_heads(key, old_to_new), value

    return Group({name: (groups * width, *end) for name, width in zip(names, widths)}, (ours,), join, split)


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
    return Group(
        first.hf,
        second.ms,
        lambda *arrays: second.join(*first.join(*arrays)),
        lambda *arrays: first.split(*second.split(*arrays)),
    )


def stacked(hf: str, *rows: int, hidden: int | None = None) -> Group:
    """One tensor of rows upon rows (of `hidden` entries, or one each) <-> the parts."""
    import numpy as np

    end = () if hidden is None else (hidden,)
    parts = tuple(str(part) for part in range(len(rows)))
    return Group(
        {hf: (sum(rows), *end)},
        parts,
        lambda whole: np.split(whole, np.cumsum(rows)[:-1]),
        lambda *arrays: (np.concatenate(arrays),),
    )


def fused_gate_up(gate: str, up: str, ours: str, inner: int, hidden: int) -> Group:
    """gate, up <-> linear_fc1: their rows by turns."""
    import numpy as np

    def join(gates: np.ndarray, ups: np.ndarray) -> tuple[np.ndarray]:
        return (np.stack([gates, ups], axis=1).reshape(2 * inner, hidden),)

    def split(fused: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        by_turns = fused.reshape(inner, 2, hidden)
        return by_turns[:, 0], by_turns[:, 1]

    return Group({gate: (inner, hidden), up: (inner, hidden)}, (f"{ours}.linear_fc1.weight",), join, split)


def stacked_experts(places: Sequence[str], parts: Sequence[str], ours: str, rows: int, columns: int) -> Group:
    """(rows, columns) of each part of each expert <-> experts upon experts, each its parts side by side, transposed."""
    import numpy as np

    names = [f"{place}.{part}.weight" for place in places for part in parts]

    def join(*arrays: np.ndarray) -> tuple[np.ndarray]:
        fused = np.empty((len(places), columns, len(parts), rows), arrays[0].dtype)
        for number, array in enumerate(arrays):
            expert, part = divmod(number, len(parts))
            fused[expert, :, part] = array.T
        return (fused.reshape(len(places) * columns, len(parts) * rows),)

    def split(fused: np.ndarray) -> list[np.ndarray]:
        by_part = fused.reshape(len(places), columns, len(parts), rows)
        return [by_part[expert, :, part].T for expert in range(len(places)) for part in range(len(parts))]

    return Group(dict.fromkeys(names, (rows, columns)), (ours,), join, split)
