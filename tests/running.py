"""A command that a test starts and watches; whatever happens, nothing of its session outlives the test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def running(argv: Sequence[str], **given: Any) -> Iterator[subprocess.Popen[Any]]:
    """The started command; killed at the end, so that a test that waited in vain fails instead of waiting on."""
    process = subprocess.Popen(argv, start_new_session=True, **given)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
