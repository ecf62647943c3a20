"""What a yaml and a config.json say a model is: its family and its shapes. Needs no MindSpore."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mindrlhf.checkpoint.find import find_weights
from mindrlhf.config.schema import Config
from mindrlhf.models import ModelFamily, chosen_family, families, family_of
from mindrlhf.runtime.errors import UserError, some
from mindrlhf.runtime.logging import warn

# Names under which earlier yaml files knew a family; their beta belonged to the length-normalised loss.
HISTORICAL = {"Qwen7BDPO": "qwen2", "Qwen2_5_7BDPO": "qwen2", "Glm4DPO": "glm4", "Baichuan13BDPO": "baichuan2"}
# MindFormers' own classes; of several families on one class config.json tells which it is.
BACKBONES = {
    "LlamaForCausalLM": "auto",
    "ChatGLM2ForConditionalGeneration": "glm4",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}
# Words of MindFormers' configs that make another model, and values by which they do not.
OTHER_MODELS = (
    *("extend_method", "scaling_factor", "position_embedding_type", "rope_type", "qk_layernorm", "sandwich_norm"),
    *("post_self_attn_layernorm", "post_mlp_layernorm", "qkv_has_bias", "apply_residual_connection_post_layernorm"),
)
PLAIN = (None, False, "", "None", "none", "rope", 1, 1.0)


class Architecture(NamedTuple):
    """What a model is: its family, and its config in Hugging Face's words."""

    family: ModelFamily
    hf_config: dict[str, Any]


def arch_name(family: ModelFamily) -> str:
    """The `model.arch.type` of a family's DPO: Qwen2DPO, LlamaDPO, Glm4DPO, Qwen3MoeDPO."""
    return "".join(word.capitalize() for word in family.name.split("_")) + "DPO"


def family_of_arch(name: str) -> str:
    """The family behind an arch type, ours or historical; any other name is returned as it is."""
    ours = {arch_name(family): family.name for family in families().values()}
    return {**ours, **HISTORICAL, **BACKBONES}.get(name, name)


def find_architecture(config: Config) -> Architecture:
    """The family and the config of what `model` of a run names, whose weights need not be there."""
    place = Path(config.model.load_checkpoint or ".")
    if config.model.load_checkpoint and place.exists() and not (place / "config.json").is_file():
        place = find_weights(place).folder
    return architecture(config, place)


def architecture(config: Config, folder: Path) -> Architecture:
    """The same of a model whose config.json lies, or would lie, in `folder`."""
    path = folder / "config.json"
    published = read_json_object(path)
    hf_config = {**published, **config.model.config}
    if not hf_config:
        if not config.model.load_checkpoint:
            raise UserError("no model is named; set model.load_checkpoint to its folder, or model.config to its shapes")
        raise UserError(f"{path} does not exist and the yaml has no model.config; give the shapes in one of them")
    name = family_of_arch(config.model.family)
    if name == "auto":
        family = family_of(hf_config, str(path))
    else:
        family = chosen_family(name, hf_config, str(path), f"model.family={config.model.family}")
    _check_keys(config.model.config, family)
    _warn_of_other_values(config.model.config, published, path)
    return Architecture(family, hf_config)


def _check_keys(given: Mapping[str, Any], family: ModelFamily) -> None:
    """UserError for a key of the yaml's model.config that means nothing, or another model; a warning where MindFormers
    knows it and the model is the same without."""
    for key in given.keys() - family.config_keys:
        if key not in family.mindformers_keys():
            (nearest,) = difflib.get_close_matches(key, family.config_keys, n=1, cutoff=0.0)
            raise UserError(f"model.config.{key} is not a key of {family.name}; did you mean {nearest}?")
        if key in OTHER_MODELS and (given[key] is True or given[key] not in PLAIN):
            raise UserError(
                f"model.config.{key} is {given[key]!r}, MindFormers' word for another model, and is not read; say it "
                f"in the words of Hugging Face's config.json (rope_scaling, ...) or leave it out"
            )
        warn(f"model.config.{key} is MindFormers' and has no effect here")


def _warn_of_other_values(given: Mapping[str, Any], published: Mapping[str, Any], path: Path) -> None:
    """One warning where the yaml's model.config says other than the folder's config.json."""
    others = [
        f"{key} {given[key]} (there {published[key]})"
        for key in sorted(given.keys() & published.keys())
        if published[key] is not None and given[key] != published[key]
    ]
    if others:
        warn(f"the yaml's model.config wins over {path}: {some(others)}")


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is no such file; UserError for anything else."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); copy it anew from where the model came") from None
    if not isinstance(found, Mapping):
        raise UserError(f"{path} is not a JSON object; copy it anew from where the model came")
    return dict(found)
