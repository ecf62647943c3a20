"""The tensors of weight files, whatever their format: what they are at once, their values one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Union

import numpy as np

from mindrlhf.checkpoint.ckpt_file import CkptFile
from mindrlhf.checkpoint.find import Weights
from mindrlhf.checkpoint.safetensors_file import SafetensorsFile, spelled
from mindrlhf.checkpoint.tensor_file import Spec
from mindrlhf.checkpoint.torch_bin import TorchBin
from mindrlhf.runtime.errors import CorruptCheckpoint, IncompleteCheckpoint, some
from mindrlhf.runtime.files import PathLike

Opened = Union[SafetensorsFile, CkptFile, TorchBin]
_READERS: dict[str, type[Opened]] = {".safetensors": SafetensorsFile, ".ckpt": CkptFile, ".bin": TorchBin}


class Tensors:
    """Weights, opened. specs: name -> dtype and shape. A context manager, which closes the files.

    Raises `CorruptCheckpoint` where a file is cut short, no weight file or repeats a tensor, and
    `IncompleteCheckpoint` where a tensor that the index announces is missing.
    """

    def __init__(self, weights: Weights) -> None:
        self.specs: dict[str, Spec] = {}
        self._files: list[Opened] = []
        self._holder: dict[str, Opened] = {}
        try:
            for path in weights.files:
                self._add(weights, path)
            missing = sorted(weights.promised - self.specs.keys())
            if missing:
                raise IncompleteCheckpoint(
                    f"{weights} lacks {len(missing)} tensors that its index announces: {some(missing)}"
                )
        except BaseException:
            self.close()
            raise

    def _add(self, weights: Weights, path: Path) -> None:
        file = _READERS[path.suffix](path)
        self._files.append(file)
        for name, spec in file.table.items():
            if name in self.specs:
                raise CorruptCheckpoint(f"{weights} holds {name} twice, the second time in {path.name}")
            self.specs[name], self._holder[name] = spec, file

    def read(self, name: str) -> np.ndarray:
        """One tensor, its own dtype kept."""
        return self._holder[name].read(name)

    def check(self) -> None:
        """Raise `CorruptCheckpoint` where a file does not agree with its checksum; to be called after the reading."""
        for file in self._files:
            file.check()

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Tensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_tensors(weights: Weights) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every tensor, one at a time, its own dtype kept.

    Raises as `Tensors`, and `CorruptCheckpoint` after the last tensor where a file fails its checksum.
    """
    with Tensors(weights) as opened:
        for name in opened.specs:
            yield name, opened.read(name)
        opened.check()


def read_weights(weights: Weights) -> dict[str, np.ndarray]:
    """Every tensor by name; raises as `read_tensors`."""
    return dict(read_tensors(weights))


def tensor_table(file: PathLike) -> dict[str, dict[str, Any]]:
    """Name -> {"dtype", "shape"} of a .safetensors file, in the words of the format, from its header alone."""
    opened = SafetensorsFile(Path(file))
    opened.close()
    return {name: {"dtype": spelled(spec), "shape": list(spec.shape)} for name, spec in opened.table.items()}
