"""Runs a command on several workers: shows rank 0, alone and live, and tells a failure in the failing worker's words.

    bash scripts/msrun_launcher.sh "SCRIPT ARGS" [WORKERS]        and with 6 or 9 words, see parallel/cluster.py

One worker is the script itself, without a cluster. More are started by msrun, and each by this file once more
(`--as-worker`), which keeps the worker's stderr apart and writes down its exit code: msrun itself knows only 0 and 1.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mindrlhf.parallel.cluster import HELP, Cluster, Launch, is_free, joined, parse
from mindrlhf.runtime import logging
from mindrlhf.runtime.errors import UserError, run
from mindrlhf.runtime.files import write_text

POLL_SECONDS = 0.1
GONE_SECONDS = 5.0
# After the first failure the others may still end by themselves, and rank 0 say the same thing in its own voice.
GRACE_SECONDS = 4.0
# msrun kills all workers within a second of the first that fails, so that one stays until the launcher has seen it.
HOLD_SECONDS = 10.0
# MindSpore's log lines: "[INFO] DISTRIBUTED(812,7f30,python):2026-..." and "[WARNING] ME(812:1405,MainProcess):...".
CHATTER = re.compile(rb"\[(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\] [A-Z_]+\(\d+[,:]")
MAYBE_CHATTER = re.compile(rb"\[(?:[A-Z]|$)")


class Follower:
    """Copies to a stream what a growing file gains, live, without MindSpore's log lines."""

    def __init__(self, path: Path, stream: BinaryIO, filtered: bool) -> None:
        self.path, self.stream, self.filtered = path, stream, filtered
        self.position = 0
        self.rest = b""

    def show(self, last: bool = False) -> None:
        """Copy what is new. A line without its end is shown too, being progress, unless it may become a log line."""
        if self.path.exists():
            with open(self.path, "rb") as file:
                file.seek(self.position)
                self.rest += file.read()
                self.position = file.tell()
        *lines, rest = re.split(rb"(?<=[\r\n])", self.rest)
        if last or not MAYBE_CHATTER.match(rest):
            lines, rest = [*lines, rest], b""
        self.rest = rest
        self.stream.write(b"".join(line for line in lines if not (self.filtered and CHATTER.match(line))))
        self.stream.flush()


