"""A run's config as a device."""

from __future__ import annotations

from mindrlhf.config.schema import Config
from mindrlhf.runtime.device import Device, ParallelSettings, setup


def setup_device(config: Config, one_model_each: bool = False) -> Device:
    """Join the cluster and lay the workers out as `parallel` says; `one_model_each`: every worker has a whole model."""
    if one_model_each:
        return setup(config.device.target, seed=config.seed)
    parallel = config.parallel
    settings = ParallelSettings(
        data_parallel=None if parallel.data_parallel == "auto" else int(parallel.data_parallel),
        model_parallel=parallel.model_parallel,
        pipeline_stage=parallel.pipeline_stage,
        optimizer_shard=parallel.optimizer_shard,
        strategy_folder=f"{config.output_dir}/strategy",
    )
    return setup(config.device.target, seed=config.seed, parallel=settings)
