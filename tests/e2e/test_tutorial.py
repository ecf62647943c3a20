"""A tutorial of examples/ as a reader runs it, on the small model that it makes itself."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindrlhf.data.records import PairRecords
from mindrlhf.runtime.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path for path in (ROOT / "examples" / "dpo").iterdir() if path.is_dir())


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}/usr/local/bin{os.pathsep}/usr/bin{os.pathsep}/bin"
    return subprocess.run(
        ["bash", *map(str, words)],
        cwd=cwd,
        env={"PATH": path, "HOME": str(cwd)},
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )


@pytest.mark.slow
def test_the_tutorial_of_qwen2_runs_as_it_stands(tmp_path: Path) -> None:
    ended = run(ROOT / "examples/dpo/qwen2/tutorial.sh", "--tiny", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr or ended.stdout
    place = tmp_path / "tutorial_output" / "qwen2"
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["tutorial_output"]
    assert len(PairRecords(place / "qwen2.mindrecord")) == 64
    rows = read_metrics(place / "qwen2_out" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[-1]["loss"] < 0.6
    (answer,) = [json.loads(line) for line in (place / "qwen2_answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert answer["answer_ids"]
    exported = {path.name for path in (place / "Qwen2-7B-DPO").iterdir()}
    assert exported >= {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"}
    # It says so where a folder is not its own, and replaces its own.
    (tmp_path / "mine").mkdir()
    refused = run(ROOT / "examples/dpo/qwen2/tutorial.sh", "--tiny", "mine", cwd=tmp_path)
    assert (refused.returncode, list((tmp_path / "mine").iterdir())) == (2, [])
    assert refused.stderr == "error: mine exists and is not a former tutorial's; name another folder\n"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_readmes_show_what_the_steps_run(folder: Path, tmp_path: Path) -> None:
    """Word for word every command of every step; `python` and `bash` here only say what they were called with."""
    for name in ("python", "bash"):
        (tmp_path / name).write_text(f'#!/bin/bash\necho {name} "$@"\n', encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    steps = sorted(folder.glob("[1-9]_*.sh"))
    assert [step.name[0] for step in steps] == [str(number) for number in range(1, len(steps) + 1)]
    readmes = [folder / name for name in ("README.md", "README_CN.md")]
    shown = {readme: plain(readme.read_text(encoding="utf-8")) for readme in readmes}
    for step in steps:
        said = subprocess.run(
            ["/bin/bash", step],
            env={"PATH": f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        for command in said.stdout.splitlines():
            for readme, text in shown.items():
                assert f"`{step.name}`" in text, readme
                assert plain(command) in text, readme


def plain(text: str) -> str:
    """On one line, without quotes and the ends of lines that go on."""
    return " ".join(text.replace("\\\n", " ").replace('"', "").split())
