"""The one place that adapts to the device: Ascend or CPU, one process or many."""

from __future__ import annotations

import resource
import signal
import time
from dataclasses import dataclass, field, replace

import numpy as np

from mindrlhf.runtime import logging
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.seed import set_seeds

TARGETS = ("auto", "CPU", "Ascend")
LINGER_SECONDS = 2.0
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ParallelSettings:
    """How the model is spread: data_parallel x model_parallel x pipeline_stage = workers.

    data_parallel None is what the others leave. `strategy_folder`: where a semi-auto run writes its layout.
    """

    data_parallel: int | None = None
    model_parallel: int = 1
    pipeline_stage: int = 1
    optimizer_shard: bool = False
    strategy_folder: str | None = None

    @property
    def semi_auto(self) -> bool:
        """Whether MindSpore's parallel passes split tensors, so that they insert the communication themselves."""
        return self.model_parallel > 1 or self.pipeline_stage > 1 or self.optimizer_shard


@dataclass(frozen=True)
class Device:
    """What this process runs on; `rank` of `world` workers."""

    target: str
    rank: int = 0
    world: int = 1
    parallel: ParallelSettings = field(default_factory=ParallelSettings)

    @property
    def data_parallel(self) -> int:
        """Number of groups of workers that each see their own pairs."""
        return self.parallel.data_parallel or 1

    @property
    def flash_attention(self) -> bool:
        """Whether the Ascend kernels are there: flash attention, the fused norm and rotary embedding."""
        return self.target == "Ascend"

    @property
    def explicit_reduction(self) -> bool:
        """Whether we sum gradients over workers ourselves (one process, data parallel) and not the parallel passes."""
        return not self.parallel.semi_auto

    def compute_dtype(self, dtype: str = "auto") -> str:
        """The type of matrix products for `model.dtype`: auto is float32 on CPU, bfloat16 on Ascend."""
        if dtype == "auto":
            return "float32" if self.target == "CPU" else "bfloat16"
        if dtype not in COMPUTE_DTYPES:
            raise UserError(f"model.dtype: '{dtype}' is not one of auto, {', '.join(COMPUTE_DTYPES)}")
        if dtype == "bfloat16" and self.target == "CPU":
            raise UserError("model.dtype: MindSpore has no bfloat16 kernels on CPU; use auto, float32 or float16")
        return dtype

    def peak_memory_mib(self) -> float:
        """The most memory this worker has held: of the device on Ascend, of the process on CPU."""
        if self.target == "CPU":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        import mindspore

        return mindspore.runtime.max_memory_allocated() / 2**20

    def all_sum(self, array: np.ndarray) -> np.ndarray:
        """Sum over workers, the same on each, of its shape and dtype (floating point, or counts up to 2^48).

        For metrics and counts, not for gradients: every worker receives all arrays and adds them in float64, in rank
        order. They travel as two float32 halves, the only type that the CPU collectives carry.
        """
        if self.world == 1:
            return array
        from mindspore import Tensor, ops

        value = np.asarray(array, np.float64)
        high = value.astype(np.float32)
        halves = np.stack([high, (value - high).astype(np.float32)]).reshape(1, 2, -1)
        gathered = ops.AllGather()(Tensor(halves)).asnumpy()
        return gathered.sum(axis=(0, 1), dtype=np.float64).reshape(value.shape).astype(array.dtype)

    def barrier(self) -> None:
        """Wait for all workers."""
        self.all_sum(np.zeros(1, np.float32))

    def leave(self) -> None:
        """To be called last: a worker that ends at once takes down a collective its slower peers are still in."""
        if self.world > 1:
            self.barrier()
            time.sleep(LINGER_SECONDS)


def setup(target: str = "auto", *, seed: int = 0, parallel: ParallelSettings = ParallelSettings()) -> Device:
    """Choose the device, join the cluster, set MindSpore's context; once per process, before any tensor is made.

    msrun starts one process more than there are workers, its scheduler, which runs the same script: it stays in here
    until the workers are done and then ends. So nothing is to be written before this call.

    Raises:
        UserError: no such target here, or a layout that does not fit the workers or the target.
    """
    target = _find_target(target)
    parallel = _fit(parallel, target, logging.world())

    import mindspore
    from mindspore import communication

    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    mindspore.set_device(target)
    if logging.world() == 1:
        # While MindSpore compiles or runs a graph it turns Ctrl-C into this signal, which would end us without a word.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        set_seeds(seed)
        return Device(target, parallel=parallel)
    communication.init()
    # It has put its own handler in place, with which Ctrl-C no longer reaches Python.
    signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))
    logging.mute_teardown()
    set_seeds(seed)
    device = Device(target, communication.get_rank(), communication.get_group_size(), parallel)
    if not parallel.semi_auto:
        mindspore.set_auto_parallel_context(
            parallel_mode="data_parallel", gradients_mean=False, device_num=device.world, global_rank=device.rank
        )
        return device
    mindspore.set_auto_parallel_context(
        parallel_mode="semi_auto_parallel",
        gradients_mean=False,
        device_num=device.world,
        global_rank=device.rank,
        dataset_strategy="full_batch",
        pipeline_stages=parallel.pipeline_stage,
        enable_parallel_optimizer=parallel.optimizer_shard,
    )
    if parallel.optimizer_shard:
        # By default parameters under 64 KB stay whole, and small models would not be split at all.
        mindspore.set_auto_parallel_context(parallel_optimizer_config={"parallel_optimizer_threshold": 0})
    if parallel.strategy_folder:
        file = f"{parallel.strategy_folder}/ckpt_strategy_rank_{device.rank}.ckpt"
        mindspore.set_auto_parallel_context(strategy_ckpt_config={"save_file": file})
    return device


def _find_target(target: str) -> str:
    if target not in TARGETS:
        raise UserError(f"device.target: '{target}' is not one of {', '.join(TARGETS)}")
    if target == "CPU":
        return target
    from mindspore import device_context

    if device_context.ascend.is_available():
        return "Ascend"
    if target == "Ascend":
        raise UserError("device.target: this MindSpore finds no Ascend device; use CPU, or install the Ascend runtime")
    return "CPU"


def _fit(parallel: ParallelSettings, target: str, world: int) -> ParallelSettings:
    """The settings with data_parallel filled in."""
    if parallel.pipeline_stage > 1:
        raise UserError(
            f"parallel.pipeline_stage is {parallel.pipeline_stage}; pipelines are not supported for training yet, use 1"
        )
    if target == "CPU" and parallel.semi_auto:
        for name in ("model_parallel", "optimizer_shard"):
            if getattr(parallel, name) > 1 or getattr(parallel, name) is True:
                raise UserError(f"parallel.{name} needs Ascend: MindSpore's semi-auto parallel does not run on CPU")
    inner = parallel.model_parallel * parallel.pipeline_stage
    data_parallel = parallel.data_parallel or world // inner
    if data_parallel * inner != world:
        raise UserError(
            f"parallel: data_parallel {parallel.data_parallel or 'auto'} x model_parallel {parallel.model_parallel} x "
            f"pipeline_stage {parallel.pipeline_stage} does not make the {world} processes that run; "
            f"use parallel.data_parallel=auto"
        )
    return replace(parallel, data_parallel=data_parallel)
