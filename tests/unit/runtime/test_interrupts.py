"""Ctrl-C ends a wait of the main thread, though no thread of the process takes SIGINT itself."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from running import running

WAITING = """
import signal, sys, threading, time
{before}
from mindrlhf.runtime.errors import run

def main(words):
    threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read(1)
    return 7

raise SystemExit(run(main))
"""


@pytest.mark.parametrize(("before", "code"), [("", 130), ("signal.signal(signal.SIGINT, signal.SIG_IGN)", 7)])
def test_only_what_the_caller_ignores_is_ignored(before: str, code: int) -> None:
    argv = [sys.executable, "-c", WAITING.replace("{before}", before)]
    pipe = subprocess.PIPE
    with running(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        if code == 7:
            process.stdin.write("x")
            process.stdin.flush()
        assert process.wait(timeout=30) == code
        assert process.stderr.read() == ("" if code == 7 else "error: interrupted\n")
