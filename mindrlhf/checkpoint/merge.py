"""From the checkpoint of one layout to that of another, or to a single one: slice by slice, everything verified."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from mindrlhf.checkpoint.ckpt_file import CkptPlan
from mindrlhf.checkpoint.destination import link_or_copy, no_folder_left, require_room, sweep
from mindrlhf.checkpoint.find import HUGGING_FACE, NETWORK, SUFFIXES, rank_folders
from mindrlhf.checkpoint.rank_manifest import announce, write_rank_manifest
from mindrlhf.checkpoint.rank_slices import RankSlices, slices_of
from mindrlhf.checkpoint.safetensors_file import SafetensorsPlan
from mindrlhf.checkpoint.scan import Plan, TargetFile
from mindrlhf.checkpoint.scan_all import require_own_slices, scan_all
from mindrlhf.checkpoint.sources import open_source, whole_strategy
from mindrlhf.checkpoint.store import TENSORS, carry_files, network_file
from mindrlhf.checkpoint.tensor_file import Spec
from mindrlhf.parallel.slices import Box, extent
from mindrlhf.parallel.strategy import STRATEGY, Strategy, read_strategies, strategy_path, strategy_ranks, write_stages
from mindrlhf.runtime.errors import CorruptCheckpoint, UserError, some
from mindrlhf.runtime.files import PathLike, replacing, write_json

Check = Callable[[RankSlices, Path], None]


@dataclass(frozen=True)
class Transformed:
    """What was done. path: the file of rank 0. sources, targets: ranks read and written. size: bytes of the tensors.

    carried: names of the files copied beside the rank folders.
    """

    path: Path
    sources: int
    targets: int
    tensors: int
    size: int
    carried: tuple[str, ...]


def transform(
    src_checkpoint: PathLike,
    dst_checkpoint: PathLike,
    *,
    src_strategy: PathLike | None = None,
    dst_strategy: PathLike | None = None,
    kind: str | None = None,
    processes: int | None = None,
    check: Check | None = None,
) -> Transformed:
    """Write the checkpoint at `src_checkpoint` as `DST/checkpoint_network/rank_K/checkpoint_0.<kind>`.

    src_checkpoint, src_strategy: see `open_source`. dst_strategy: the strategy folder of the layout to write, copied
    to `DST/strategy`; where not given, one rank holds everything. kind: "safetensors" or "ckpt", the source's where not
    given. check: raises where names and full shapes are not those of the model beside the source. Raises a `UserError`
    that names file and reason where anything is missing, foreign, damaged or contradictory. What was written is read
    back and compared before it appears.
    """
    source, beside = open_source(src_checkpoint, src_strategy)
    try:
        if check:
            check(source, beside)
        network = Path(dst_checkpoint) / NETWORK
        strategy = read_strategies(dst_strategy) if dst_strategy else whole_strategy([source.table], network)
        _require_target(Path(src_checkpoint), beside, network, strategy)
        slices = _slices(source, strategy)
        _write(source, network, strategy, slices, kind or source.kind, processes)
    finally:
        source.close()
    carried = tuple(carry_files(beside, network))
    size = sum(spec.nbytes for spec in source.table.values())
    path = network_file(dst_checkpoint, 0).with_suffix(f".{kind or source.kind}")
    return Transformed(path, len(source.files), strategy.world, len(source.table), size, carried)


def table_of(specs: Mapping[str, Spec], sha256: Mapping[str, str]) -> dict[str, Any]:
    """What `tensors.json` says of whole tensors."""
    return {
        "tensors": {
            name: {"dtype": spec.dtype, "shape": list(spec.shape), "sha256": sha256[name]}
            for name, spec in specs.items()
        }
    }


@dataclass(frozen=True)
class _Slices:
    """What ranks will hold. boxes: of each file that differs from the others. of_rank: the number of its file."""

    boxes: list[dict[str, Box]]
    of_rank: list[int]


def _slices(source: RankSlices, strategy: Strategy) -> _Slices:
    unknown = [name for name in source.table if name not in strategy.names]
    if unknown:
        raise UserError(
            f"{strategy.source} has no layout of {len(unknown)} tensors that {source.path} holds: {some(unknown)}; is "
            f"it the strategy of this model, and are the weights under MindFormers' names (tools/convert_weight.py)?"
        )
    boxes: list[dict[str, Box]] = []
    of_rank: list[int] = []
    known: dict[tuple[tuple[str, Box], ...], int] = {}
    for rank in range(strategy.world):
        mine = slices_of(source.table, strategy, rank)
        key = tuple(sorted(mine.items()))
        if key not in known:
            known[key] = len(boxes)
            # The order of the source: a .ckpt file keeps it.
            boxes.append({name: mine[name] for name in source.table if name in mine})
        of_rank.append(known[key])
    return _Slices(boxes, of_rank)


def _require_target(named: Path, beside: Path, network: Path, strategy: Strategy) -> None:
    # Beside a single file a user may well write its slices.
    if named.is_dir() and beside.resolve() in network.resolve().parents:
        raise UserError(f"the result would lie within its source {beside}: give another destination")
    # Else the folder would be two models, of which one is never read.
    theirs = next((name for name in HUGGING_FACE if (network.parent / name).exists()), None)
    if theirs:
        raise UserError(f"{network.parent} holds a Hugging Face model ({theirs}): give another destination")
    if network.is_dir():
        if network.samefile(beside):
            raise UserError(f"the result would replace its source {beside}: give another destination")
        ranks = [place.name for rank, place in rank_folders(network).items() if rank > 0]
        if ranks:
            raise UserError(f"{network} holds the ranks of a run ({some(ranks)}): give another destination")
    folder = network.parent / STRATEGY
    others = strategy_ranks(folder) if folder.is_dir() else []
    if strategy.world == 1 and len(others) > 1:
        raise UserError(f"{folder} is the strategy of {len(others)} ranks: give another destination")


def _write(
    source: RankSlices, network: Path, strategy: Strategy, slices: _Slices, kind: str, processes: int | None
) -> None:
    """Write the files of all ranks, read them back, and let them appear, their manifests last."""
    paths = [network / f"rank_{rank}" / f"checkpoint_0.{kind}" for rank in range(strategy.world)]
    first = [paths[slices.of_rank.index(number)] for number in range(len(slices.boxes))]
    plans = [_plan(_specs(source, boxes), kind) for boxes in slices.boxes]
    require_room(network, sum(plan.size for plan in plans))
    with no_folder_left(network), contextlib.ExitStack() as stack:
        targets = []
        for path, plan, boxes in zip(first, plans, slices.boxes):
            sweep(path.parent)
            temporary = stack.enter_context(replacing(path))
            with temporary.open("wb") as file:
                file.truncate(plan.size)
            targets.append(TargetFile(temporary, plan, boxes))
        sums = _fill(source, targets, processes)
        _read_back(strategy, slices.of_rank, targets, kind, sums, processes)
        _require_known(source, table_of(source.table, sums[0]))
        _publish_strategy(strategy, network.parent / STRATEGY)
        (network / TENSORS).unlink(missing_ok=True)
        for path in first:
            announce(path.parent)
    save, step = uuid.uuid4().hex, source.manifests[0].step if source.manifests[0] else None
    for rank, (path, number) in enumerate(zip(paths, slices.of_rank)):
        if path != first[number]:
            link_or_copy(first[number], path)
        for suffix in SUFFIXES:
            if suffix != path.suffix:
                path.with_suffix(suffix).unlink(missing_ok=True)
        boxes = slices.boxes[number] if strategy.world > 1 else {}
        write_rank_manifest(path, sums[1][number], boxes, rank=rank, world=strategy.world, step=step, save=save)
    write_json(network / TENSORS, table_of(source.table, sums[0]))


def _require_known(source: RankSlices, found: Mapping[str, Any]) -> None:
    """Raise where a source without manifests has other tensors than the table that an earlier transform left in it."""
    table = source.path / TENSORS
    if any(source.manifests) or not table.is_file():
        return
    try:
        known = json.loads(table.read_text(encoding="utf-8"))
        others = sorted(name for name in found if known[name] != found[name])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpoint(f"{table} is damaged ({error!r}); remove it, or copy it anew") from None
    if others:
        raise CorruptCheckpoint(
            f"{source.path} makes up other tensors than its {TENSORS} says: {some(others)}; ranks were exchanged, or "
            f"files are of another save: copy all of them anew, with their manifests"
        )


def _specs(source: RankSlices, boxes: Mapping[str, Box]) -> dict[str, Spec]:
    return {name: Spec(source.table[name].dtype, extent(box)) for name, box in boxes.items()}


def _plan(specs: Mapping[str, Spec], kind: str) -> Plan:
    return CkptPlan(specs) if kind == "ckpt" else SafetensorsPlan(specs)


def _fill(
    source: RankSlices, targets: Sequence[TargetFile], processes: int | None
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Write all tensors and seal the files; the digests of whole tensors, and of what each file holds."""
    sums: list[dict[str, list[int]]] = [{} for _ in targets]
    sha256: list[dict[str, str]] = [{} for _ in targets]
    scanned = scan_all(source, targets, processes, "transform")
    require_own_slices(source, scanned)
    for found in scanned:
        for piece in found.written:
            sums[piece.target][found.name], sha256[piece.target][found.name] = piece.sums, piece.sha256
    for target, crcs in zip(targets, sums):
        with target.path.open("r+b") as file:
            target.plan.seal(file, crcs)
    return {found.name: found.sha256 for found in scanned}, sha256


