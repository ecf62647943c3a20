"""The yaml files of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindrlhf.config.load import load_config
from mindrlhf.config.schema import Config

MODEL_CONFIGS = Path(__file__).parents[3] / "model_configs"
EVERY_FILE = sorted(MODEL_CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("path", EVERY_FILE, ids=lambda path: str(path.relative_to(MODEL_CONFIGS)))
def test_every_published_file_loads_in_silence(path, capsys):
    load_config(path)
    assert capsys.readouterr() == ("", "")
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def test_dpo_default_is_the_schema_default():
    assert load_config(MODEL_CONFIGS / "dpo/default.yaml") == Config()


def test_qwen2_7b_has_the_published_shapes():
    config = load_config(MODEL_CONFIGS / "qwen2/7b.yaml")
    shape = config.model.config
    parallel = config.parallel
    hidden, inner, layers, vocabulary = (
        shape[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    )
    narrow = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    attention = 2 * hidden * hidden + 2 * hidden * narrow + hidden + 2 * narrow
    layer = attention + 3 * hidden * inner + 2 * hidden
    assert 2 * vocabulary * hidden + layers * layer + hidden == 7_615_616_512  # the published one has these
    assert parallel.data_parallel * parallel.model_parallel * parallel.pipeline_stage == 8
    assert shape["num_key_value_heads"] % parallel.model_parallel == 0
    assert (config.model.dtype, config.data.seq_len) == ("bfloat16", 4097)
