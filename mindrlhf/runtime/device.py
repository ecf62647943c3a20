"""The one place that adapts to the device: Ascend or CPU, one process or many."""

from __future__ import annotations

import resource
import signal
import time
from dataclasses import dataclass

import numpy as np

from mindrlhf.runtime import logging
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.seed import set_seeds

TARGETS = ("auto", "CPU", "Ascend")
LINGER_SECONDS = 2.0
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Device:
    """What this process runs on; `rank` of `world` workers. pretended: it only compiles for such a device."""

    target: str
    rank: int = 0
    world: int = 1
    pretended: bool = False

    @property
    def flash_attention(self) -> bool:
        """Whether the Ascend kernels are there: flash attention, the fused norm and rotary embedding."""
        return self.target == "Ascend"

    @property
    def broadcasts_products(self) -> bool:
        """Whether a 4-D by 2-D batched product is taken, which Ascend's own compiler alone does."""
        return self.target == "Ascend" and not self.pretended

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

    def of_first(self, text: str) -> str:
        """Rank 0's text, of ASCII and as long as everyone's, on every worker."""
        codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.float32)
        return self.all_sum(codes if self.rank == 0 else 0 * codes).astype(np.uint8).tobytes().decode("ascii")

    def barrier(self) -> None:
        """Wait for all workers."""
        self.all_sum(np.zeros(1, np.float32))

    def leave(self) -> None:
        """To be called last: a worker that ends at once takes down a collective its slower peers are still in."""
        if self.world > 1:
            self.barrier()
            time.sleep(LINGER_SECONDS)


def setup(target: str = "auto", *, seed: int = 0) -> Device:
    """Choose the device and join the cluster; once per process, before any tensor is made.

    msrun starts one process more than there are workers, its scheduler, which runs the same script: it stays in here
    until the workers are done and then ends. So nothing is to be written before this call.

    Raises:
        UserError: no such target here.
    """
    target = find_target(target)

    import mindspore
    from mindspore import communication

    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    mindspore.set_device(target)
    if logging.world() == 1:
        # While MindSpore compiles or runs a graph it turns Ctrl-C into this signal, which would end us without a word.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        set_seeds(seed)
        return Device(target)
    communication.init()
    # It has put its own handler in place, with which Ctrl-C no longer reaches Python.
    signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))
    logging.mute_teardown()
    set_seeds(seed)
    return Device(target, communication.get_rank(), communication.get_group_size())


def find_target(target: str) -> str:
    """CPU or Ascend, for `device.target`; UserError for one that is not here."""
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
