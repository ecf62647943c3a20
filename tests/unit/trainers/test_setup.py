"""What training on CPU refuses before it starts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mindrlhf.config.schema import Config, Parallel
from mindrlhf.runtime.errors import UserError
from mindrlhf.trainers.setup import setup_training

SPLITS = {"model_parallel": 2, "context_parallel": 2, "pipeline_stage": 2, "optimizer_shard": True}


@pytest.mark.parametrize(("key", "value"), SPLITS.items())
def test_split_tensors_need_ascend(key: str, value: object) -> None:
    on_cpu = replace(Config().device, target="CPU")
    config = replace(Config(), parallel=replace(Parallel(), **{key: value}), device=on_cpu)
    with pytest.raises(UserError, match=rf"parallel\.{key} needs Ascend: .* --dry_run_world_size N compiles it here"):
        setup_training(config)
