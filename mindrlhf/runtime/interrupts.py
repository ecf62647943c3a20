"""Ctrl-C, kept away from MindSpore's own handler."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def heed_interrupts() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt in the main thread, which must be the caller, and ends its waits.

    MindSpore puts a handler for SIGINT in place while a graph runs; it writes a log line, which no handler may, and now
    and then the graph never ends. So SIGINT is blocked in all threads (call this before any library starts one) and
    awaited in one, which hands it to the main thread as SIGUSR1. Where the caller's caller ignores SIGINT (nohup, a
    job in the background) it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        return
    signal.signal(signal.SIGUSR1, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=_hand_over, name="interrupts", daemon=True).start()


def _hand_over() -> None:
    while True:
        signal.sigwait({signal.SIGINT})
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within it Ctrl-C waits, and what this thread starts has it blocked from its first moment."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
