"""The console and the folder of the user stay clean; ranks are told from msrun's variables alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindrlhf.runtime import logging

ROOT = Path(logging.__file__).resolve().parents[2]
FOREIGN = ("GLOG_v", "LOG_MF_PATH", "MS_OM_PATH", "MS_COMPILER_CACHE_PATH", "MS_WORKER_NUM", "RANK_ID", "MS_ROLE")

TINY_MODEL = """
from mindrlhf.runtime.logging import quiet
quiet()
import warnings
import numpy as np
import mindspore
from mindspore import Tensor
from mindformers import LlamaConfig, LlamaForCausalLM
import transformers
mindspore.set_device("CPU")
mindspore.set_context(mode=mindspore.GRAPH_MODE)
warnings.warn("old", FutureWarning)
config = LlamaConfig(batch_size=1, seq_length=8, hidden_size=16, num_layers=1, num_heads=2, vocab_size=32,
                     intermediate_size=32, use_flash_attention=False, compute_dtype="float32",
                     softmax_compute_type="float32", rotary_dtype="float32", param_init_type="float32",
                     use_rope_slice=True, fused_rms_norm=False, pad_token_id=0, disable_lazy_inline=True)
loss = LlamaForCausalLM(config=config).set_train()(Tensor(np.ones((1, 9)), mindspore.int32))[0]
assert loss.asnumpy() > 0
"""


def run_python(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python -c code` in `folder`, as a user with no variable of MindSpore's set but those given."""
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    environment.update(variables, PYTHONPATH=str(ROOT), TMPDIR=str(folder.parent))
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def test_building_and_running_a_model_says_and_leaves_nothing(empty: Path) -> None:
    done = run_python(TINY_MODEL, empty)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(empty.iterdir()) == []
    assert list(empty.parent.glob(logging.SCRATCH_PREFIX + "*")) == []


def test_a_child_process_is_quiet_too(empty: Path) -> None:
    parent = """
from mindrlhf.runtime.logging import quiet
quiet()
import subprocess, sys
child = '''
from mindrlhf.runtime.logging import quiet
quiet()
from mindformers.tools.logger import logger
logger.warning("from the child")
'''
sys.exit(subprocess.call([sys.executable, "-c", child]))
"""
    done = run_python(parent, empty)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(empty.iterdir()) == []


def test_what_the_user_has_set_wins(empty: Path) -> None:
    code = """
from mindrlhf.runtime.logging import quiet
quiet()
from mindspore import log
from mindformers.tools.logger import logger
log.info("from mindspore")
logger.info("from mindformers")
"""
    done = run_python(code, empty, GLOG_v="1", LOG_MF_PATH=str(empty / "mine"))
    assert done.returncode == 0
    assert "from mindspore" in done.stderr
    assert "from mindformers" in done.stdout
    assert "from mindformers" in (empty / "mine" / "rank_0" / "info.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK_ID": "3"}, (0, 1)),
        ({"RANK_ID": "0", "MS_WORKER_NUM": "1"}, (0, 1)),
        ({"RANK_ID": "3", "MS_WORKER_NUM": "8"}, (3, 8)),
    ],
)
def test_rank_and_world(variables: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK_ID", "MS_WORKER_NUM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (logging.rank(), logging.world()) == expected


def test_only_rank_0_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MS_WORKER_NUM", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK_ID", rank)
        logging.log(f"line of {rank}")
        logging.warn(f"fear of {rank}")
    assert capsys.readouterr() == ("line of 0\n", "warning: fear of 0\n")


def test_warn_once(capsys: pytest.CaptureFixture[str]) -> None:
    for message in ("first", "second", "first"):
        logging.warn_once(message)
    assert capsys.readouterr().err == "warning: first\nwarning: second\n"
