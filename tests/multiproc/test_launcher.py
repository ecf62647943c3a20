"""scripts/msrun_launcher.sh as users run it: output, exit codes, signals, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from running import running

from mindrlhf.parallel.cluster import free_port

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "scripts" / "msrun_launcher.sh"
FOREIGN = ("GLOG_v", "LOG_MF_PATH", "MSRUN_LOG_DIR", "OMP_NUM_THREADS", "MS_WORKER_NUM", "RANK_ID")
JOIN = """
import os, signal, sys, time
from mindrlhf.runtime.logging import quiet, log, warn
quiet()
import numpy as np
from mindrlhf.runtime.device import setup
device = setup("CPU")
open(f"../pid_{device.rank}", "w").write(str(os.getpid()))
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The user's folder; what is temporary goes beside it."""
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "tmp").mkdir()
    return work


def start(
    folder: Path, code: str, workers: int = 2, args: str = "", more: Sequence[object] = (), **variables: str
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """The launcher on a script of that code, `more` behind the number of workers."""
    script = folder.parent / "script.py"
    script.write_text(code, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    environment["PATH"] = os.path.dirname(sys.executable) + os.pathsep + environment["PATH"]
    environment.update(variables, TMPDIR=str(folder.parent / "tmp"))
    return running(
        ["bash", str(LAUNCHER), f"../script.py {args}", str(workers), *map(str, more)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch(folder: Path, code: str, workers: int = 2, args: str = "", **variables: str) -> tuple[int, str, str]:
    with start(folder, code, workers, args, **variables) as process:
        out, err = process.communicate(timeout=300)
    assert list(folder.iterdir()) == []
    return process.returncode, out, err


def without_log_folder(err: str) -> str:
    """`err` without its last line, which names a folder that is there."""
    *lines, last = err.splitlines(keepends=True)
    assert last.startswith("logs: ")
    assert (Path(last[len("logs: ") :].strip()) / "worker_0.log").exists()
    return "".join(lines)


def alive(folder: Path) -> list[int]:
    """Process ids of workers that still run; one just killed has a moment to vanish."""
    pids = [int(path.read_text()) for path in folder.parent.glob("pid_*")]
    assert pids
    end = time.monotonic() + 10
    while (left := [pid for pid in pids if runs(pid)]) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_one_worker_is_the_script_itself(folder: Path) -> None:
    code = "import os, sys\nprint(sys.argv[1:], 'MS_ROLE' in os.environ)\nsys.exit(5)"
    assert launch(folder, code, workers=1, args="'a b' c") == (5, "['a b', 'c'] False\n", "")


def test_workers_join_and_rank_0_alone_is_seen(folder: Path) -> None:
    code = JOIN + (
        'log(f"{device.all_sum(np.arange(3) + device.rank).tolist()} {device.all_sum(np.array(2**40 + 1))}")\n'
        'print(f"rank {device.rank} of {device.world}", os.getcwd() == os.path.realpath(sys.argv[1]))\n'
        'warn("once")\n'
    )
    code_, out, err = launch(folder, code, args=f"'{folder}'")
    assert (code_, out, err) == (0, f"[1, 3, 5] {2**41 + 2}\nrank 0 of 2 True\n", "warning: once\n")
    assert list((folder.parent / "tmp").iterdir()) == []


def test_a_script_without_cluster_runs_on_every_worker(folder: Path) -> None:
    code = "import os\nopen('../ran_' + os.environ['MS_ROLE'] + os.environ['RANK_ID'], 'w').close()\nprint('done')"
    assert launch(folder, code) == (0, "done\n", "")
    assert {path.name for path in folder.parent.glob("ran_MS_WORKER*")} == {"ran_MS_WORKER0", "ran_MS_WORKER1"}


def test_threads_are_shared_out_unless_set(folder: Path) -> None:
    code = "import os\nprint(os.environ['OMP_NUM_THREADS'])"
    assert launch(folder, code)[1] == f"{max(1, len(os.sched_getaffinity(0)) // 2)}\n"
    assert launch(folder, code, OMP_NUM_THREADS="7")[1] == "7\n"


def test_the_failing_worker_speaks_and_its_exit_code_is_passed_on(folder: Path) -> None:
    code = JOIN + (
        'log("begin")\n'
        "if device.rank == 0:\n"
        "    open('../begun', 'w').close()\n"
        "else:\n"
        "    while not os.path.exists('../begun'):\n"
        "        time.sleep(0.1)\n"
        '    print("error: x.jsonl line 3 is broken", file=sys.stderr)\n'
        "    sys.exit(3)\n"
        "device.barrier()\n"
    )
    returned, out, err = launch(folder, code)
    assert (returned, out) == (3, "begin\n")
    assert without_log_folder(err) == "rank 1: error: x.jsonl line 3 is broken\n"
    assert alive(folder) == []


def test_a_user_error_that_all_workers_meet_is_said_once(folder: Path) -> None:
    code = (
        "import sys\nfrom mindrlhf.runtime.errors import UserError, run\n"
        "def main(argv):\n    raise UserError('model.x: no such key')\n"
        "sys.exit(run(main))"
    )
    returned, out, err = launch(folder, code)
    assert (returned, out) == (2, "")
    assert without_log_folder(err) == "error: model.x: no such key\n"


def test_a_crash_shows_its_traceback(folder: Path) -> None:
    returned, _, err = launch(folder, JOIN + "if device.rank == 1:\n    raise ValueError('boom')\ndevice.barrier()")
    assert returned == 1
    assert err.startswith("rank 1: Traceback (most recent call last)")
    assert without_log_folder(err).endswith("ValueError: boom\n")


def test_a_killed_worker_ends_the_job(folder: Path) -> None:
    code = JOIN + "device.barrier()\nprint('ready', flush=True)\ntime.sleep(300)"
    port = free_port()
    with start(folder, code, 3, MASTER_PORT=str(port)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(int((folder.parent / "pid_1").read_text()), signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert without_log_folder(err) == "rank 1: killed by signal 9\n"
    assert alive(folder) == []
    socket.create_server(("127.0.0.1", port)).close()
    # And the next job can have it.
    assert launch(folder, JOIN + "device.barrier()\nprint('again')", MASTER_PORT=str(port)) == (0, "again\n", "")


def two_nodes(folder: Path, code: str) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of the launchers of two nodes, which are both this machine, of a worker each."""
    port, logs = free_port(), folder.parent / "logs"
    with contextlib.ExitStack() as stack:
        nodes = [(1, "127.0.0.1", port, rank, logs, "True", 60) for rank in range(2)]
        processes = [stack.enter_context(start(folder, code, more=node)) for node in nodes]
        said = [process.communicate(timeout=120) for process in processes]
        return [(process.returncode, *words) for process, words in zip(processes, said)]


def test_nodes_are_started_by_nine_words(folder: Path) -> None:
    code = JOIN + "print(device.rank, device.world, device.all_sum(np.arange(3) + device.rank).tolist())"
    assert two_nodes(folder, code) == [(0, "0 2 [1, 3, 5]\n", ""), (0, "1 2 [1, 3, 5]\n", "")]


def test_a_killed_worker_ends_the_other_node_too(folder: Path) -> None:
    code = JOIN + ("device.barrier()\nif device.rank == 1:\n    os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(300)")
    other, killed = two_nodes(folder, code)
    logs = f"logs: {folder.parent / 'logs'}\n"
    assert killed == (137, "", "rank 1: killed by signal 9\n" + logs)
    why = "killed by signal 15, as the cluster does when a worker of another node is gone; the launcher there names it"
    assert other == (143, "", f"rank 0: {why}\n" + logs)
    assert alive(folder) == []


def test_a_job_can_be_left_in_the_background(folder: Path) -> None:
    code = JOIN + "device.barrier()\nprint(f'ready', flush=True)\ntime.sleep(300)"
    logs = folder.parent / "logs"
    with start(folder, code, more=(free_port(), logs, "False", 60)) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    log = logs / "launcher.log"
    before, pid = out.rstrip("\n").split(" kill ")
    try:
        assert before == f"runs in the background; its output: {log}; to stop it:"
        wait_for(lambda: log.read_text() == "ready\n")
    finally:
        os.kill(int(pid), signal.SIGTERM)
    wait_for(lambda: log.read_text() == "ready\nstopped by SIGTERM\n")
    wait_for(lambda: not runs(int(pid)))
    assert alive(folder) == []


def wait_for(met: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not met():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_workers(number: signal.Signals, folder: Path) -> None:
    code = JOIN + "device.barrier()\nprint('ready', flush=True)\ntime.sleep(300)"
    with start(folder, code) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=60) == ("", f"stopped by {number.name}\n")
    assert process.returncode == 128 + number
    assert alive(folder) == []
    assert list((folder.parent / "tmp").iterdir()) == []


def test_ctrl_c_lets_a_worker_tidy_up(folder: Path) -> None:
    code = JOIN + (
        "device.barrier()\nprint('ready', flush=True)\n"
        "try:\n    time.sleep(300)\nfinally:\n    open(f'../tidied_{device.rank}', 'w').close()"
    )
    with start(folder, code) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert {path.name for path in folder.parent.glob("tidied_*")} == {"tidied_0", "tidied_1"}


def test_logs_are_kept_where_the_user_wants_them(folder: Path) -> None:
    logs = folder.parent / "logs"
    assert launch(folder, "print('hello')", MSRUN_LOG_DIR=str(logs)) == (0, "hello\n", "")
    assert (logs / "worker_1.log").read_text() == "hello\n"


def test_plain_msrun_works(folder: Path) -> None:
    code = JOIN + "print(device.rank, device.all_sum(np.ones(2)).tolist())"
    script = folder.parent / "script.py"
    script.write_text(code, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    environment["PATH"] = os.path.dirname(sys.executable) + os.pathsep + environment["PATH"]
    command = [sys.executable, "-m", "mindspore.parallel.cluster.run", "--worker_num=2", "--local_worker_num=2"]
    command += [f"--master_port={free_port()}", f"--log_dir={folder.parent}/logs", "--join=True", str(script)]
    environment["PYTHONPATH"] = str(ROOT)
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True, timeout=300)
    assert list(folder.iterdir()) == []
    for rank in range(2):
        assert (folder.parent / f"logs/worker_{rank}.log").read_text() == f"{rank} [2.0, 2.0]\n"
