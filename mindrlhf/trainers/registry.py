"""Where families and algorithms meet: one class per pair of them, made here and registered with MindFormers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from mindspore import nn

from mindrlhf.cells.preference import PreferenceCell
from mindrlhf.data.rows import PAIRS_PER_UNIT, ROWS_PER_UNIT
from mindrlhf.losses.registry import bind
from mindrlhf.models import ModelFamily, families

# Names under which earlier yaml files knew a family, all with the length-normalised loss and beta 1.0.
HISTORICAL = {"Qwen7BDPO": "qwen2", "Qwen2_5_7BDPO": "qwen2"}
HISTORICAL_LOSS = {"loss": "sigmoid_norm", "beta": 1.0}


def arch_name(family: ModelFamily) -> str:
    """The `model.arch.type` of a family's DPO: Qwen2DPO, LlamaDPO."""
    return "".join(word.capitalize() for word in family.name.split("_")) + "DPO"


def family_of_arch(name: str) -> str:
    """The family behind an arch type, ours or historical; any other name is returned as it is."""
    ours = {arch_name(family): family.name for family in families().values()}
    return {**ours, **HISTORICAL}.get(name, name)


def _preference_class(family: ModelFamily, defaults: dict[str, Any]) -> type[nn.Cell]:
    def __init__(self: Any, config: Any) -> None:
        wanted = {**defaults, **(getattr(config, "rlhf", None) or {})}
        loss = bind(wanted.get("loss", "sigmoid"), beta=wanted.get("beta"), label_smoothing=wanted.get("label_smoothing"))
        parallel = config.parallel_config
        split_vocabulary = not parallel.vocab_emb_dp and config.vocab_size % parallel.model_parallel == 0
        model = family.build(config)
        PreferenceCell.__init__(
            self,
            backbone=family.backbone(model),
            head_weight=family.head_weight(model),
            loss=loss.function,
            per_token=loss.per_token,
            beta=loss.beta,
            seq_length=config.seq_length,
            rows_per_unit=ROWS_PER_UNIT,
            pairs_per_unit=PAIRS_PER_UNIT,
            explicit_reduction=getattr(config, "explicit_reduction", True),
            data_parallel=parallel.data_parallel,
            vocab_parallel=parallel.model_parallel if split_vocabulary else 1,
        )
        self.model = model

    return type(arch_name(family), (PreferenceCell,), {"__init__": __init__, "__doc__": f"DPO on {family.name}."})


@lru_cache(maxsize=1)
def register_all() -> None:
    """Register every family's preference cell with MindFormers, once per process."""
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    for family in families().values():
        cell = _preference_class(family, {})
        MindFormerRegister.register_cls(cell, MindFormerModuleType.MODELS, alias=arch_name(family))
    for name, family_name in HISTORICAL.items():
        cell = _preference_class(families()[family_name], HISTORICAL_LOSS)
        MindFormerRegister.register_cls(cell, MindFormerModuleType.MODELS, alias=name)


def build_preference_cell(arch: str, model_config: dict[str, Any], rlhf: dict[str, Any], **extra: Any) -> nn.Cell:
    """The registered cell for a MindFormers model_config, with `rlhf` settings carried on the config."""
    from mindformers.models.build_model import build_network

    register_all()
    return build_network({"arch": {"type": arch}, "model_config": {**model_config, "rlhf": rlhf, **extra}})
