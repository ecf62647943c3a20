"""The graph of a DPO step: as training runs it, and alone, without weights and data, to be compiled."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn

from mindrlhf.cells.pipeline import MicroBatches, PipelineStep
from mindrlhf.cells.train_step import TrainStep
from mindrlhf.config.schema import Config
from mindrlhf.data.batches import split_micro_batches
from mindrlhf.data.rows import COLLATIONS, Rows, row_length
from mindrlhf.parallel.dry_run import Graph
from mindrlhf.parallel.layout import Layout
from mindrlhf.runtime.device import Device
from mindrlhf.runtime.errors import UserError
from mindrlhf.trainers.architecture import Architecture
from mindrlhf.trainers.optimizer import build_optimizer
from mindrlhf.trainers.policy import build_options, check_routing
from mindrlhf.trainers.registry import LossSettings, build_preference_cell, loss_settings


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


def check_layout(config: Config, layout: Layout, loss: LossSettings) -> None:
    """UserError for what a run cannot do under its layout."""
    train = config.train
    micro, passes = split_micro_batches(train.global_batch_pairs, layout.data_parallel, train.micro_batch_pairs)
    if passes > 1 and layout.semi_auto:
        raise UserError(
            f"train.micro_batch_pairs: a step of several passes is not supported with model_parallel, "
            f"context_parallel, pipeline_stage or optimizer_shard; use {micro * passes}, or a smaller "
            f"train.global_batch_pairs"
        )
    if layout.pipeline_stage > 1 and (config.data.eval or loss.reference == "online"):
        raise UserError(
            f"parallel.pipeline_stage is {layout.pipeline_stage}, in which a model is trained alone; leave "
            f"--eval_dataset and rlhf.reference=online out, and evaluate the merged weights with --run_mode eval"
        )


def filler(config: Config, layout: Layout, length: int, scored: int) -> Rows:
    """What a worker is given of a batch in one pass, of no pairs: rows of `length` tokens, `scored` of them scored.

    Under semi-auto parallel that is the whole batch, of which the passes take each worker's part.
    """
    pairs = config.train.global_batch_pairs
    if not layout.semi_auto:
        pairs, _ = split_micro_batches(pairs, layout.data_parallel, config.train.micro_batch_pairs)
    return COLLATIONS[config.data.layout].collate([None] * pairs, length, scored, 1, 1)


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
    check_layout(config, layout, loss)
    cell = build_preference_cell(family, model_config, loss, layout.of_model, config.data.layout)
    optimizer = build_optimizer(cell, config.optimizer, np.full(1, config.optimizer.learning_rate))
    train = config.train
    _, passes = split_micro_batches(train.global_batch_pairs, layout.data_parallel, train.micro_batch_pairs)
    step = build_step(cell, optimizer, config, layout, passes)
    step.set_train()
    return Graph(step, cell, (True, *fields_of(filler(config, layout, length, length), layout)))


def row_length_of(config: Config) -> int:
    """Tokens of a row by the yaml alone; UserError where it does not say."""
    if config.data.seq_len is None:
        raise UserError("data.seq_len is null, and there is no record to take it from; set it, as in data.seq_len=4097")
    return row_length(config.data.seq_len)
