"""Where families and algorithms meet: one class per pair of them, made here and registered with MindFormers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from mindspore import nn

from mindrlhf.cells.preference import PreferenceCell
from mindrlhf.cells.scoring import ScoreSequences
from mindrlhf.config.schema import Config
from mindrlhf.data.rows import COLLATIONS
from mindrlhf.losses import Objective, bind_all, objective
from mindrlhf.models import ModelFamily, families
from mindrlhf.parallel.layout import ONE_WORKER, Layout
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.logging import log
from mindrlhf.trainers.architecture import HISTORICAL, arch_name

HISTORICAL_LOSS, HISTORICAL_BETA = "sigmoid_norm", 1.0
# Names of `rlhf` that are parameters of losses, and those that act on every loss built on log-ratios.
PARAMETERS = ("beta", "label_smoothing", "simpo_gamma", "cpo_alpha", "discopop_tau")
SHAPING = ("ld_alpha", "use_weighting", "f_divergence_type", "f_alpha_divergence_coef", "reference_free")


@dataclass(frozen=True)
class LossSettings:
    """What `rlhf` of a run comes to: what is minimised, as plain `words` too, and where the reference comes from.

    reference: record, online or none.
    """

    objective: Objective
    words: dict[str, Any]
    reference: str


def build_objective(words: Mapping[str, Any]) -> Objective:
    """The objective of `loss`, a name or a list of {type, weight, ...}, and of other keys of `rlhf`; or ValueError."""
    loss = words["loss"]
    entries = [{"type": loss}] if isinstance(loss, str) else [dict(entry) for entry in loss]
    wide = {name: words[name] for name in PARAMETERS if words.get(name) is not None}
    shaping = {name: words[name] for name in SHAPING if name in words}
    return objective(bind_all(entries, **wide), **shaping)


def loss_settings(config: Config) -> LossSettings:
    """The objective of a run; UserError for a loss that is unknown, badly set, or without the reference it needs."""
    rlhf = config.rlhf
    words = {name: getattr(rlhf, name) for name in ("loss", *PARAMETERS, *SHAPING)}
    if config.model.family in HISTORICAL and rlhf.loss == "sigmoid":
        words.update(loss=HISTORICAL_LOSS, beta=rlhf.beta or HISTORICAL_BETA)
        log(
            f"{config.model.family}: the length-normalised loss {HISTORICAL_LOSS} with beta {words['beta']}, as that "
            f"name always meant"
        )
    try:
        found = build_objective(words)
    except ValueError as error:
        said = str(error)
        raise UserError(said if said.startswith("rlhf.") else f"rlhf.loss: {said}") from None
    return LossSettings(found, words, _where_from(config, found))


def _where_from(config: Config, found: Objective) -> str:
    """Where reference log-probs come from; UserError for settings that contradict one another."""
    rlhf = config.rlhf
    if rlhf.reference != "online":
        for name in ("reference_checkpoint", "sync_ref_model"):
            if getattr(rlhf, name):
                raise UserError(f"rlhf.{name} is set, which needs rlhf.reference=online (now {rlhf.reference})")
    if rlhf.reference_free and rlhf.reference == "online":
        raise UserError("rlhf.reference_free is true, and rlhf.reference=online would not be read; leave one out")
    if rlhf.reference_free:
        return "none"
    if found.needs_reference and rlhf.reference == "none":
        raise UserError(
            f"rlhf.reference is none, and rlhf.loss={found.name} needs a reference; set rlhf.reference to record or "
            f"online, or rlhf.reference_free=true"
        )
    return rlhf.reference


def sequence_scorer(
    family: ModelFamily,
    model: nn.Cell,
    config: Any,
    *,
    seq_length: int,
    collation: str = "padded",
    layout: Layout = ONE_WORKER,
    shared: bool = False,
    squares: bool = False,
    balance: bool = False,
) -> ScoreSequences:
    """The cell that scores rows of `seq_length` tokens with `model`, a MindFormers model of `config`."""
    rows = COLLATIONS[collation]
    # GPTModel divides its vocabulary whatever the layout says, and its config then says so.
    built = replace(layout, vocab_emb_dp=config.parallel_config.vocab_emb_dp)
    return ScoreSequences(
        family.backbone(model),
        family.head(model),
        seq_length,
        rows.rows_per_unit,
        rows.pairs_per_unit,
        layout,
        built.vocabulary_parts(config.vocab_size),
        shared=shared,
        squares=squares,
        balance=balance,
    )


def _preference_class(family: ModelFamily, defaults: dict[str, Any]) -> type[nn.Cell]:
    """A class that makes, of a MindFormers config, the preference cell on the family's model.

    The config may carry `rlhf` {loss, beta, ...}, `collation` (of the rows) and `layout` {data_parallel, ...}.
    """

    def __init__(self: Any, config: Any) -> None:
        found = build_objective({"loss": "sigmoid", **defaults, **(getattr(config, "rlhf", None) or {})})
        layout = Layout(**(getattr(config, "layout", None) or {}))
        aux_loss_coef = getattr(config, "aux_loss_coef", None) or 0.0
        score = sequence_scorer(
            family,
            family.build(config),
            config,
            seq_length=config.seq_length,
            collation=getattr(config, "collation", "padded"),
            layout=layout,
            shared=found.needs_shared,
            squares=found.needs_squares,
            balance=bool(aux_loss_coef),
        )
        PreferenceCell.__init__(self, score, found, layout, aux_loss_coef)

    return type(arch_name(family), (PreferenceCell,), {"__init__": __init__, "__doc__": f"DPO on {family.name}."})


@lru_cache(maxsize=1)
def register_all() -> None:
    """Register every family's preference cell with MindFormers, and its config's type, once per process."""
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    from mindrlhf.models import mcore_config  # noqa: F401  (registers it)

    cells = {arch_name(family): _preference_class(family, {}) for family in families().values()}
    settings = {"loss": HISTORICAL_LOSS, "beta": HISTORICAL_BETA}
    historical = {name: _preference_class(families()[family], settings) for name, family in HISTORICAL.items()}
    for name, cell in {**cells, **historical}.items():
        MindFormerRegister.register_cls(cell, MindFormerModuleType.MODELS, alias=name)


def build_preference_cell(
    family: ModelFamily,
    model_config: dict[str, Any],
    loss: LossSettings,
    layout: Layout = ONE_WORKER,
    collation: str = "padded",
) -> nn.Cell:
    """The family's registered cell, by MindFormers' own `build_network`; UserError for rows it is not exact on."""
    from mindformers.models.build_model import build_network
    from mindformers.tools.register import MindFormerConfig

    if collation not in family.collations:
        raise UserError(f"data.layout is {collation}, on which {family.name} is not exact; use {family.collations[0]}")
    if layout.pipeline_stage > 1 and model_config.get("aux_loss_coef"):
        raise UserError(
            f"the router's load-balance loss (model.aux_loss_coef {model_config['aux_loss_coef']}) does not compile in "
            f"a pipeline; set model.aux_loss_coef=0 or parallel.pipeline_stage=1"
        )
    register_all()
    extra = {"rlhf": loss.words, "collation": collation, "layout": asdict(layout)}
    return build_network(MindFormerConfig(arch={"type": arch_name(family)}, model_config={**model_config, **extra}))
