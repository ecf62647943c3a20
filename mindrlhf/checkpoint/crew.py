"""Tasks over several processes, results as they come."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from multiprocessing import connection, resource_tracker
from typing import Callable, Generic, TypeVar

from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.interrupts import undisturbed
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
        # Not forked: MindSpore's threads would be missing, with the locks that they hold.
        context = multiprocessing.get_context("spawn")
        # Started with the first process otherwise, this would unblock the signal.
        resource_tracker.ensure_running()
        with undisturbed():
            helpers = [stack.enter_context(closing(_Helper(context, job))) for _ in range(min(processes, len(tasks)))]
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


class _Helper(Generic[Task, Result]):
    """A process, with a pipe of its own: of a queue that is shared it would never learn that its parent was killed."""

    def __init__(self, context: multiprocessing.context.SpawnContext, job: Callable[[Task], Result]) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, job), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, task: Task) -> None:
        """Ask for a task."""
        with suppress(ConnectionError):  # `receive` says what became of it
            self.pipe.send(task)

    def receive(self) -> Result:
        """What became of the task."""
        try:
            done = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode or 0
            if code >= 0:
                raise RuntimeError("a process that moves tensors has failed; see above") from None
            advice = "again with --processes 1: mostly it is memory that was wanting" if code == -9 else "again"
            name = signal.Signals(-code).name
            raise UserError(f"a process that moves tensors was ended by {name}; run {advice}") from None
        if isinstance(done, (UserError, OSError)):
            raise done
        return done

    def close(self) -> None:
        """End it, whatever it does."""
        self.pipe.close()
        self.process.kill()
        self.process.join()


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
