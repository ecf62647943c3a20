"""The pipeline through the real commands, once, on a one-layer model; fixtures of the slow tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAIRS, HELD_OUT, SEQ_LEN = 40, 8, 129
CONFIG = ["--config", str(ROOT / "model_configs" / "dpo" / "default.yaml")]
TRAINING = ["train.global_batch_pairs=4", "data.shuffle=false", "optimizer.learning_rate=1.0e-3"]


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str


class Shell:
    """Runs the project's commands in a folder of its own, as a user does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder.with_name(f"{folder.name}-home")
        self.home.mkdir(exist_ok=True)

    def __call__(self, *words: object, workers: int = 0, timeout: int = 600) -> Ended:
        """Run a script of ours; `workers` above 0 through the launcher."""
        script, *rest = map(str, words)
        if workers:
            line = " ".join([str(ROOT / script), *rest])
            argv = ["bash", str(ROOT / "scripts" / "msrun_launcher.sh"), line, str(workers)]
        else:
            argv = [sys.executable, str(ROOT / script), *rest]
        path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        done = subprocess.run(
            argv,
            cwd=self.folder,
            env={"PATH": path, "HOME": str(self.home)},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def must(self, *words: object, workers: int = 0, timeout: int = 600) -> Ended:
        """The same, and it must succeed and say nothing on stderr."""
        ended = self(*words, workers=workers, timeout=timeout)
        assert ended.code == 0, ended.err or ended.out
        assert ended.err == ""
        return ended

    def preprocess(self, name: str, *more: object, workers: int = 0) -> Ended:
        """data/`name`.jsonl -> `name`.mindrecord, with reference log-probs of the model."""
        files = ["--src", f"data/{name}.jsonl", "--dataset_type", "cvalues"]
        files += [] if "--dst" in more else ["--dst", f"{name}.mindrecord"]
        model = ["--tokenizer", "model", "--load_checkpoint", "model", "--seq_len", SEQ_LEN]
        return self("tools/dpo_preprocess.py", *CONFIG, *files, *model, *more, workers=workers)

    def train(self, output: str, *more: object, workers: int = 0) -> Ended:
        """Train on train.mindrecord into `output`."""
        given = ["--train_dataset", "train.mindrecord", "--load_checkpoint", "model", f"output_dir={output}"]
        return self.must("run_dpo.py", *CONFIG, *given, *TRAINING, *more, workers=workers)


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder with a model, data, and train.mindrecord and held_out.mindrecord made by one process."""
    shell = Shell(tmp_path_factory.mktemp("pipeline"))
    sizes = ["--hidden_size", 64, "--layers", 1]
    shell.must("tools/make_tiny_model.py", "--family", "qwen2", "--output_path", "model", *sizes)
    counts = ["--pairs", PAIRS, "--held_out", HELD_OUT, "--corpus", 10]
    shell.must("tools/make_preference_data.py", "--output_path", "data", *counts)
    for name in ("train", "held_out"):
        ended = shell.preprocess(name)
        assert ended.code == 0, ended.err
    return shell


@pytest.fixture(scope="session")
def trained(shell: Shell) -> Callable[..., Path]:
    """Runs of 8 steps by (workers, overrides), each trained once; the output folder."""
    made: dict[tuple[object, ...], Path] = {}

    def run(*more: str, workers: int = 0) -> Path:
        key = (workers, *more)
        if key not in made:
            name = f"run{len(made)}"
            shell.train(name, "train.steps=8", *more, workers=workers)
            made[key] = shell.folder / name
        return made[key]

    return run
