"""The graph of a DPO step: as training runs it, and alone, without weights and data, to be compiled."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn

from mindrlhf.cells.pipeline import MicroBatches, PipelineStep
from mindrlhf.cells.train_step import TrainStep
from mindrlhf.config.schema import Config
from mindrlhf.data.rows import COLLATIONS, Rows, row_length
from mindrlhf.parallel.dry_run import Graph
from mindrlhf.parallel.layout import Layout
from mindrlhf.runtime.device import Device
from mindrlhf.runtime.errors import UserError
from mindrlhf.trainers.architecture import Architecture
from mindrlhf.trainers.optimizer import build_optimizer
from mindrlhf.trainers.policy import build_options, check_routing
from mindrlhf.trainers.registry import build_preference_cell, loss_settings


def build_step(cell: nn.Cell, optimizer: nn.Optimizer, config: Config, layout: Layout, passes: int) -> nn.Cell:
    """The step that updates `cell`, called as step(last pass, *fields_of(rows)) -> (sums, grad_norm, logps).

    Gradients are summed over the workers by us or by the parallel passes.
    """
    bound = config.train.max_grad_norm
    if layout.pipeline_stage > 1:
        return PipelineStep(MicroBatches(cell, layout.micro_batch_num), optimizer, bound, layout)
    reduce_over, split_over = (1, layout.world) if layout.semi_auto else (layout.world, 1)
    return TrainStep(cell, optimizer, bound, passes, reduce_over, split_over)


def fields_of(rows: Rows, layout: Layout) -> tuple[Tensor, ...]:
    """A batch as the step takes it: in a pipeline every part brings the denominators of the whole batch."""
    if layout.pipeline_stage > 1:
        rows = by_part(rows, layout.micro_batch_num)
    return tuple(map(Tensor, rows))


def by_part(rows: Rows, parts: int) -> Rows:
    """The batch as `MicroBatches` takes it: num_pairs and num_chosen_tokens (parts,), the same number for each."""
    repeated = {name: np.repeat(getattr(rows, name), parts) for name in ("num_pairs", "num_chosen_tokens")}
    return rows._replace(**repeated)


def filler(config: Config, length: int, scored: int) -> Rows:
    """A global batch of no pairs: rows of `length` tokens, `scored` of them to be scored."""
    return COLLATIONS[config.data.layout].collate([None] * config.train.global_batch_pairs, length, scored, 1, 1)


def training_graph(config: Config, device: Device, layout: Layout, architecture: Architecture) -> Graph:
    """The step of a run as `DPOTrainer` builds it, without weights and data.

    Rows are as long as data.seq_len says, all their tokens scored: what a record may ask for at the most.
    """
    family, hf_config = architecture
    length = row_length_of(config)
    check_routing(config, family, layout)
    layout.check_model(family.shape(hf_config), length)
    model_config = family.from_hf_config(hf_config, build_options(config, device, length, layout))
    loss = loss_settings(config)
    cell = build_preference_cell(family, model_config, loss, layout.of_model, config.data.layout)
    optimizer = build_optimizer(cell, config.optimizer, np.full(1, config.optimizer.learning_rate))
    step = build_step(cell, optimizer, config, layout, passes=1)
    step.set_train()
    return Graph(step, cell, (True, *fields_of(filler(config, length, length), layout)))


def row_length_of(config: Config) -> int:
    """Tokens of a row by the yaml alone; UserError where it does not say."""
    if config.data.seq_len is None:
        raise UserError("data.seq_len is null, and there is no record to take it from; set it, as in data.seq_len=4097")
    return row_length(config.data.seq_len)
