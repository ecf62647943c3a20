"""From a Hugging Face folder or a checkpoint to a family, its shapes and its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mindrlhf.checkpoint import store
from mindrlhf.checkpoint.tensors import Tensors
from mindrlhf.config.schema import Config
from mindrlhf.models import BuildOptions, ModelFamily
from mindrlhf.parallel.layout import ONE_WORKER, Layout
from mindrlhf.runtime.device import Device
from mindrlhf.runtime.errors import IncompleteCheckpoint, UserError
from mindrlhf.trainers.architecture import architecture


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
    source = Source(*architecture(config, weights.folder), weights)
    source.check()
    return source


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
            f"parallel.optimizer_shard=true, parallel.model_parallel or parallel.context_parallel, or leave it out"
        )
