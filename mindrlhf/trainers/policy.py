"""From a Hugging Face folder or a checkpoint to a family, its shapes and its weights."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mindrlhf.checkpoint import store
from mindrlhf.checkpoint.tensors import Tensors
from mindrlhf.config.schema import Config
from mindrlhf.models import BuildOptions, ModelFamily, chosen_family, family_of
from mindrlhf.parallel.layout import ONE_WORKER, Layout
from mindrlhf.runtime.device import Device
from mindrlhf.runtime.errors import IncompleteCheckpoint, UserError, some
from mindrlhf.runtime.logging import warn
from mindrlhf.trainers.registry import family_of_arch

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


@dataclass(frozen=True)
class Source:
    """Where a model comes from: its family, its config in Hugging Face's words, its weight files."""

    family: ModelFamily
    hf_config: dict[str, Any]
    weights: store.Weights

    def check(self) -> None:
        """UserError where tensors are missing, foreign or of another shape, before any of them is read.

        Of tensors under Hugging Face names; of others the model is asked when they are loaded.
        """
        with Tensors(self.weights) as opened:
            shapes = {name: spec.shape for name, spec in opened.specs.items()}
        try:
            self.family.check(shapes, self.hf_config)
        except IncompleteCheckpoint as error:
            raise IncompleteCheckpoint(f"{self.weights} does not fit the model: {error}") from None


def find_source(config: Config, place: str | None = None) -> Source:
    """The source at `place`, else the one that `model` of a run names. Keys of model.config win over config.json."""
    place = place or config.model.load_checkpoint
    if not place:
        raise UserError("no weights are named; give --load_checkpoint a Hugging Face folder or a checkpoint")
    weights = store.find_weights(place)
    source = Source(*_architecture(config, weights.folder), weights)
    source.check()
    return source


def find_architecture(config: Config) -> Architecture:
    """The family and the config of what `model` of a run names, whose weights need not be there."""
    place = config.model.load_checkpoint
    if place and Path(place).exists():
        return _architecture(config, store.find_weights(place).folder)
    return _architecture(config, Path(place or "."))


def _architecture(config: Config, folder: Path) -> Architecture:
    path = folder / "config.json"
    published = read_json_object(path)
    hf_config = {**published, **config.model.config}
    if not hf_config:
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


def build_options(
    config: Config, device: Device, seq_length: int, layout: Layout = ONE_WORKER, frozen: bool = False
) -> BuildOptions:
    """What this run and this device add to the model's shapes.

    Parameters are float32, the masters of 16 bits; those of a `frozen` model have the type it computes in.
    """
    return BuildOptions(
        seq_length=seq_length,
        compute_dtype=device.compute_dtype(config.model.dtype),
        param_dtype=device.compute_dtype(config.model.dtype) if frozen else "float32",
        fused=device.flash_attention,
        recompute=config.train.recompute and not frozen,
        rope_by_product=device.broadcasts_products,
        aux_loss_coef=config.model.aux_loss_coef,
        layout=layout.of_model,
    )


def check_routing(config: Config, family: ModelFamily, layout: Layout) -> None:
    """UserError for settings of experts that would have no effect."""
    experts = config.parallel.expert_parallel
    if not family.routed:
        aux = config.model.aux_loss_coef
        for key, given, effect in (
            ("model.aux_loss_coef", aux, bool(aux)),
            ("parallel.expert_parallel", experts, experts > 1),
        ):
            if effect:
                raise UserError(f"{key} is {given}, and {family.name} has no experts; leave it out")
    if experts > 1 and not layout.semi_auto:
        raise UserError(
            f"parallel.expert_parallel is {experts}, and here every worker has a whole model; set "
            f"parallel.optimizer_shard=true or parallel.model_parallel, or leave it out"
        )
