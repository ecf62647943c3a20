"""Processes that help this one: started in peace, asked over a pipe each, ended with it."""

from __future__ import annotations

import multiprocessing
import signal
from contextlib import ExitStack, closing, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Callable

from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.interrupts import undisturbed

Serve = Callable[[Connection, Any], None]


class Helper:
    """A process that runs serve(its end of the pipe, job); what it has been sent comes back in order.

    It has a pipe of its own, and not a queue that it shares: of that it would hold both ends, and never learn that its
    parent was killed.
    """

    def __init__(
        self, context: multiprocessing.context.SpawnContext, serve: Serve, job: Any, doing: str, fewer: str
    ) -> None:
        self.doing, self.fewer = doing, fewer
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, job), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, task: Any) -> None:
        """Ask for a task; this does not wait until it is done."""
        with suppress(ConnectionError):  # `receive` says what became of it
            self.pipe.send(task)

    def receive(self) -> Any:
        """What became of the first task that was not received yet.

        Raises what the process sent as an error of the user or of the system, `UserError` where it was ended.
        """
        try:
            done = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode or 0
            if code >= 0:
                raise RuntimeError(f"a process that {self.doing} has failed; see above") from None
            advice = f"again with {self.fewer}: mostly it is memory that was wanting" if code == -9 else "again"
            name = signal.Signals(-code).name
            raise UserError(f"a process that {self.doing} was ended by {name}; run {advice}") from None
        if isinstance(done, (UserError, OSError)):
            raise done
        return done

    def close(self) -> None:
        """End it, whatever it does."""
        self.pipe.close()
        self.process.kill()
        self.process.join()


def start_helpers(serve: Serve, job: Any, count: int, stack: ExitStack, *, doing: str, fewer: str) -> list[Helper]:
    """`count` helpers that end with `stack`. job: is pickled for each.

    doing, fewer: for messages, as in "tokenizes" and "fewer --workers".
    """
    # Not forked: MindSpore's threads would be missing, with the locks that they hold.
    context = multiprocessing.get_context("spawn")
    # Started with the first process otherwise, this would unblock the signal.
    resource_tracker.ensure_running()
    # Ctrl-C is the parent's to answer, and that only when they have been told what to do.
    with undisturbed():
        return [stack.enter_context(closing(Helper(context, serve, job, doing, fewer))) for _ in range(count)]
