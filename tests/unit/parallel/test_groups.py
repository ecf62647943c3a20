"""Names of groups: those that MindSpore gave them in compiled graphs."""

from __future__ import annotations

from mindrlhf.parallel.groups import group_name, known_groups


def test_names_are_mindspores() -> None:
    assert group_name([0, 1, 2, 3]) == "4-6301172352641561019"
    assert group_name([4, 0]) == group_name([0, 4]) == "2-16453000547691086251"


def test_every_group_of_a_grid_is_known() -> None:
    groups = set(known_groups(8).values())
    assert {(0, 1), (0, 4), (0, 2), (1, 5), (0, 1, 2, 3), (0, 2, 4, 6), (1, 3, 5, 7), tuple(range(8))} <= groups
    assert all(known_groups(8)[group_name(ranks)] == ranks for ranks in groups)
    assert (0, 3) not in groups
