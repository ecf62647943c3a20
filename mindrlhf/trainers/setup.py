"""A run's config as a device and a layout."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import numpy as np

from mindrlhf.config.schema import Config, Parallel
from mindrlhf.parallel import context
from mindrlhf.parallel.layout import Layout
from mindrlhf.runtime import logging
from mindrlhf.runtime.device import Device, find_target, setup
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import write_text

SHARED_SECONDS = 15.0  # that a network's file system may take to show a file


def setup_device(config: Config) -> Device:
    """Join the cluster; every worker has a whole model."""
    device = setup(config.device.target, seed=config.seed)
    context.enter(Layout(data_parallel=device.world), device.rank)
    return device


def setup_training(config: Config) -> tuple[Device, Layout]:
    """Join the cluster and lay the workers out as `parallel` says; UserError where that cannot be."""
    if find_target(config.device.target) == "CPU":
        given = config.parallel
        for key in ("model_parallel", "context_parallel", "pipeline_stage", "optimizer_shard"):
            if getattr(given, key) != getattr(Parallel(), key):
                raise UserError(
                    f"parallel.{key} needs Ascend: MindSpore's semi-auto parallel does not run on CPU; "
                    f"--only_save_strategy True --dry_run_world_size N compiles it here for N workers"
                )
    layout = Layout.of(config.parallel, logging.world())
    layout.check_batch(config.train.global_batch_pairs)
    device = setup(config.device.target, seed=config.seed)
    context.enter(layout, device.rank)
    _require_shared(Path(config.output_dir), device)
    return device, layout


def _require_shared(output: Path, device: Device) -> None:
    """UserError where workers, of several machines, do not see one folder: what they save belongs together."""
    if device.world == 1:
        return
    token = device.of_first(uuid.uuid4().hex)
    mark = output / f".shared-{token}"
    if device.rank == 0:
        write_text(mark, "")
    device.barrier()
    end = time.monotonic() + SHARED_SECONDS
    while not mark.exists() and time.monotonic() < end:
        time.sleep(0.1)
    seen = int(device.all_sum(np.array([mark.exists()], np.float32))[0])
    if device.rank == 0:
        mark.unlink(missing_ok=True)
    if seen < device.world:
        raise UserError(
            f"{output} is seen by {seen} of {device.world} workers; set output_dir to a folder that all machines share"
        )