class Stopped(Exception):
    """A signal asked us to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise Stopped(number)

    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # A command of ours that started us has blocked SIGINT for itself.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)
    # What the caller ignores (nohup, a background job) stays ignored.
    before = {number: signal.signal(number, stop) for number in caught if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Job:
    """One run of `words` on the workers of a cluster. `folder` holds their logs, process ids and exit codes.

    timeout: seconds in which the workers of all nodes must have met, None as msrun has it.
    """

    def __init__(self, words: Sequence[str], cluster: Cluster, folder: Path, timeout: int | None = None) -> None:
        self.words, self.cluster, self.folder, self.timeout = words, cluster, folder, timeout
        # Nodes may share a folder.
        self.own = folder / f"node_{cluster.node_rank}"

    def run(self) -> int:
        """Start the workers, show rank 0, wait for the end, leave no process behind; returns the exit code."""
        filtered = os.environ[logging.GLOG] == logging.GLOG_LEVEL
        first = self.cluster.local[0]
        out = Follower(self._file(first, "log"), sys.stdout.buffer, filtered)
        err = Follower(self._file(first, "err"), sys.stderr.buffer, filtered)
        self._clear()
        with _signals_raise():
            msrun = self._start()
            try:
                while not self._over(msrun):
                    time.sleep(POLL_SECONDS)
                    out.show()
                    err.show()
            except Stopped as stopped:
                self._forward(stopped.signal)
                raise
            finally:
                self._kill(msrun)
        out.show(last=True)
        err.show(last=True)
        return self._verdict(msrun.returncode)

    def _file(self, rank: int, kind: str) -> Path:
        return self.folder / f"worker_{rank}.{kind}"

    def _clear(self) -> None:
        for rank in self.cluster.local:
            for kind in ("log", "err", "pid", "exit"):
                self._file(rank, kind).unlink(missing_ok=True)
        self.own.with_suffix(".stopped").unlink(missing_ok=True)
        command = {"words": self.words, "nodes": self.cluster.nodes}
        write_text(self.own.with_suffix(".command"), json.dumps(command))

    def _start(self) -> subprocess.Popen[bytes]:
        cluster = self.cluster
        command = [sys.executable, "-m", "mindspore.parallel.cluster.run"]
        command += [f"--worker_num={cluster.workers}", f"--local_worker_num={len(cluster.local)}"]
        command += [f"--master_addr={cluster.address}", f"--master_port={cluster.port}"]
        # No worker has the number that is to be tailed: we show rank 0 ourselves.
        command += [f"--log_dir={self.folder}", "--join=True", f"--tail_worker_log={cluster.workers}"]
        if cluster.nodes > 1:
            command.append(f"--node_rank={cluster.node_rank}")
        if self.timeout is not None:
            command.append(f"--cluster_time_out={self.timeout}")
        command += [__file__, "--as-worker", str(self.own)]
        environment = dict(os.environ)
        environment["PATH"] = os.path.dirname(sys.executable) + os.pathsep + environment["PATH"]
        environment["PYTHONUNBUFFERED"] = "1"
        # Seconds between a worker's attempts to leave the cluster, by default 3 to 5.
        environment.setdefault("MS_RETRY_INTERVAL_LOWER", "1")
        environment.setdefault("MS_RETRY_INTERVAL_UPPER", "1")
        with open(self.own.with_suffix(".log"), "wb") as log:
            # Its own session, so that Ctrl-C reaches the launcher alone and its scheduler can be ended with it.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def _exits(self) -> list[tuple[int, int, int]]:
        """(time, rank, exit code) of the workers that have ended, in the order in which they did."""
        files = [(rank, self._file(rank, "exit")) for rank in self.cluster.local]
        return sorted((file.stat().st_mtime_ns, rank, int(file.read_text())) for rank, file in files if file.exists())

    def _over(self, msrun: subprocess.Popen[bytes]) -> bool:
        if msrun.poll() is not None:
            return True
        exits = self._exits()
        failures = [moment for moment, _, code in exits if code]
        if len(exits) == len(self.cluster.local):
            # msrun's scheduler looks for the workers' end every 5 seconds only; other nodes may still need it.
            return bool(failures) or self.cluster.nodes == 1
        return bool(failures) and time.time_ns() - failures[0] > GRACE_SECONDS * 1e9

    def _pids(self) -> list[int]:
        files = [self._file(rank, "pid") for rank in self.cluster.local]
        return [int(file.read_text()) for file in files if file.exists()]

    def _forward(self, number: int) -> None:
        """Pass a signal on, so that the workers can tidy up, and give them a moment for it."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        end = time.monotonic() + GRACE_SECONDS
        while len(self._exits()) < len(self._pids()) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)

    def _kill(self, msrun: subprocess.Popen[bytes]) -> None:
        # A worker that has just been started writes its process id first and looks for this file then.
        write_text(self.own.with_suffix(".stopped"), "")
        for group in [msrun.pid, *self._pids()]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        msrun.wait()
        # What was killed needs a moment to let go of the port, which the next job may be given.
        end = time.monotonic() + GONE_SECONDS
        while self.cluster.nodes == 1 and not is_free(self.cluster.port) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)

    def _verdict(self, msrun: int) -> int:
        """The exit code of the worker that failed first, whose last words are said unless rank 0 has said them.

        `msrun` is msrun's own exit code, for the case that it ended without any of them.
        """
        exits = self._exits()
        failures = [(rank, code) for _, rank, code in exits if code]
        if not failures and len(exits) == len(self.cluster.local):
            return 0
        if not failures:
            why = last_words(self.own.with_suffix(".log").read_bytes(), msrun).splitlines()[-1]
            print(f"error: msrun ended before its workers: {why}", file=sys.stderr)
            return 1
        rank, code = failures[0]
        words = last_words(self._file(rank, "err").read_bytes(), code)
        if code == -signal.SIGTERM and self.cluster.nodes > 1:
            words += ", as the cluster does when a worker of another node is gone; the launcher there names it"
        seen = self._file(self.cluster.local[0], "err")
        if not seen.exists() or words.splitlines()[-1] not in seen.read_text(encoding="utf-8", errors="replace"):
            print(f"rank {rank}: {words}", file=sys.stderr)
        return code if code > 0 else 128 - code


