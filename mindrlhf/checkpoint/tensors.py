"""The tensors of weight files, whatever their format: what they are at once, their values one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Union

import numpy as np

from mindrlhf.checkpoint.find import Weights, is_rank_folder
from mindrlhf.checkpoint.rank_manifest import READERS, RankFile, read_manifest
from mindrlhf.checkpoint.rank_slices import RankSlices
from mindrlhf.checkpoint.safetensors_file import SafetensorsFile, spelled
from mindrlhf.checkpoint.tensor_file import Spec
from mindrlhf.checkpoint.torch_bin import TorchBin
from mindrlhf.parallel.slices import Box
from mindrlhf.runtime.errors import CorruptCheckpoint, IncompleteCheckpoint, UserError, some
from mindrlhf.runtime.files import PathLike

Opened = Union[RankFile, TorchBin, RankSlices]


class Tensors:
    """Weights, opened. specs: name -> dtype and full shape. A context manager, which closes the files.

    The slices of many ranks look like the whole tensors that they make up. Raises `CorruptCheckpoint` where a file is
    cut short, no weight file or repeats a tensor, and `IncompleteCheckpoint` where a tensor that the index announces is
    missing; of slices as `RankSlices`.
    """

    def __init__(self, weights: Weights) -> None:
        self.specs: dict[str, Spec] = {}
        self._files: list[Opened] = []
        self._holder: dict[str, Opened] = {}
        try:
            if weights.strategy:
                self._add(weights, RankSlices(weights.files, weights.format, weights.strategy))
            else:
                for path in weights.files:
                    self._add(weights, _whole_file(path, weights.format))
            missing = sorted(weights.promised - self.specs.keys())
            if missing:
                raise IncompleteCheckpoint(
                    f"{weights} lacks {len(missing)} tensors that its index announces: {some(missing)}"
                )
        except BaseException:
            self.close()
            raise

    def _add(self, weights: Weights, file: Opened) -> None:
        self._files.append(file)
        for name, spec in file.table.items():
            if name in self.specs:
                raise CorruptCheckpoint(f"{weights} holds {name} twice, the second time in {file.path.name}")
            self.specs[name], self._holder[name] = spec, file

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """One tensor, its own dtype kept; of a box, (start, stop) by axis, the bytes of the box alone are read."""
        return self._holder[name].read(name, box)

    def tables(self) -> list[dict[str, Spec]]:
        """What each file holds."""
        return [file.table for file in self._files]

    def check(self, share: int = 0, of: int = 1) -> None:
        """Raise `CorruptCheckpoint` where a file does not agree with its manifest or checksum; to be called last.

        Of `of` processes that load the same weights each reads the `share`-th part of the files for it.
        """
        for number, file in enumerate(self._files):
            if isinstance(file, RankSlices):
                file.check(share, of)
            elif number % of == share:
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


def _whole_file(path: Path, kind: str) -> Opened:
    """A file of whole tensors, compared with its manifest where it is that of a rank."""
    if kind == "bin":
        return TorchBin(path)
    file = READERS[kind](path)
    if is_rank_folder(path.parent):
        try:
            manifest = read_manifest(file)
        except BaseException:
            file.close()
            raise
        if manifest and manifest.boxes:
            file.close()
            raise UserError(
                f"{path} holds the slices of one rank by its manifest; put the strategy folder of the run beside "
                f"{path.parent.parent}, and give that"
            )
    return file


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
