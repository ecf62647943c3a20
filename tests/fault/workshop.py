"""A folder with one small file of every kind, to be spoilt, and the commands run in it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, Callable

import numpy as np

from mindrlhf.checkpoint.store import find_weights, read_weights, save_weights
from mindrlhf.commands import make_tiny, preprocess, train, transform
from mindrlhf.data.records import PairRecords, write_records
from mindrlhf.parallel.strategy import strategy_path, write_strategy
from mindrlhf.runtime.errors import run

DOCUMENT = Path(__file__).parents[2] / "docs" / "mistakes.md"
COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "run_dpo.py": train.main,
    "tools/dpo_preprocess.py": preprocess.main,
    "tools/transform_checkpoint.py": transform.main,
    "tools/make_tiny_model.py": make_tiny.main,
}
ROWS = 12
ENDINGS = ("", ".db", ".json")  # of the files of a MindRecord
USUAL = {
    "--src": "in.jsonl",
    "--dst": "train.mindrecord",
    "--dataset_type": "cvalues",
    "--tokenizer": "model",
    "--seq_len": "65",
}
MERGED = {"--src": "train.parts", "--dst": "train.mindrecord"}
JOINED = {
    "--src_checkpoint": "trained/checkpoint_network",
    "--src_strategy": "trained/strategy",
    "--dst_checkpoint": "merged",
}


def table(section: str) -> dict[str, str]:
    """Mistake -> what the user sees, of one section of the document."""
    (body,) = re.findall(rf"(?ms)^## {section}\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(encoding="utf-8"))
    return dict(re.findall(r"(?m)^\| (.*?) \| `(.*)` \|$", body))


def row(number: int) -> bytes:
    """A good line of a cvalues file, without its end."""
    fields = {"prompt": f"Question {number}?", "pos_resp": f"Yes, {number}.", "neg_resp": f"No, {number}!"}
    return json.dumps(fields).encode()


@dataclass(frozen=True)
class Workshop:
    """The folder that is the current one."""

    folder: Path

    def write(self, name: str, content: bytes | str) -> None:
        """A file anew; what it was hard-linked to stays as it is."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def rows(self, *lines: bytes, end: bytes = b"\n", name: str = "in.jsonl") -> None:
        """A preference file of these lines."""
        self.write(name, b"".join(line + end for line in lines))

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        return (self.folder / name).read_bytes()

    def flip(self, name: str) -> None:
        """Flip one bit in the middle of a file."""
        content = bytearray(self.read(name))
        content[len(content) // 2] ^= 1
        self.write(name, bytes(content))

    def flip_last(self, name: str) -> None:
        """Flip one bit of the last byte of a file."""
        content = bytearray(self.read(name))
        content[-1] ^= 1
        self.write(name, bytes(content))

    def cut(self, name: str) -> None:
        """Keep the first half of a file."""
        self.write(name, self.read(name)[: len(self.read(name)) // 2])

    def change(self, name: str, **fields: Any) -> None:
        """Set fields of a JSON file; None takes one out."""
        found = {**json.loads(self.read(name)), **fields}
        self.write(name, json.dumps({key: value for key, value in found.items() if value is not None}))

    def remove(self, *names: str) -> None:
        """Remove files or folders."""
        for name in names:
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def move(self, name: str, to: str) -> None:
        """Rename a file, or all three files of a MindRecord."""
        for ending in ENDINGS if name.endswith(".mindrecord") else ("",):
            os.replace(self.folder / f"{name}{ending}", self.folder / f"{to}{ending}")

    def files(self) -> dict[str, tuple[int, ...]]:
        """Every file by name: which one it is, and when and to what size it was written last."""
        found = {str(path.relative_to(self.folder)): path.stat() for path in self.folder.rglob("*") if path.is_file()}
        return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def fill(folder: Path, model: Path) -> None:
    """What all mistakes start from, in the current folder `folder`: all of it good.

    in.jsonl, model (the folder given), train.mindrecord (with reference log-probs that are made up), plain.mindrecord
    (without), train.parts of 3 parts, other.parts of another run, trained (the output of a run on 2 ranks), own (the
    model as we save it, with a checksum).
    """
    shop = Workshop(folder)
    shutil.copytree(model, folder / "model")
    shop.rows(*map(row, range(ROWS)))
    must(preprocessing("--dst", "plain.mindrecord"))
    plain = PairRecords("plain.mindrecord", log=lambda message: None)
    names = ("ref_chosen_logps", "ref_rejected_logps", "ref_chosen_shared_logps", "ref_rejected_shared_logps")
    pairs = [replace(pair, **dict.fromkeys(names, -1.5)) for pair in plain]
    provenance = {
        **plain.provenance,
        "reference": "record",
        "reference_fingerprint": "0" * 64,
        "reference_config_hash": "0" * 64,
        "dtype": "float32",
    }
    write_records("train.mindrecord", pairs, provenance=provenance, span=(0, ROWS), total=ROWS, overlong=0, rejected={})
    must(preprocessing("--dst", "train.mindrecord", "--save_interval", "1"))
    must(preprocessing("--dst", "other.mindrecord", "--save_interval", "1", "--seq_len", "64"))
    _outputs_of_two_ranks(folder)
    shutil.copytree(folder / "model", folder / "own")
    save_weights(read_weights(find_weights("model")), folder / "own" / "model.safetensors")


def _outputs_of_two_ranks(folder: Path) -> None:
    for rank in (0, 1):
        weights = {"a.weight": np.ones((2, 3), np.float32)}
        save_weights(weights, folder / f"trained/checkpoint_network/rank_{rank}/checkpoint_0.safetensors")
        path = strategy_path(folder / "trained/strategy", rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_strategy(path, {"a.weight": (2, 3)}, 2)


def preprocessing(*words: str, without: str = "") -> list[str]:
    """in.jsonl to train.mindrecord without a reference; `words` win over the flags used for it."""
    return ["tools/dpo_preprocess.py", *_flags(USUAL, words, without), *words, "rlhf.reference=none"]


def merging(*words: str) -> list[str]:
    """The parts in train.parts to train.mindrecord."""
    return ["tools/dpo_preprocess.py", "--merge", "True", *_flags(MERGED, words), *words]


def training(*words: str) -> list[str]:
    """A run on train.mindrecord from model."""
    return ["run_dpo.py", *_flags({"--train_dataset": "train.mindrecord", "--load_checkpoint": "model"}, words), *words]


def asking(*words: str) -> list[str]:
    """model is asked these questions."""
    return ["run_dpo.py", "--run_mode", "predict", "--load_checkpoint", "model", "--predict_data", *words]


def joining(*words: str) -> list[str]:
    """The two ranks of trained into one checkpoint."""
    return ["tools/transform_checkpoint.py", *_flags(JOINED, words), *words]


def ended(argv: list[str]) -> tuple[int, str]:
    """Run a command; its exit code, and the sentence of its error or the last line it has printed."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(COMMANDS[argv[0]], argv[1:])
    errors = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    assert len(errors) == (code != 0), err.getvalue()
    assert "Traceback" not in out.getvalue() + err.getvalue()
    said = errors[0].removeprefix("error: ") if errors else out.getvalue().splitlines()[-1]
    return code, said.replace(f"{Path.cwd()}/", "")


def _flags(usual: dict[str, str], words: Sequence[str], without: str = "") -> list[str]:
    return [part for pair in usual.items() if pair[0] not in (*words, without) for part in pair]


def must(argv: list[str]) -> None:
    """Run a command that must succeed."""
    assert run(COMMANDS[argv[0]], argv[1:]) == 0, argv
