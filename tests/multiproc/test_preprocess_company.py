"""Preprocessing by several processes, killed and continued, through the real commands."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline_shell import ROOT, Shell
from running import running

pytestmark = pytest.mark.slow

ROWS, SEQ_LEN, SAVE_INTERVAL = 600, 60, 8
ENDINGS = ("", ".db", ".json", ".rejected.jsonl")
RANK = re.compile(r"part-(\d+)-")


def row(number: int) -> str:
    if number % 100 == 7:
        return '{"prompt": "cut off'
    answer = f"{number} " * (40 if number % 50 == 3 else 1 + number % 5)
    return json.dumps({"prompt": f"Question {number}?", "pos_resp": f"Yes, {answer}", "neg_resp": f"No, {answer}"})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> Path:
    """in.jsonl and the folder of a tokenizer."""
    folder = tmp_path_factory.mktemp("company")
    (folder / "in.jsonl").write_text("\n".join(map(row, range(ROWS))) + "\n", encoding="utf-8")
    (folder / "model").symlink_to(tiny_folder("qwen2"))
    return folder


def words(place: Path, *more: object) -> list[str]:
    """The command line of all runs here; each writes x.mindrecord in its own folder."""
    given: list[object] = ["--src", place / "in.jsonl", "--dst", "x.mindrecord", "--dataset_type", "cvalues"]
    given += ["--tokenizer", place / "model", "--seq_len", SEQ_LEN, "--save_interval", SAVE_INTERVAL]
    return ["tools/dpo_preprocess.py", *map(str, [*given, *more, "rlhf.reference=none"])]


def shell_in(folder: Path) -> Shell:
    folder.mkdir(parents=True)
    return Shell(folder)


def merged(shell: Shell) -> dict[str, bytes]:
    """The bytes of the merged record and of what lies beside it."""
    shell.must("tools/dpo_preprocess.py", "--merge", "True", "--src", "x.parts", "--dst", "x.mindrecord")
    return {ending: (shell.folder / f"x.mindrecord{ending}").read_bytes() for ending in ENDINGS}


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> dict[str, bytes]:
    """What one process makes of it that is left alone."""
    shell = shell_in(place / "undisturbed")
    shell.must(*words(place))
    return merged(shell)


def processes_of(session: int) -> list[int]:
    """Running processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, _, _, belongs = entry.joinpath("stat").read_text().rpartition(") ")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if entry.name.isdigit() and int(belongs) == session and state != "Z":
            found.append(int(entry.name))
    return found


