"""What becomes of a value on its way to another process."""

from __future__ import annotations

import multiprocessing
import threading
from typing import Any


def sent(value: Any) -> Any:
    """The value as another process is handed it."""
    ours, theirs = multiprocessing.Pipe()
    # From a thread of its own: a pipe holds only so much until somebody reads.
    thread = threading.Thread(target=ours.send, args=(value,))
    thread.start()
    received = theirs.recv()
    thread.join()
    return received