def last_words(stderr: bytes, code: int) -> str:
    """Why a worker ended: its "error: ..." line, else its traceback, else its last line.

    `code` is subprocess's: the negative signal number if it was killed, of which it could say nothing.
    """
    if code < 0:
        return f"killed by signal {-code}"
    lines = [line.decode("utf-8", "replace") for line in stderr.splitlines() if line and not CHATTER.match(line)]
    for line in reversed(lines):
        if line.startswith("error: "):
            return line
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if starts:
        return "\n".join(lines[starts[-1] :])
    return lines[-1] if lines else f"ended with exit code {code}"


def run_worker(own: Path) -> int:
    """Run the job's command as the worker that msrun says we are, its stderr in a file; write down its exit code.

    own: the path, without suffix, of what this node's launcher wrote.
    """
    given = json.loads(own.with_suffix(".command").read_text(encoding="utf-8"))
    command = [sys.executable, *given["words"]]
    if os.environ["MS_ROLE"] == "MS_SCHED":
        if given["nodes"] > 1 and not _is_first_scheduler():
            return 0
        os.execv(sys.executable, command)  # noqa: S606  (no shell is wanted: words, not text)
    folder, name = own.parent, f"worker_{os.environ['RANK_ID']}"
    write_text(folder / f"{name}.pid", str(os.getpid()))
    if own.with_suffix(".stopped").exists():
        return 1
    with open(folder / f"{name}.err", "wb") as stderr:
        child = subprocess.Popen(command, stderr=stderr)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: child.send_signal(number))
    code = child.wait()
    write_text(folder / f"{name}.exit", str(code))
    if code:
        time.sleep(HOLD_SECONDS)
    return code if code >= 0 else 128 - code


def _is_first_scheduler() -> bool:
    """Whether no other node of this job has its scheduler on this machine: msrun starts one for each that is there.

    The name that says so is held until this process ends, however it does.
    """
    holder = socket.socket(socket.AF_UNIX)
    try:
        holder.bind(f"\0mindrlhf-scheduler-{os.environ['MS_SCHED_PORT']}")
    except OSError:
        return False
    os.set_inheritable(holder.detach(), True)
    return True


def _require_mindspore() -> None:
    if importlib.util.find_spec("mindspore") is None:
        raise UserError(f"{sys.executable} has no mindspore; activate the environment that it is installed in")


def main(argv: Sequence[str]) -> int:
    """Run the script on the workers; the exit code is that of the worker that failed first, or 0."""
    if argv[:1] == ["--as-worker"]:
        return run_worker(Path(argv[1]))
    if argv[:1] in (["--help"], ["-h"]):
        print(HELP)
        return 0
    launch = parse(argv)
    _require_mindspore()
    if launch.background:
        return _leave_in_background(launch, argv)
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // len(launch.cluster.local))))
    if launch.cluster.workers == 1:
        os.execv(sys.executable, [sys.executable, *launch.words])  # noqa: S606  (no shell is wanted)
    logging.quiet()
    folder = Path(launch.log_folder or tempfile.mkdtemp(prefix="mindrlhf-log-")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        code = Job(launch.words, launch.cluster, folder, launch.timeout).run()
    except Stopped as stopped:
        code, end = 128 + stopped.signal, f"stopped by {stopped.signal.name}"
    else:
        end = f"logs: {folder}" if code else ""
    if end:
        print(end, file=sys.stderr)
    if not launch.log_folder and not end.startswith("logs"):
        shutil.rmtree(folder)
    return code


def _leave_in_background(launch: Launch, argv: Sequence[str]) -> int:
    """The same once more, waiting for the end, in a session of its own."""
    folder = Path(launch.log_folder or ".").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "launcher.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, *joined(argv)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    print(f"runs in the background; its output: {log.name}; to stop it: kill {process.pid}")
    return 0


if __name__ == "__main__":
    # With its words, for it answers signals itself.
    sys.exit(run(main, sys.argv[1:]))
