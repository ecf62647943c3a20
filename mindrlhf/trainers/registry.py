"""Where families and algorithms meet: one class per pair of them, made here and registered with MindFormers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mindspore import nn

from mindrlhf.cells.preference import PreferenceCell
from mindrlhf.config.schema import Config
from mindrlhf.data.rows import COLLATIONS
from mindrlhf.losses import BoundLoss, bind
from mindrlhf.models import ModelFamily, families
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.logging import log

# Names under which earlier yaml files knew a family; their beta belonged to the length-normalised loss.
HISTORICAL = {"Qwen7BDPO": "qwen2", "Qwen2_5_7BDPO": "qwen2"}
HISTORICAL_LOSS, HISTORICAL_BETA = "sigmoid_norm", 1.0
# MindFormers builds several families on this class; config.json tells which one it is.
BACKBONES = {"LlamaForCausalLM": "auto"}


@dataclass(frozen=True)
class LossSettings:
    """What `rlhf` of a run comes to: the bound loss, and where reference log-probs come from (record or none)."""

    loss: BoundLoss
    reference: str

    @property
    def name(self) -> str:
        """The loss's name."""
        return self.loss.spec.name


def loss_settings(config: Config) -> LossSettings:
    """The loss of a run; UserError for one that is unknown, badly set, or without the reference it needs."""
    rlhf = config.rlhf
    historical = config.model.family in HISTORICAL
    name, beta = rlhf.loss, rlhf.beta
    if historical and rlhf.loss == "sigmoid":
        name, beta = HISTORICAL_LOSS, rlhf.beta or HISTORICAL_BETA
        log(f"{config.model.family}: the length-normalised loss {name} with beta {beta}, as that name always meant")
    try:
        loss = bind(name, beta=beta, label_smoothing=rlhf.label_smoothing)
    except ValueError as error:
        raise UserError(f"rlhf.loss: {error}") from None
    if loss.needs_reference and rlhf.reference == "none":
        raise UserError(f"rlhf.reference is none, and rlhf.loss={name} needs a reference; set rlhf.reference=record")
    return LossSettings(loss, rlhf.reference)


def arch_name(family: ModelFamily) -> str:
    """The `model.arch.type` of a family's DPO: Qwen2DPO, LlamaDPO."""
    return "".join(word.capitalize() for word in family.name.split("_")) + "DPO"


def family_of_arch(name: str) -> str:
    """The family behind an arch type, ours or historical; any other name is returned as it is."""
    ours = {arch_name(family): family.name for family in families().values()}
    return {**ours, **HISTORICAL, **BACKBONES}.get(name, name)


def _preference_class(family: ModelFamily, defaults: dict[str, Any]) -> type[nn.Cell]:
    """A class that makes, of a MindFormers config, the preference cell on the family's model.

    The config may carry `rlhf` {loss, beta, label_smoothing}, `layout` (of the rows) and `explicit_reduction`.
    """

    def __init__(self: Any, config: Any) -> None:
        wanted = {"loss": "sigmoid", **defaults, **(getattr(config, "rlhf", None) or {})}
        loss = bind(wanted.pop("loss"), **wanted)
        collation = COLLATIONS[getattr(config, "layout", "padded")]
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
            rows_per_unit=collation.rows_per_unit,
            pairs_per_unit=collation.pairs_per_unit,
            explicit_reduction=getattr(config, "explicit_reduction", True),
            data_parallel=parallel.data_parallel,
            model_parallel=parallel.model_parallel,
            split_vocabulary=split_vocabulary,
        )

    return type(arch_name(family), (PreferenceCell,), {"__init__": __init__, "__doc__": f"DPO on {family.name}."})


@lru_cache(maxsize=1)
def register_all() -> None:
    """Register every family's preference cell with MindFormers, once per process."""
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    cells = {arch_name(family): _preference_class(family, {}) for family in families().values()}
    settings = {"loss": HISTORICAL_LOSS, "beta": HISTORICAL_BETA}
    historical = {name: _preference_class(families()[family], settings) for name, family in HISTORICAL.items()}
    for name, cell in {**cells, **historical}.items():
        MindFormerRegister.register_cls(cell, MindFormerModuleType.MODELS, alias=name)


def build_preference_cell(
    family: ModelFamily,
    model_config: dict[str, Any],
    loss: LossSettings,
    explicit_reduction: bool,
    layout: str = "padded",
) -> nn.Cell:
    """The family's registered cell, by MindFormers' own `build_network`; UserError for rows it is not exact on."""
    from mindformers.models.build_model import build_network
    from mindformers.tools.register import MindFormerConfig

    if layout not in family.collations:
        raise UserError(f"data.layout is {layout}, on which {family.name} is not exact; use {family.collations[0]}")
    register_all()
    rlhf = {"loss": loss.name, **loss.loss.parameters}
    extra = {"rlhf": rlhf, "layout": layout, "explicit_reduction": explicit_reduction}
    return build_network(MindFormerConfig(arch={"type": arch_name(family)}, model_config={**model_config, **extra}))
