"""The graph of an online reference: as training runs it, and alone, without weights, to be compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mindspore import Tensor, nn

from mindrlhf.cells.scoring import WholeLogps
from mindrlhf.checkpoint.find import find_weights
from mindrlhf.config.schema import Config
from mindrlhf.data.rows import Rows
from mindrlhf.models import ModelFamily
from mindrlhf.parallel.dry_run import Graph
from mindrlhf.parallel.layout import Layout
from mindrlhf.runtime.device import Device
from mindrlhf.runtime.errors import UserError
from mindrlhf.trainers.architecture import Architecture, architecture
from mindrlhf.trainers.graph import filler, row_length_of
from mindrlhf.trainers.policy import build_options
from mindrlhf.trainers.registry import loss_settings, sequence_scorer

# The fields of a batch that `ScoreSequences` reads.
SCORED = Rows._fields[:7]
# The policy's parameters have the same names, and a strategy or a checkpoint tells parameters by these.
PREFIX = "reference."


def frozen_scorer(
    family: ModelFamily, config: Any, layout: Layout, *, collation: str, shared: bool
) -> tuple[nn.Cell, WholeLogps]:
    """A model of MindFormers' `config`, frozen, its parameters' names behind PREFIX; and the cell that scores rows.

    layout: the policy's. shared: see LD-DPO.
    """
    model = family.build(config)
    score = sequence_scorer(
        family,
        model,
        config,
        seq_length=config.seq_length,
        collation=collation,
        layout=layout.of_model,
        shared=shared,
    )
    for parameter in model.get_parameters():
        parameter.requires_grad = False
        parameter.name = PREFIX + parameter.name
    return model, WholeLogps(score).set_train(False)


def attributes(model_config: dict[str, Any]) -> Any:
    """A model_config whose keys are attributes, as those of MindFormers' config objects are."""
    from mindformers.tools.register import MindFormerConfig

    return MindFormerConfig(**model_config)


def reference_architecture(config: Config, policy: Architecture) -> Architecture:
    """What the reference is: the model that rlhf.reference_checkpoint names, else the policy's.

    UserError where it knows other tokens.
    """
    place = config.rlhf.reference_checkpoint
    if not place:
        return policy
    try:
        folder = Path(place) if (Path(place) / "config.json").is_file() else find_weights(place).folder
    except UserError as error:
        raise UserError(f"rlhf.reference_checkpoint: {error}") from None
    found = architecture(config, folder)
    require_same_tokens(folder, *(family.shape(hf_config).vocab for family, hf_config in (found, policy)))
    return found


def require_same_tokens(folder: Path, theirs: int, ours: int) -> None:
    """UserError where the reference in `folder` knows another number of tokens than the policy."""
    if theirs != ours:
        raise UserError(
            f"the reference {folder} knows {theirs} tokens and the policy {ours}; set rlhf.reference_checkpoint to a "
            f"model with the same tokenizer"
        )


def reference_graph(config: Config, device: Device, layout: Layout, found: Architecture) -> Graph:
    """The online reference of a run as `DPOTrainer` compiles it, for rows as those of `training_graph`."""
    family, hf_config = found
    length = row_length_of(config)
    # A reference that takes part in the policy's updates is kept as exact as the policy.
    options = build_options(config, device, length, layout, frozen=not config.rlhf.sync_ref_model)
    settings = attributes(family.from_hf_config(hf_config, options))
    shared = loss_settings(config).objective.needs_shared
    model, cell = frozen_scorer(family, settings, layout, collation=config.data.layout, shared=shared)
    rows = filler(config, layout, length, length)
    return Graph(cell, model, tuple(map(Tensor, rows[: len(SCORED)])))
