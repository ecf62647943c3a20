"""How fast tools/dpo_preprocess.py tokenizes pairs, how much memory it takes, and whether its bytes stay the same.

    python benchmarks/preprocess_pairs.py --pairs 200000 --tokenizer HF_DIR [--rounds 3] [--launched] [--mib 100 1000]

Rows are synthetic (mindrlhf/data/synthetic.py), without a reference model. --workers 1 and 2 take turns, so that what
else runs on the machine meets both. With --launched, two launched workers and a merge are compared too. --mib: input
files of these sizes in MiB instead, one run each with --workers 2, to see that memory does not grow with the input.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mindrlhf.data.synthetic import preference_rows

ROOT = Path(__file__).resolve().parents[1]
FILES = ("", ".db", ".json")
DISTINCT = 20_000  # rows that are made; a larger input repeats their answers under numbered questions


class Run(NamedTuple):
    """Of a command and all processes that it has started: seconds, those of the cores, the most memory held at once."""

    seconds: float
    core_seconds: float
    peak_mib: float


def write_rows(path: Path, pairs: int | None, size: int | None) -> int:
    """`pairs` rows, or rows of `size` bytes together; their number."""
    rows = preference_rows(min(pairs or DISTINCT, DISTINCT), 0, "train")
    made = [json.dumps(row, ensure_ascii=False) for row in rows]
    count = written = 0
    with path.open("wb") as file:
        while (count < pairs) if pairs else (written < (size or 0)):
            line = made[count % len(made)].replace('"prompt": "', f'"prompt": "{count}: ', 1).encode() + b"\n"
            written += file.write(line)
            count += 1
    return count


def memory_of(session: int) -> float:
    """MiB that the processes of a session hold, what they share counted once."""
    total = 0
    for entry in Path("/proc").iterdir():
        try:
            if int(entry.joinpath("stat").read_text().rpartition(") ")[2].split()[3]) == session:
                lines = entry.joinpath("smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, ValueError, IndexError, StopIteration):
            continue
    return total / 1024


def run(argv: Sequence[str], folder: Path) -> Run:
    """Run a command in `folder`; it must succeed."""
    peak = 0.0
    before = core_seconds()
    done = threading.Event()
    begin = time.perf_counter()
    with subprocess.Popen(argv, cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True) as process:

        def watch() -> None:
            nonlocal peak
            while not done.wait(1.0):
                peak = max(peak, memory_of(process.pid))

        watching = threading.Thread(target=watch)
        watching.start()
        code = process.wait()
        done.set()
        watching.join()
    if code:
        raise SystemExit(f"{' '.join(argv)} ended with {code}")
    return Run(time.perf_counter() - begin, core_seconds() - before, peak)


def core_seconds() -> float:
    """What all processes have taken that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def told(made: Run) -> str:
    """A run in words."""
    return f"{made.seconds:.1f} s ({made.core_seconds:.1f} s of cores), {made.peak_mib:.0f} MiB of memory"


def preprocess(folder: Path, rows: Path, tokenizer: str, *more: str) -> list[str]:
    """The command line; it writes x.mindrecord in `folder`."""
    folder.mkdir(exist_ok=True)
    given = ["--src", str(rows), "--dst", "x.mindrecord", "--dataset_type", "cvalues", "--tokenizer", tokenizer]
    return [str(ROOT / "tools/dpo_preprocess.py"), *given, "--seq_len", "513", *more, "rlhf.reference=none"]


def digest(folder: Path) -> str:
    """Of the record, its index and its sidecar."""
    total = hashlib.sha256()
    for ending in FILES:
        total.update((folder / f"x.mindrecord{ending}").read_bytes())
    return total.hexdigest()


def launched(folder: Path, rows: Path, tokenizer: str) -> None:
    """Two launched workers, then a merge."""
    words = " ".join(preprocess(folder, rows, tokenizer))
    both = run(["bash", str(ROOT / "scripts/msrun_launcher.sh"), words, "2"], folder)
    script = str(ROOT / "tools/dpo_preprocess.py")
    joined = run([sys.executable, script, "--merge", "True", "--src", "x.parts", "--dst", "x.mindrecord"], folder)
    print(f"2 launched workers: {both.seconds:.1f} s; merge: {told(joined)}")


def compare(folder: Path, rows: Path, count: int, arguments: argparse.Namespace) -> None:
    """--workers 1 against 2, in turn."""
    runs: dict[int, list[Run]] = {1: [], 2: []}
    digests = set()
    for _ in range(arguments.rounds):
        for workers, made in runs.items():
            place = folder / f"w{workers}"
            argv = [sys.executable, *preprocess(place, rows, arguments.tokenizer, "--workers", str(workers))]
            made.append(run(argv, place))
            digests.add(digest(place))
            last = made[-1]
            print(f"--workers {workers}: {told(last)}, {count / last.seconds:.0f} rows/s", flush=True)
    ratio = median(one.seconds / two.seconds for one, two in zip(runs[1], runs[2]))
    print(f"rows/s of --workers 2 to 1: {ratio:.2f}")
    if arguments.launched:
        launched(folder / "launched", rows, arguments.tokenizer)
        digests.add(digest(folder / "launched"))
    print(f"bytes equal: {len(digests) == 1}")


def main() -> None:
    """Make the input, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--launched", action="store_true")
    parser.add_argument("--mib", type=int, nargs="+")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = folder / "in.jsonl"
        if not arguments.mib:
            count = write_rows(rows, arguments.pairs, None)
            print(f"{count} pairs, {rows.stat().st_size / 2**20:.0f} MiB")
            compare(folder, rows, count, arguments)
        for size in arguments.mib or ():
            count = write_rows(rows, None, size << 20)
            argv = [sys.executable, *preprocess(folder / "x", rows, arguments.tokenizer, "--workers", "2")]
            made = run(argv, folder / "x")
            print(f"{size} MiB, {count} pairs: {told(made)}", flush=True)


if __name__ == "__main__":
    main()
