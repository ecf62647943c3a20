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
def recorded_strategy(path: Path, trained_only: bool = True) -> Iterator[None]:
    """What is compiled within it under semi-auto parallel leaves its layout in the file; in data parallel nothing does.

    trained_only: of parameters that have a gradient alone. Whatever is compiled later would write over the file.
    """
    import mindspore

    def record(file: str, trained_only: bool) -> None:
        words = {"save_file": file, "only_trainable_params": trained_only}
        mindspore.set_auto_parallel_context(strategy_ckpt_config=words)

    record(str(path), trained_only)
    try:
        yield
    finally:
        record("", True)
