"""Five mistakes of docs/mistakes.md, and Ctrl-C, through the real commands."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mistakes import TABLE
from pipeline_shell import CONFIG, Shell
from running import running
from workshop import Workshop, table

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("section", "mistake"),
    [
        ("Preference files", "an empty file"),
        ("Records", "a flipped bit"),
        ("Flags", "a misspelt flag"),
        ("Yaml", "an unknown key"),
        ("Checkpoints", "weights of another shape"),
    ],
)
def test_a_mistake_of_the_document_in_a_real_command(section: str, mistake: str, shop: Workshop) -> None:
    script, *words = TABLE[section][mistake](shop)
    argv = [sys.executable, str(ROOT / script), *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    assert done.stderr == f"error: {table(section)[mistake]}\n"
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_says_so(shell: Shell, number: signal.Signals) -> None:
    output = f"interrupted{number}"
    given = ["--train_dataset", "train.mindrecord", "--load_checkpoint", "model", "train.epochs=100000"]
    argv = [sys.executable, str(ROOT / "run_dpo.py"), *CONFIG, *given, f"output_dir={output}"]
    metrics = shell.folder / output / "metrics.jsonl"
    with running(argv, cwd=shell.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not metrics.exists():
            time.sleep(0.2)
        process.send_signal(number)
        assert process.wait(timeout=120) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b"error: interrupted\n"
