"""A user's mistakes through the real commands: one sentence, exit code 2, no traceback."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pipeline_shell import Ended, Shell

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONFIG = ["--config", ROOT / "model_configs" / "dpo" / "default.yaml"]
TRAIN = ["run_dpo.py", *CONFIG, "--train_dataset", "train.mindrecord", "--load_checkpoint", "model"]


def refused(ended: Ended, *words: str) -> None:
    assert ended.code == 2, ended.out + ended.err
    assert "Traceback" not in ended.err + ended.out
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line


def test_an_unknown_key_names_the_nearest(shell: Shell) -> None:
    refused(shell(*TRAIN, "train.global_batch_pair=4"), "global_batch_pairs")


def test_a_flipped_bit_in_a_record_is_refused(shell: Shell) -> None:
    folder = shell.folder / "flipped"
    folder.mkdir()
    for file in shell.folder.glob("train.mindrecord*"):
        shutil.copy(file, folder)
    record = folder / "train.mindrecord"
    content = bytearray(record.read_bytes())
    content[len(content) // 2] ^= 1
    record.write_bytes(bytes(content))
    given = ["--train_dataset", "flipped/train.mindrecord", "--load_checkpoint", "model"]
    refused(shell("run_dpo.py", *CONFIG, *given), "flipped/train.mindrecord", "damaged")


def test_another_reference_is_refused_unless_accepted(shell: Shell) -> None:
    sizes = ["--hidden_size", 64, "--layers", 1, "--seed", 1]
    shell.must("tools/make_tiny_model.py", "--family", "qwen2", "--output_path", "other", *sizes)
    given = [
        "run_dpo.py",
        *CONFIG,
        "--train_dataset",
        "train.mindrecord",
        "--load_checkpoint",
        "other",
        "train.steps=1",
    ]
    refused(shell(*given), "train.mindrecord", "rlhf.other_reference=accept")
    ended = shell(*given, "rlhf.other_reference=accept", "output_dir=accepted")
    assert ended.code == 0


def test_another_tokenizer_is_refused(shell: Shell) -> None:
    sizes = ["--hidden_size", 64, "--layers", 1, "--vocab_size", 500]
    shell.must("tools/make_tiny_model.py", "--family", "qwen2", "--output_path", "smaller", *sizes)
    refused(shell(*TRAIN, "--vocab_file", "smaller"), "train.mindrecord", "tokenizer")


def test_batches_that_workers_cannot_share_are_refused_by_both_ranks(shell: Shell) -> None:
    refused(shell(*TRAIN, "train.global_batch_pairs=5", workers=2), "5", "2 workers")


def test_bad_rows_beyond_the_limit_end_in_exit_code_2_with_the_record_written(shell: Shell) -> None:
    good = (shell.folder / "data" / "train.jsonl").read_bytes().splitlines()[:10]
    (shell.folder / "data" / "bad.jsonl").write_bytes(b"\n".join([*good, b'{"prompt": "cut', b'{"prompt": "x"}']))
    refused(shell.preprocess("bad", "rlhf.reference=none"), "2 of 12 rows", "broken json 1", "missing field 1")
    lines = (shell.folder / "bad.mindrecord.rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert ['"line": 11' in lines[0], '"line": 12' in lines[1]] == [True, True]
    assert shell.preprocess("bad", "rlhf.reference=none", "--max_rejected", "0.5").code == 0
