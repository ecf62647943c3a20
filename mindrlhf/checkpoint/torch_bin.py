"""PyTorch's own weight files (.bin), read through torch alone, where it is installed, and never with code in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mindrlhf.checkpoint.tensor_file import Spec
from mindrlhf.parallel.slices import Box, whole, within
from mindrlhf.runtime.errors import CorruptCheckpoint, UserError

if TYPE_CHECKING:
    from torch import Tensor

INSTALL = 'pip install -e ".[interop]"'
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


class TorchBin:
    """An opened .bin file, as `TensorFile`: `table` says what it holds, `read` gives one tensor.

    Raises `UserError` where torch is not installed or the file holds anything but tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.table = {name: self._spec(name, tensor) for name, tensor in self._load().items()}

    def _load(self) -> dict[str, Tensor]:
        """The tensors, whose bytes stay in the file until they are used."""
        try:
            import torch
        except ModuleNotFoundError:
            raise UserError(
                f"{self.path} is in PyTorch's format, which only torch reads: run {INSTALL} in the repository and give "
                f"the command again"
            ) from None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # a damaged pickle can raise anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CorruptCheckpoint(
                f"{self.path} is damaged, or no file of plain tensors of torch 1.6 or later ({reason}); copy it anew"
            ) from error
        if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
            raise UserError(f"{self.path} holds other things than tensors by name; give a file of weights alone")
        return found

    def _spec(self, name: str, tensor: Tensor) -> Spec:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise UserError(f"{self.path}: {name} is {dtype}, which is not supported; use other weights")
        return Spec(dtype, tuple(tensor.shape))

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """One tensor, or a box of it, its own dtype kept."""
        import mindspore  # noqa: F401  (registers bfloat16 with numpy)
        import torch

        # A mapping of its own for each tensor: pages that were read count as memory until their mapping ends.
        tensor = self._load()[name].detach()
        if box is not None:
            tensor = tensor[within(box, whole(tensor.shape))]
        if tensor.dtype == torch.bfloat16:
            return np.array(tensor.view(torch.int16).numpy(), order="C").view(np.dtype("bfloat16"))
        return np.array(tensor.numpy(), order="C")

    def check(self) -> None:
        """These files have no checksum."""

    def close(self) -> None:
        """Nothing is held open."""
