"""The micro models that are trained under semi-auto parallel, and on what; only of what every family says of itself."""

from __future__ import annotations

from typing import Any

from contract import BETA, LENGTH, LOSS, batches
from divided_operators import (
    FFNGroupedGEMM,
    VocabParallelEmbedding,
    divide_operators,
    embedding_func,
    forward_func,
)
from micro_models import MODELS, weights

from mindspore import ops

from mindrlhf.checkpoint.store import load_parameters
from mindrlhf.config.load import load_config
from mindrlhf.models import BuildOptions, families
from mindrlhf.trainers.registry import build_preference_cell, loss_settings

STEPS, RATE, MAX_GRAD_NORM = 3, 0.2, 1.0
# Five heads cannot be divided.
OF_FOUR_HEADS = {"baichuan2-13b": {"hidden_size": 32, "num_attention_heads": 4}}
FAMILY_OF = {name: family for family, variants in MODELS.items() for name in variants}


def of_name(name: str, layout: Any) -> tuple[Any, Any]:
    """The preference cell of a micro model of tests/golden with the formula's weights, and the rows of all pairs."""
    family = families()[FAMILY_OF[name]]
    config = {**MODELS[family.name][name], **OF_FOUR_HEADS.get(name, {}), "num_hidden_layers": 1, "num_layers": 1}
    settings = family.from_hf_config(config, BuildOptions(seq_length=LENGTH, layout=layout.of_model))
    loss = loss_settings(load_config(None, [f"rlhf.loss={LOSS}", f"rlhf.beta={BETA}"]))
    # The head whole on every worker, also where GPTModel would divide it.
    settings["parallel_config"]["vocab_emb_dp"] = True
    if layout.world > 1:
        VocabParallelEmbedding.embedding_func = embedding_func
        FFNGroupedGEMM.forward_func = forward_func
    cell = build_preference_cell(family, settings, loss, layout.of_model)
    if layout.world > 1:
        divide_operators(cell.score.backbone, layout)
        # What is said of each pair stays with its worker: it would be gathered, for which the CPU has no kernel.
        cell.whole = ops.Identity().shard((layout.rows(2),))
    shapes = {tensor: shape for group in family.tensors(config) for tensor, shape in group.hf.items()}
    parameters = {parameter.name: parameter for parameter in cell.get_parameters()}
    load_parameters(parameters, family.hf_to_ms(weights(shapes), config), name)
    return cell, batches(1)[0]