def left_over(session: int, seconds: float = 15.0) -> list[int]:
    """Processes of a session that do not end by themselves."""
    end = time.monotonic() + seconds
    while (left := processes_of(session)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


class Started:
    """A command in a session of its own, so that all that it starts can be found."""

    def __init__(self, shell: Shell, *given: object) -> None:
        script, *rest = map(str, given)
        argv = [sys.executable, str(ROOT / script), *rest]
        self.parts = shell.folder / "x.parts"
        self.process = subprocess.Popen(
            argv,
            cwd=shell.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def when(self, condition: Callable[[], bool]) -> None:
        """Wait for it; the command may not end before."""
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.002)

    def complete(self) -> int:
        """Parts that are complete."""
        return len(list(self.parts.glob("part-*.mindrecord.json")))

    def in_work(self) -> bool:
        """Whether a part is just being written."""
        return any(self.parts.glob(".part-*"))

    def tokenizing(self) -> int:
        """Processes that it has started for it."""
        return sum(_is_helper(pid) for pid in processes_of(self.process.pid))

    def end(self, number: signal.Signals, group: bool = False) -> tuple[int, str]:
        """Send a signal; the exit code, and what it said on stderr. Nothing of it is left."""
        (os.killpg if group else os.kill)(self.process.pid, number)
        _, err = self.process.communicate(timeout=60)
        assert left_over(self.process.pid) == []
        return self.process.returncode, err


def _is_helper(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


MOMENTS: dict[str, Callable[[Started], bool]] = {
    "processes start": lambda run: run.tokenizing() == 2,
    "first part in work": lambda run: run.in_work(),
    "one part complete": lambda run: run.complete() >= 1,
    "sixth part in work": lambda run: run.complete() >= 5 and run.in_work(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_to_the_same_bytes(
    place: Path, tmp_path: Path, undisturbed: dict[str, bytes], moment: str
) -> None:
    shell = shell_in(tmp_path / "work")
    run = Started(shell, *words(place, "--workers", 2))
    run.when(lambda: MOMENTS[moment](run))
    assert run.end(signal.SIGKILL)[0] == -signal.SIGKILL
    done = run.complete()
    ended = shell.must(*words(place, "--workers", 2))
    kept = re.search(rf"continuing: (\d+) of {ROWS} rows are done and kept, in (\d+) parts", ended.out)
    assert bool(kept) == (done > 0)
    assert kept is None or int(kept[2]) == done
    assert merged(shell) == undisturbed
    assert [path.name for path in shell.folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("moment", ["processes start", "one part complete"])
def test_ctrl_c_ends_all_processes_with_one_line(place: Path, tmp_path: Path, moment: str) -> None:
    run = Started(shell_in(tmp_path / "work"), *words(place, "--workers", 2))
    run.when(lambda: MOMENTS[moment](run))
    assert run.end(signal.SIGINT, group=True) == (130, "error: interrupted\n")


def test_two_workers_of_which_one_is_killed_go_on_to_the_same_bytes(
    place: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    shell = shell_in(tmp_path / "work")
    line = " ".join(words(place, "--workers", 2))
    argv = ["bash", str(ROOT / "scripts" / "msrun_launcher.sh"), f"{ROOT}/{line}", "2"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with running(
        argv,
        cwd=shell.folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as launcher:
        parts = shell.folder / "x.parts"
        while len(list(parts.glob("part-*.json"))) < 3:
            assert launcher.poll() is None
            time.sleep(0.01)
        os.kill(_worker(shell.folder, rank=1), signal.SIGKILL)
        assert launcher.wait(timeout=120) != 0
    assert left_over(launcher.pid) == []
    done = {path.name.removesuffix(".json") for path in parts.glob("part-*.json")}
    before = {name: (parts / name).stat().st_mtime_ns for name in done}
    ended = shell.must(*words(place, "--workers", 2), workers=2)
    assert f"of {ROWS} rows are done and kept, in {len(done)} parts" in ended.out
    assert {name: (parts / name).stat().st_mtime_ns for name in done} == before
    assert {int(name[1]) for path in parts.iterdir() if (name := RANK.match(path.name))} == {0, 1}
    assert merged(shell) == undisturbed


def _worker(folder: Path, rank: int) -> int:
    """The process in `folder` that is a launched worker; it is told its rank by a variable."""
    for entry in Path("/proc").iterdir():
        try:
            here = entry.joinpath("cwd").resolve() == folder.resolve()
            told = entry.joinpath("environ").read_bytes().split(b"\0") if here else []
            words = entry.joinpath("cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        script = words[1:2] and words[1].endswith(b"dpo_preprocess.py")
        if script and f"RANK_ID={rank}".encode() in told and b"MS_ROLE=MS_WORKER" in told:
            return int(entry.name)
    raise AssertionError(f"no worker of rank {rank} runs")


def test_another_number_of_workers_is_refused_and_another_seq_len_replaces(place: Path, tmp_path: Path) -> None:
    shell = shell_in(tmp_path / "work")
    shell.must(*words(place), workers=2)
    before = {path.name: path.stat().st_mtime_ns for path in (shell.folder / "x.parts").iterdir()}
    ended = shell(*words(place))
    assert (ended.code, ended.err) == (
        2,
        "error: x.parts was begun by 2 worker(s), and now there are 1; "
        "run with 2, or remove the folder to start anew\n",
    )
    assert {path.name: path.stat().st_mtime_ns for path in (shell.folder / "x.parts").iterdir()} == before
    other = [str(SEQ_LEN + 1) if word == str(SEQ_LEN) else word for word in words(place)]
    ended = shell.must(*other)
    assert f"x.parts holds parts of another run (its seq_len is {SEQ_LEN}, not {SEQ_LEN + 1})" in ended.out
    assert "continuing" not in ended.out


def test_one_file_is_written_alike_by_any_number_of_processes(
    place: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """Without --save_interval there are no parts, and nothing to merge."""
    for processes in (1, 2):
        shell = shell_in(tmp_path / str(processes))
        given = words(place, "--workers", processes)
        cut = given.index("--save_interval")
        ended = shell.must(*given[:cut], *given[cut + 2 :])
        assert f"{ROWS} rows in = 582 written + 12 overlong + 6 rejected (broken json 6)" in ended.out
        for ending in ENDINGS:
            assert (shell.folder / f"x.mindrecord{ending}").read_bytes() == undisturbed[ending], ending
