"""From a folder to a family: config.json, the yaml's model.config, weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mindrlhf.config.schema import build
from mindrlhf.models import get_family
from mindrlhf.parallel.layout import ONE_WORKER
from mindrlhf.runtime.errors import UserError
from mindrlhf.trainers.policy import check_routing, find_source


def model(load_checkpoint: object, **more: Any) -> Any:
    return build({"model": {"load_checkpoint": str(load_checkpoint), **more}})


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_the_family_is_read_from_config_json(tiny_folder: Any, family: str) -> None:
    source = find_source(model(tiny_folder(family)))
    assert (source.family.name, source.hf_config["num_hidden_layers"]) == (family, 1)


def test_model_config_wins_and_its_keys_are_known(tiny_folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder("qwen2")
    assert find_source(model(folder, config={"rope_theta": 5.0})).hf_config["rope_theta"] == 5.0
    assert "config.json: rope_theta 5.0 (there 1000000.0)" in capsys.readouterr().err
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
    kept = {key: value for key, value in shapes.items() if key in get_family("qwen2").config_keys}
    assert find_source(model(folder, config=kept)).family.name == "qwen2"


@pytest.mark.parametrize("named", ["llama", "LlamaDPO", "qwen3"])
def test_a_named_family_is_that_of_config_json(tiny_folder: Any, named: str) -> None:
    with pytest.raises(UserError, match=rf"model\.family={named} is the family .*config\.json is one of qwen2"):
        find_source(model(tiny_folder("qwen2"), family=named))


def test_a_named_family_does_not_hide_an_unknown_architecture(tiny_folder: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["GraniteForCausalLM"]}))
    with pytest.raises(UserError, match="architecture GraniteForCausalLM is not supported"):
        find_source(model(folder, family="llama"))


@pytest.mark.parametrize(("word", "value"), [("extend_method", "PI"), ("scaling_factor", 2.0), ("qkv_has_bias", True)])
def test_mindformers_words_for_another_model_are_refused(tiny_folder: Any, word: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"model\.config\.{word} is .* MindFormers' word for another model"):
        find_source(model(tiny_folder("llama"), config={word: value}))


def test_weights_that_do_not_fit_are_refused_before_they_are_read(tiny_folder: Any) -> None:
    with pytest.raises(UserError, match=r"does not fit the model: .* of another shape: model\.embed_tokens\.weight"):
        find_source(model(tiny_folder("qwen2"), config={"hidden_size": 128, "num_attention_heads": 4}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": {"aux_loss_coef": 0.5}}, "model.aux_loss_coef is 0.5, and qwen2 has no experts"),
        ({"parallel": {"expert_parallel": 2}}, "parallel.expert_parallel is 2, and qwen2 has no experts"),
    ],
)
def test_settings_of_experts_need_experts(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_routing(build(settings), get_family("qwen2"), ONE_WORKER)
    check_routing(build({}), get_family("qwen2"), ONE_WORKER)


def test_split_experts_need_split_tensors() -> None:
    with pytest.raises(UserError, match=r"parallel\.expert_parallel is 2, and here every worker has a whole model"):
        check_routing(build({"parallel": {"expert_parallel": 2}}), get_family("qwen3_moe"), ONE_WORKER)


def test_no_weights_named() -> None:
    with pytest.raises(UserError, match="--load_checkpoint"):
        find_source(build({}))
