from __future__ import annotations

import os
import signal

import pytest

from mindrlhf.checkpoint.crew import work
from mindrlhf.runtime.errors import CorruptCheckpoint, UserError


def halved(number: int) -> int:
    """A task, with all that may become of one."""
    if number == 13:
        raise CorruptCheckpoint("13 is damaged")
    if number == 14:
        raise FileNotFoundError(2, "No such file", "fourteen")
    if number == 15:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 16:
        raise ZeroDivisionError("a fault of ours")
    return number // 2


@pytest.mark.parametrize("processes", [1, 3])
def test_every_task_is_done_once(processes: int) -> None:
    assert sorted(work(halved, range(0, 12, 2), processes)) == list(range(6))
    assert list(work(halved, [], processes)) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_users_mistake_comes_back_as_one(processes: int) -> None:
    with pytest.raises(CorruptCheckpoint, match=r"^13 is damaged$"):
        list(work(halved, [2, 13, 4], processes))
    with pytest.raises(FileNotFoundError, match="fourteen"):
        list(work(halved, [2, 14, 4], processes))


def test_a_process_that_ends_is_said() -> None:
    with pytest.raises(UserError, match="was ended by SIGKILL; run again with --processes 1"):
        list(work(halved, [2, 15, 4], 2))
    with pytest.raises(RuntimeError, match="has failed; see above"):
        list(work(halved, [2, 16, 4], 2))
