"""What an online reference is, told before anything is built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mindrlhf.config.load import load_config
from mindrlhf.config.schema import Config
from mindrlhf.models import get_family
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import write_json
from mindrlhf.trainers.architecture import find_architecture
from mindrlhf.trainers.frozen import reference_architecture


def published(folder: Path, **changed: Any) -> str:
    """A model's folder as far as a dry run needs it: config.json."""
    folder.mkdir()
    write_json(folder / "config.json", {**get_family("qwen2").tiny_config(96, 128, 2), **changed})
    return str(folder)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    policy = published(tmp_path / "policy")
    return load_config(None, [f"model.load_checkpoint={policy}", "rlhf.reference=online"])


def with_reference(config: Config, place: str) -> Config:
    return replace(config, rlhf=replace(config.rlhf, reference_checkpoint=place))


def test_it_is_the_policy_where_nothing_else_is_named(config: Config) -> None:
    policy = find_architecture(config)
    assert reference_architecture(config, policy) is policy


def test_it_may_be_a_model_of_another_size(config: Config, tmp_path: Path) -> None:
    larger = with_reference(config, published(tmp_path / "larger", num_hidden_layers=3))
    family, hf_config = reference_architecture(larger, find_architecture(config))
    assert (family.name, hf_config["num_hidden_layers"]) == ("qwen2", 3)


@pytest.mark.parametrize(
    ("place", "sentence"),
    [("other", "knows 128 tokens and the policy 96; set rlhf.reference_checkpoint"), ("absent", "there is no")],
)
def test_one_that_cannot_be_compared_is_refused(config: Config, tmp_path: Path, place: str, sentence: str) -> None:
    published(tmp_path / "other", vocab_size=128)
    with pytest.raises(UserError, match=sentence):
        reference_architecture(with_reference(config, str(tmp_path / place)), find_architecture(config))
