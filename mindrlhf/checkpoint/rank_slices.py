"""The slices of many ranks, opened as whole tensors: what a rank holds is read where it lies, and nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindrlhf.checkpoint.find import is_rank_folder
from mindrlhf.checkpoint.rank_manifest import READERS, RankFile, RankManifest, read_manifest, require_one_save
from mindrlhf.checkpoint.tensor_file import Spec, named
from mindrlhf.parallel.slices import Box, Uncut, box_of, common, extent, full_shape, relative, whole, within
from mindrlhf.parallel.strategy import Strategy, TensorLayout
from mindrlhf.runtime.errors import CorruptCheckpoint, IncompleteCheckpoint, UserError, some
from mindrlhf.runtime.logging import warn_once

FILES_OPEN = 64  # at once; a process may have 1024, and a run more ranks

_STEP = re.compile(r"-(\d+_\d+)$")  # how MindSpore ends the name of a checkpoint: epoch and step


@dataclass(frozen=True)
class Part:
    """A box of a tensor and the ranks that hold it, ascending: the same bytes each."""

    box: Box
    ranks: tuple[int, ...]


class RankSlices:
    """The files of ranks 0 to N - 1, opened.

    table: name -> dtype and full shape. parts: name -> the boxes that make the tensor up, disjoint, and who holds each.
    Raises, naming the file, where a file is damaged, holds other tensors than its strategy, slices of another shape, or
    is of another save than the rest.
    """

    def __init__(
        self, files: Sequence[Path], kind: str, strategy: Strategy, *, beside: bool = True, owned: bool = True
    ) -> None:
        """kind: "safetensors" or "ckpt". beside: whether manifests may lie beside the files, and their lack is said.

        owned: whether the file of a rank must be its own.
        """
        self.strategy = strategy
        self.kind = kind
        self.beside = beside
        folder = files[0].parent
        self.path = folder.parent if is_rank_folder(folder) else folder
        self.table: dict[str, Spec] = {}
        self.parts: dict[str, list[Part]] = {}
        self.files: list[RankFile] = []
        self._recent: list[RankFile] = []
        known: dict[Path, RankFile] = {}
        self.manifests: list[RankManifest | None] = []
        for path in files:
            if path not in known:
                known[path] = READERS[kind](path)
            file = known[path]
            try:
                self.manifests.append(read_manifest(file) if beside else None)
            finally:
                file.close()
            self.files.append(file)
        require_one_save(self.manifests, files)
        _require_one_name(files)
        self._take_in()
        if owned:
            self._check_owners()
        unsure = [file for file, manifest in zip(self.files, self.manifests) if not manifest and not file.checked]
        if beside and unsure:
            warn_once(f"{self.path} has no manifest of ours: all is checked but for flipped bits, which cannot be seen")

    def _take_in(self) -> None:
        """Fill `table` and `parts`."""
        saved = {name for file in self.files for name in file.table}
        wanted = {name for name in self.strategy.names if name in saved or name not in self.strategy.states}
        holders: dict[str, dict[Box, list[int]]] = {}
        for rank, file in enumerate(self.files):
            layouts = self.strategy.stage_of(rank)
            missing = [name for name in layouts if name in wanted and name not in file.table]
            if missing:
                raise IncompleteCheckpoint(
                    f"{file.path} lacks {len(missing)} of {len(layouts)} tensors of its strategy: {some(missing)}"
                )
            foreign = [name for name in file.table if name not in self.strategy.names]
            if foreign:
                raise UserError(
                    f"{file.path} holds {len(foreign)} tensors that its strategy {self.strategy.source} does not know: "
                    f"{some(foreign)}"
                )
            for name, spec in file.table.items():
                box = self._box(rank, name, spec)
                holders.setdefault(name, {}).setdefault(box, []).append(rank)
        for name, boxes in holders.items():
            self.parts[name] = [Part(box, tuple(ranks)) for box, ranks in sorted(boxes.items())]
            volume = sum(math.prod(extent(part.box)) for part in self.parts[name])
            if volume != math.prod(self.table[name].shape):
                raise UserError(
                    f"{self.strategy.source} cuts {name} otherwise for one stage than for another, which is not "
                    f"supported"
                )

    def _layout(self, rank: int, name: str) -> tuple[TensorLayout, int]:
        """The layout of a tensor in the file of a rank, and the rank's number in its stage."""
        layouts = self.strategy.stage_of(rank)
        if name not in layouts:  # a tied tensor that another stage owns
            layouts = next(stage for stage in self.strategy.stages if name in stage)
        return layouts[name], rank % self.strategy.size

    def _box(self, rank: int, name: str, spec: Spec) -> Box:
        """The box that a rank's slice is; its full shape and dtype must be those of the ranks before."""
        path = self.files[rank].path
        layout, number = self._layout(rank, name)
        try:
            full = Spec(spec.dtype, full_shape(layout, spec.shape))
        except Uncut as error:
            raise UserError(f"{path} holds {name} otherwise than {self.strategy.source} says: {error}") from None
        first = self.table.setdefault(name, full)
        if full != first:
            other = next(file.path for file in self.files if name in file.table)
            raise CorruptCheckpoint(
                f"{path} holds {name} as {spec.dtype} {spec.shape}, a slice of {full.shape} by its strategy, where "
                f"{other} holds one of {first.dtype} {first.shape}: is the strategy that of this checkpoint?"
            )
        box, manifest = box_of(layout, full.shape, number), self.manifests[rank]
        said = manifest.boxes.get(name) if manifest else None
        if said is not None and said != [list(bounds) for bounds in box]:
            raise CorruptCheckpoint(
                f"{path} holds {_spelled(said)} of {name} by its manifest, and by {self.strategy.source} it would be "
                f"{_spelled(box)}: that is the strategy of another layout, or the file of another rank"
            )
        return box

    def _check_owners(self) -> None:
        """A file may be a copy of another rank's only where the strategy gives both the same slices."""
        for rank, manifest in enumerate(self.manifests):
            if manifest is None:
                continue
            file, owner = self.files[rank], manifest.rank
            if manifest.world > self.strategy.world:
                raise UserError(
                    f"{file.path} is of a run of {manifest.world} ranks by its manifest, and {self.strategy.source} is "
                    f"for {self.strategy.world}; give the strategy of all its stages"
                )
            if owner == rank:
                continue
            if owner >= self.strategy.world or any(
                self._box_or_none(owner, name) != self._box_or_none(rank, name) for name in file.table
            ):
                raise CorruptCheckpoint(
                    f"{file.path} is the file of rank {owner} of {manifest.world} by its manifest, and the strategy "
                    f"gives rank {rank} other slices; copy the right one"
                )

    def _box_or_none(self, rank: int, name: str) -> Box | None:
        layout = self.strategy.stage_of(rank).get(name)
        try:
            return box_of(layout, self.table[name].shape, rank % self.strategy.size) if layout else None
        except Uncut:
            return None

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """One tensor, or a box of it, its own dtype kept; of a slice that several ranks hold the first is read."""
        return named(self.read_raw(name, box), self.table[name])

    def read_raw(self, name: str, box: Box | None = None) -> np.ndarray:
        """The same as numbers of `Spec.raw`."""
        spec = self.table[name]
        box = whole(spec.shape) if box is None else box
        pieces = list(self.pieces(name, box))
        if len(pieces) == 1:
            return self.read_part(name, *pieces[0])
        found = np.empty(extent(box), spec.raw)
        for part, shared in pieces:
            found[within(shared, box)] = self.read_part(name, part, shared)
        return found

    def pieces(self, name: str, box: Box) -> Iterator[tuple[Part, Box]]:
        """The parts of a tensor that a box meets, and what it has in common with each."""
        for part in self.parts[name]:
            shared = common(part.box, box)
            if shared is not None or not math.prod(extent(box)):
                yield part, box if shared is None else shared
                if shared is None or shared == box:
                    return

    def read_part(self, name: str, part: Part, box: Box, holder: int = 0) -> np.ndarray:
        """A box within one part, from the file of the `holder`-th rank that holds it."""
        file = self.files[part.ranks[holder]]
        if file not in self._recent:
            self._recent.append(file)
            if len(self._recent) > FILES_OPEN:
                self._recent.pop(0).close()
        return file.read_raw(name, relative(box, part.box))

    def check(self, share: int = 0, of: int = 1) -> None:
        """Raise `CorruptCheckpoint` where a file is not what its manifest says, or fails its checksum.

        All files are read, of `of` readers by each the `share`-th part.
        """
        distinct = {id(file): rank for rank, file in reversed(list(enumerate(self.files)))}
        for rank in sorted(distinct.values())[share::of]:
            self.check_file(rank)
            self.files[rank].close()

    def check_file(self, rank: int) -> None:
        """The same for the file of one rank."""
        file, manifest = self.files[rank], self.manifests[rank]
        if manifest is None:
            file.check()
            return
        for name, expected in manifest.sha256.items():
            if file.sha256(name) != expected:
                raise CorruptCheckpoint(
                    f"{file.path} is damaged: the sha256 of {name} is not the one in its manifest; copy it anew"
                )

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()


