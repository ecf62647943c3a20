"""Tensors that parallel_core keeps as one: worked out on small numbers, and there and back."""

from __future__ import annotations

import numpy as np

from mindrlhf.models.fused_weights import (
    chained,
    fused_gate_up,
    fused_qkv,
    half_split_order,
    stacked,
    stacked_experts,
)
from mindrlhf.models.hf_weights import Group, faults, to_hf, to_ms


def numbered(group: Group) -> list[np.ndarray]:
    """Arrays of the group's shapes, every entry another number."""
    arrays, start = [], 0
    for shape in group.hf.values():
        size = int(np.prod(shape))
        arrays.append(np.arange(start, start + size, dtype=np.float32).reshape(shape))
        start += size
    return arrays


def there_and_back(group: Group) -> None:
    arrays = dict(zip(group.hf, numbered(group)))
    joined = to_ms([group], arrays)
    assert set(joined) == set(group.ms)
    back = to_hf([group], joined)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].shape == array.shape
        assert np.array_equal(back[name], array), name


def test_each_key_value_head_has_its_queries_then_its_key_and_value() -> None:
    """4 heads of 2 in 2 groups, hidden 1: group 0 has heads 0 and 1."""
    group = fused_qkv("a", "linear_qkv.weight", "weight", heads=4, groups=2, head_dim=2, hidden=1)
    query = np.array([[0], [1], [2], [3], [4], [5], [6], [7]])
    key, value = np.array([[10], [11], [12], [13]]), np.array([[20], [21], [22], [23]])
    (fused,) = group.join(query, key, value)
    assert fused[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 20, 21, 4, 5, 6, 7, 12, 13, 22, 23]
    assert list(group.hf) == ["a.q_proj.weight", "a.k_proj.weight", "a.v_proj.weight"]
    there_and_back(group)


def test_biases_go_the_same_way() -> None:
    group = fused_qkv("a", "linear_qkv.bias", "bias", heads=4, groups=2, head_dim=2, hidden=1)
    (fused,) = group.join(np.arange(8), np.arange(10, 14), np.arange(20, 24))
    assert fused.tolist() == [0, 1, 2, 3, 10, 11, 20, 21, 4, 5, 6, 7, 12, 13, 22, 23]
    there_and_back(group)


def test_neighbours_that_rotate_together_come_to_lie_half_a_head_apart() -> None:
    """Of 8 entries the first 4 rotate as (0,1), (2,3); 4 to 7 stay, two in each half."""
    order = half_split_order(8, 4)
    assert order == [0, 2, 4, 5, 1, 3, 6, 7]
    assert half_split_order(4, 4) == [0, 2, 1, 3]
    group = fused_qkv("a", "w", "bias", heads=1, groups=1, head_dim=8, hidden=1, order=order)
    (fused,) = group.join(np.arange(8), np.arange(10, 18), np.arange(20, 28))
    assert fused[:8].tolist() == order
    assert fused[8:16].tolist() == [place + 10 for place in order]
    assert fused[16:].tolist() == list(range(20, 28))
    there_and_back(group)


def test_gate_and_up_take_turns() -> None:
    group = fused_gate_up("gate", "up", "mlp", inner=3, hidden=1)
    (fused,) = group.join(np.array([[0], [1], [2]]), np.array([[10], [11], [12]]))
    assert fused[:, 0].tolist() == [0, 10, 1, 11, 2, 12]
    there_and_back(group)


def test_rows_upon_rows_are_parted_and_go_on() -> None:
    whole = chained(stacked("gate_up", 2, 2, hidden=3), fused_gate_up("gate", "up", "mlp", 2, 3))
    assert whole.hf == {"gate_up": (4, 3)}
    (fused,) = whole.join(np.arange(12).reshape(4, 3))
    assert fused[:, 0].tolist() == [0, 6, 3, 9]
    there_and_back(whole)
    there_and_back(stacked("bias", 4, 2, 2))


def test_experts_lie_upon_each_other_and_their_parts_side_by_side() -> None:
    """Two experts, gate and up of 1 row and 2 columns: expert e takes rows 2e and 2e+1."""
    group = stacked_experts(["e0", "e1"], ("gate", "up"), "weight1", rows=1, columns=2)
    arrays = [np.array([[0, 1]]), np.array([[10, 11]]), np.array([[20, 21]]), np.array([[30, 31]])]
    (fused,) = group.join(*arrays)
    assert fused.tolist() == [[0, 10], [1, 11], [20, 30], [21, 31]]
    assert list(group.hf) == ["e0.gate.weight", "e0.up.weight", "e1.gate.weight", "e1.up.weight"]
    there_and_back(group)
    there_and_back(stacked_experts(["e0", "e1"], ("down",), "weight2", rows=3, columns=2))


def test_what_is_wrong_is_said_in_hugging_faces_names() -> None:
    groups = [fused_gate_up("gate", "up", "mlp", 3, 1), stacked("bias", 2, 2)]
    assert faults(groups, {"gate": (3, 1), "up": (3, 1), "bias": (4,)}) == []
    found = faults(
        groups, {"gate": (3, 1), "up": (1, 3), "extra": (1,), "inv_freq": (1,)}, lambda name: name == "inv_freq"
    )
    assert found == [
        "1 of 3 tensors missing: bias",
        "1 of another shape: up is (1, 3), the model's (3, 1)",
        "1 not the model's: extra",
    ]
