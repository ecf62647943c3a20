"""A layout, made known to MindSpore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mindrlhf.parallel.layout import Layout


def enter(layout: Layout, rank: int) -> None:
    """Set MindSpore's parallel context, once the workers have met."""
    import mindspore

    if not layout.semi_auto:
        if layout.world > 1:
            mindspore.set_auto_parallel_context(
                parallel_mode="data_parallel", gradients_mean=False, device_num=layout.world, global_rank=rank
            )
        return
    mindspore.set_auto_parallel_context(
        parallel_mode="semi_auto_parallel",
        gradients_mean=False,
        device_num=layout.world,
        global_rank=rank,
        dataset_strategy="full_batch",
        pipeline_stages=layout.pipeline_stage,
        enable_parallel_optimizer=layout.optimizer_shard,
    )
    if layout.optimizer_shard:
        # By default parameters under 64 KB stay whole, and small models would not be split at all.
        mindspore.set_auto_parallel_context(parallel_optimizer_config={"parallel_optimizer_threshold": 0})


@contextmanager
def recorded_strategy(path: Path) -> Iterator[None]:
    """What is compiled within it under semi-auto parallel leaves its layout in the file; in data parallel nothing does.

    Whatever is compiled later would write over it.
    """
    import mindspore

    mindspore.set_auto_parallel_context(strategy_ckpt_config={"save_file": str(path)})
    try:
        yield
    finally:
        mindspore.set_auto_parallel_context(strategy_ckpt_config={"save_file": ""})
