"""From a folder to a family: config.json, the yaml's model.config, weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mindrlhf.config.schema import build
from mindrlhf.runtime.errors import UserError
from mindrlhf.trainers.policy import find_source


def model(load_checkpoint: object, **more: Any) -> Any:
    return build({"model": {"load_checkpoint": str(load_checkpoint), **more}})


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_the_family_is_read_from_config_json(tiny_folder: Any, family: str) -> None:
    source = find_source(model(tiny_folder(family)))
    assert (source.family.name, source.hf_config["num_hidden_layers"]) == (family, 1)


def test_model_config_wins_and_its_keys_are_known(tiny_folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder("qwen2")
    assert find_source(model(folder, config={"rope_theta": 5.0})).hf_config["rope_theta"] == 5.0
    with pytest.raises(UserError, match=r"model\.config\.rope_tetha is not a key of qwen2; did you mean rope_theta"):
        find_source(model(folder, config={"rope_tetha": 5.0}))
    capsys.readouterr()
    find_source(model(folder, config={"use_past": True}))
    assert "model.config.use_past is MindFormers'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("not json", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"architectures": ["BertModel"]}', "architecture BertModel is not supported"),
    ],
)
def test_a_config_that_is_none_is_refused(tiny_folder: Any, tmp_path: Path, change: str, words: str) -> None:
    folder = shutil.copytree(tiny_folder("qwen2"), tmp_path / "model")
    (folder / "config.json").write_text(change, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        find_source(model(folder))


def test_without_config_json_the_yaml_must_have_the_shapes(tiny_folder: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder("qwen2"), tmp_path / "model")
    shapes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="give the shapes in one of them"):
        find_source(model(folder))
    kept = {key: shapes[key] for key in ("architectures", "hidden_size", "vocab_size")}
    assert find_source(model(folder, config=kept)).family.name == "qwen2"


def test_no_weights_named() -> None:
    with pytest.raises(UserError, match="--load_checkpoint"):
        find_source(build({}))
