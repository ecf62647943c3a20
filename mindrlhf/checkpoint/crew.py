"""Tasks over several processes, results as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from multiprocessing import connection
from typing import Callable, TypeVar

from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.helpers import start_helpers
from mindrlhf.runtime.logging import quiet

Task = TypeVar("Task")
Result = TypeVar("Result")


def work(job: Callable[[Task], Result], tasks: Sequence[Task], processes: int) -> Iterator[Result]:
    """The result of every task, in any order; with one process they are done here. job: is pickled for the others.

    Raises the `UserError` or `OSError` of a task, `UserError` where a process is ended from outside.
    """
    if processes <= 1 or len(tasks) <= 1:
        yield from map(job, tasks)
        return
    waiting = list(reversed(tasks))
    with ExitStack() as stack:
        count = min(processes, len(tasks))
        helpers = start_helpers(_serve, job, count, stack, doing="moves tensors", fewer="--processes 1")
        busy = {helper.pipe: helper for helper in helpers}
        for helper in helpers:
            helper.send(waiting.pop())
        while busy:
            for pipe in connection.wait(list(busy)):
                helper = busy[pipe]  # type: ignore[index]
                result = helper.receive()
                if waiting:
                    helper.send(waiting.pop())
                else:
                    del busy[helper.pipe]
                yield result


def _serve(pipe: connection.Connection, job: Callable[[Task], Result]) -> None:
    """What a helper does until its parent is gone."""
    quiet()
    with suppress(EOFError, ConnectionError):
        while True:
            task = pipe.recv()
            try:
                pipe.send(job(task))
            except (UserError, OSError) as error:
                if isinstance(error, ConnectionError):
                    raise
                pipe.send(error)
