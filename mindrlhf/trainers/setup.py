"""A run's config as a device and a layout."""

from __future__ import annotations

from pathlib import Path

from mindrlhf.config.schema import Config
from mindrlhf.parallel import context
from mindrlhf.parallel.layout import Layout
from mindrlhf.parallel.strategy import strategy_path
from mindrlhf.runtime import logging
from mindrlhf.runtime.device import Device, setup
from mindrlhf.runtime.errors import UserError


def setup_device(config: Config) -> Device:
    """Join the cluster; every worker has a whole model."""
    device = setup(config.device.target, seed=config.seed)
    context.enter(Layout(data_parallel=device.world), device.rank)
    return device


def setup_training(config: Config) -> tuple[Device, Layout]:
    """Join the cluster and lay the workers out as `parallel` says; UserError where that cannot be."""
    layout = Layout.of(config.parallel, logging.world())
    layout.check_batch(config.train.global_batch_pairs)
    device = setup(config.device.target, seed=config.seed)
    if layout.semi_auto and device.target == "CPU":
        keys = ("model_parallel", "pipeline_stage", "optimizer_shard")
        key = next(key for key in keys if getattr(layout, key) not in (1, False))
        raise UserError(
            f"parallel.{key} needs Ascend: MindSpore's semi-auto parallel does not run on CPU; "
            f"--only_save_strategy True compiles it here"
        )
    context.enter(layout, device.rank, strategy_path(Path(config.output_dir) / "strategy", device.rank))
    return device, layout