def _read_back(
    strategy: Strategy,
    of_rank: Sequence[int],
    targets: Sequence[TargetFile],
    kind: str,
    sha256: tuple[Mapping[str, str], Sequence[Mapping[str, str]]],
    processes: int | None,
) -> None:
    """Raise where the files, read as one would read them, do not make up what was read from the source."""
    files = [targets[number].path for number in of_rank]
    written = RankSlices(files, kind, strategy, beside=False, owned=False)
    expected, of_files = sha256
    for found in scan_all(written, (), processes, "read back"):
        parts = zip(written.parts[found.name], found.parts)
        wrong = any(digest != of_files[of_rank[part.ranks[0]]][found.name] for part, digest in parts)
        if wrong or found.sha256 != expected[found.name]:
            raise CorruptCheckpoint(
                f"{found.name} reads back otherwise than it was written to {files[0].parent.parent}; is the disk sound?"
            )
    if written.table != {name: written.table[name] for name in expected}:
        raise CorruptCheckpoint(f"{files[0].parent.parent} holds other tensors than were written; is the disk sound?")


def _publish_strategy(strategy: Strategy, folder: Path) -> None:
    """The strategy files of the layout that was written, beside it; none where one rank holds everything."""
    if strategy.world == 1:
        return
    if strategy.source.is_file():
        write_stages(folder, strategy.stages)
        return
    for rank in range(strategy.world):
        file, target = strategy_path(strategy.source, rank), strategy_path(folder, rank)
        if not (target.exists() and target.samefile(file)):
            with replacing(target) as temporary:
                shutil.copyfile(file, temporary)
    for other in strategy_ranks(folder):
        if other >= strategy.world:
            strategy_path(folder, other).unlink()
