"""A run's config as a device and a layout."""

from __future__ import annotations

from mindrlhf.config.schema import Config
from mindrlhf.parallel import context
from mindrlhf.parallel.layout import Layout
from mindrlhf.runtime import logging
from mindrlhf.runtime.device import Device, find_target, setup
from mindrlhf.runtime.errors import UserError


def setup_device(config: Config) -> Device:
    """Join the cluster; every worker has a whole model."""
    device = setup(config.device.target, seed=config.seed)
    context.enter(Layout(data_parallel=device.world), device.rank)
    return device


def setup_training(config: Config) -> tuple[Device, Layout]:
    """Join the cluster and lay the workers out as `parallel` says; UserError where that cannot be."""
    if find_target(config.device.target) == "CPU":
        for key in ("model_parallel", "pipeline_stage", "optimizer_shard"):
            if getattr(config.parallel, key) not in (1, False):
                raise UserError(
                    f"parallel.{key} needs Ascend: MindSpore's semi-auto parallel does not run on CPU; "
                    f"--only_save_strategy True compiles it here"
                )
    layout = Layout.of(config.parallel, logging.world())
    layout.check_batch(config.train.global_batch_pairs)
    device = setup(config.device.target, seed=config.seed)
    context.enter(layout, device.rank)
    return device, layout