def slices_of(specs: Mapping[str, Spec], strategy: Strategy, rank: int) -> dict[str, Box]:
    """Which boxes of full tensors a rank holds by a strategy: those of its stage, an optimizer's states left out.

    Raises `UserError` where a tensor is not one of `specs` or cannot be cut so.
    """
    boxes = {}
    for name, layout in strategy.stage_of(rank).items():
        if name not in specs:
            if name in strategy.states:
                continue
            raise IncompleteCheckpoint(f"{strategy.source} has a layout of {name}, which the checkpoint does not hold")
        try:
            boxes[name] = box_of(layout, specs[name].shape, rank % strategy.size)
        except Uncut as error:
            raise UserError(f"{strategy.source} does not fit {name}: {error}") from None
    return boxes


def _spelled(box: Iterable[Sequence[int]]) -> str:
    return f"[{', '.join(f'{start}:{stop}' for start, stop in box)}]"


def _require_one_name(files: Sequence[Path]) -> None:
    """Raise where the names that MindSpore gave the files say different steps."""
    steps = [_STEP.search(file.stem) for file in files]
    for file, step in zip(files, steps):
        if step and steps[0] and step[1] != steps[0][1]:
            raise CorruptCheckpoint(
                f"{files[0]} and {file} are of different steps by their names; copy all ranks from one save"
            )
