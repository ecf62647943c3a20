"""Pairs in MindRecord files, unpadded. The only code that touches MindRecord.

A MindRecord cannot be renamed, since its index holds the base name: it is written under its final name in a temporary
folder beside its place and moved; its sidecar (`sidecar.py`) is moved last and makes it valid.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Callable

import numpy as np

from mindrlhf.data.rejected import RejectedLines, rejected_file
from mindrlhf.data.sidecar import (
    ENDING,
    Part,
    Sidecar,
    check_destination,
    complete_parts,
    data_files,
    find_parts,
    sidecar_path,
    write_sidecar,
)
from mindrlhf.data.spool import Sizes, sizes_of
from mindrlhf.runtime import logging
from mindrlhf.runtime.errors import BadRecord, UserError
from mindrlhf.runtime.files import PathLike, fsync_path, sha256_file

TOKEN_FIELDS = ("prompt_ids", "chosen_ids", "rejected_ids")
REFERENCE_FIELDS = ("ref_chosen_logps", "ref_rejected_logps", "ref_chosen_shared_logps", "ref_rejected_shared_logps")
SMALLEST_HEADER = 1 << 20
SMALLEST_PAGE = 1 << 20
HEADER_PER_PAGE = 512  # about 200 bytes list a page, and pages of long rows may be half empty
ROWS_PER_WRITE = 1000  # fixed: the bytes of a MindRecord depend on it
# Parts, their indices and sidecars, rejected lines, and temporary ones of a run that was killed.
LEFTOVER = re.compile(r"\.?((?:part|rejected)-(\d{4,})(?:-\d{5,})?)[-.]")


@dataclass(frozen=True)
class Pair:
    """One preference in tokens: `pair_id` is its row in the source, from 0; the ids are (length,) int32, never empty.

    The four sums of reference log-probs are float32 values, all there or all None.
    """

    pair_id: int
    prompt_ids: np.ndarray
    chosen_ids: np.ndarray
    rejected_ids: np.ndarray
    ref_chosen_logps: float | None = None
    ref_rejected_logps: float | None = None
    ref_chosen_shared_logps: float | None = None
    ref_rejected_shared_logps: float | None = None


def part_folder(dst: PathLike) -> Path:
    """`out.mindrecord` -> `out.parts`, where workers put their parts."""
    path = Path(dst)
    return path.with_name(path.name.removesuffix(ENDING) + ".parts")


def part_path(dst: PathLike, rank: int, part: int) -> Path:
    """`out.mindrecord` -> `out.parts/part-RRRR-PPPPP.mindrecord`, part `part` of worker `rank`."""
    return part_folder(dst) / f"part-{rank:04d}-{part:05d}{ENDING}"


def clear_parts(dst: PathLike, rank: int, world: int, keep: Collection[Path] = ()) -> None:
    """Remove what an earlier run left among the parts, but for those to `keep`: worker `rank` that of the ranks rank,
    rank + world, ..."""
    folder = part_folder(dst)
    kept = {path.name.removesuffix(ENDING) for path in keep}
    for entry in folder.iterdir() if folder.is_dir() else ():
        name = LEFTOVER.match(entry.name)
        if name is None or int(name[2]) % world != rank:
            continue
        if name[1] in kept and not entry.name.startswith("."):
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def clear_temporary(dst: PathLike) -> None:
    """Remove what is left of `dst` where its writing was killed."""
    target = Path(dst)
    for entry in target.parent.iterdir() if target.parent.is_dir() else ():
        if entry.name.startswith(f".{target.name}.") and entry.name.endswith(".tmp") and entry.is_dir():
            shutil.rmtree(entry)


def write_records(
    path: PathLike,
    pairs: Iterable[Pair],
    *,
    provenance: Mapping[str, Any],
    span: tuple[int, int],
    total: int,
    overlong: int,
    rejected: Mapping[str, int],
    sizes: Sizes | None = None,
    workers: int = 1,
    lines: Iterable[bytes] = (),
) -> Sidecar:
    """Write the pairs of source rows `span[0]` to `span[1]` - 1 of `total`; a MindRecord of that name is replaced when
    the new one is complete. The same pairs and name give the same bytes.

    `sizes` are those of the pairs, to be given where these are a stream; `lines` are rejected lines of a part, which
    belong to it then.

    Pairs carry reference log-probs when `provenance["reference"]` is "record", and only then. BadRecord for a pair that
    is not so or has an empty field, and where MindSpore kept fewer pairs than it was given.
    """
    target = Path(path)
    check_destination(target)
    if sizes is None:
        pairs = list(pairs)
        sizes = sizes_of(pairs)
    accounted = sizes.pairs + overlong + sum(rejected.values())
    assert span[1] - span[0] == accounted, f"{span} is not {accounted} rows"
    schema = _schema(_has_reference(provenance))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent) as folder:
        files = [*data_files(Path(folder, target.name))]
        _write_mindrecord(files[0], pairs, sizes, schema)
        collected = RejectedLines(rejected_file(files[0]))
        collected.add(lines)
        files += filter(None, [collected.finish()])
        sidecar = Sidecar(
            provenance=dict(provenance),
            fields=list(schema),
            rows=span,
            total=total,
            pairs=sizes.pairs,
            overlong=overlong,
            rejected=dict(rejected),
            largest_row=sizes.largest_row,
            row_bytes=sizes.row_bytes,
            max_response=sizes.max_response,
            workers=workers,
            files={file.name: {"sha256": sha256_file(file), "size": file.stat().st_size} for file in files},
        )
        _move_in(files, target)
    write_sidecar(target, sidecar)
    return sidecar


def _move_in(files: Sequence[Path], target: Path) -> None:
    """Put the files of a record where `target` belongs, whose sidecar is removed first: half replaced it would lie."""
    sidecar_path(target).unlink(missing_ok=True)
    fsync_path(target.parent)
    for file in files:
        file.chmod(0o644)  # MindSpore lets nobody else read them
        fsync_path(file)
        os.replace(file, target.with_name(file.name))
    fsync_path(target.parent)


def read_pairs(parts: Sequence[Part]) -> Iterator[Pair]:
    """The pairs of verified MindRecords, in order."""
    from mindspore.mindrecord import FileReader

    for path, sidecar in parts:
        count = 0
        # One consumer keeps the order; the default of four is refused where there are fewer cores.
        with closing(FileReader(str(path), num_consumer=1)) as reader:
            for row in reader.get_next():
                count += 1
                yield Pair(
                    **{name: row[name].item() if name in REFERENCE_FIELDS else row[name] for name in sidecar.fields}
                )
        if count != sidecar.pairs:
            raise BadRecord(f"{path} gives {count} pairs, {sidecar.pairs} were written; preprocess again")


class PairRecords:
    """All pairs of a MindRecord, or of a folder of parts, in memory: `records[i]` is a `Pair`, for any i at any time.

    Where `x.mindrecord` is absent and the folder `x.parts` is there, that is read, which `log` is told. BadRecord where
    something is damaged, missing, double, or of another run; UserError where there is nothing to read.
    """

    def __init__(self, path: PathLike, log: Callable[[str], None] = logging.log) -> None:
        parts = complete_parts(_record_files(Path(path), log))
        tokens = {name: bytearray() for name in TOKEN_FIELDS}
        ends = {name: [0] for name in TOKEN_FIELDS}
        ids: list[int] = []
        references: list[tuple[float, ...]] = []
        for pair in read_pairs(parts):
            for name in TOKEN_FIELDS:
                tokens[name] += getattr(pair, name).tobytes()
                ends[name].append(len(tokens[name]) // np.dtype(np.int32).itemsize)
            ids.append(pair.pair_id)
            references.append(tuple(getattr(pair, name) for name in REFERENCE_FIELDS))
        if not ids:
            raise UserError(f"{path} holds no pair; preprocess again")
        self.path = Path(path)
        self.provenance = parts[0][1].provenance
        self.max_response = max(sidecar.max_response for _, sidecar in parts)
        self._ids = np.array(ids, np.int64)
        self._tokens = {name: np.frombuffer(buffer, np.int32) for name, buffer in tokens.items()}
        self._ends = {name: np.array(places, np.int64) for name, places in ends.items()}
        self._references = np.array(references, np.float32) if self.has_reference else None

    @property
    def seq_len(self) -> int:
        """Most tokens that prompt and response have together."""
        return int(self.provenance["seq_len"])

    @property
    def has_reference(self) -> bool:
        """Whether the pairs carry reference log-probs."""
        return _has_reference(self.provenance)

    @property
    def max_token(self) -> int:
        """The largest token id."""
        return max(int(buffer.max()) for buffer in self._tokens.values())

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Pair:
        place = range(len(self))[index]
        row: dict[str, Any] = {}
        for name in TOKEN_FIELDS:
            ends = self._ends[name]
            row[name] = self._tokens[name][ends[place] : ends[place + 1]]
        if self._references is not None:
            row.update(zip(REFERENCE_FIELDS, self._references[place].tolist()))
        return Pair(int(self._ids[place]), **row)


def _record_files(path: Path, log: Callable[[str], None]) -> list[Path]:
    if path.is_dir():
        return find_parts(path)
    folder = part_folder(path)
    if path.exists() or not folder.is_dir():
        return [path]
    log(f"{path} is absent; reading its parts in {folder}")
    return find_parts(folder)


def _has_reference(provenance: Mapping[str, Any]) -> bool:
    return provenance.get("reference") == "record"


def _schema(with_reference: bool) -> dict[str, dict[str, Any]]:
    schema: dict[str, dict[str, Any]] = {"pair_id": {"type": "int64"}}
    schema.update({name: {"type": "int32", "shape": [-1]} for name in TOKEN_FIELDS})
    if with_reference:
        # Of shape (1,): MindSpore takes a scalar float through JSON, which loses -0.0, tiny and huge values.
        schema.update({name: {"type": "float32", "shape": [1]} for name in REFERENCE_FIELDS})
    return schema


def _row(pair: Pair, schema: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"pair_id": pair.pair_id}
    for name in TOKEN_FIELDS:
        row[name] = getattr(pair, name)
        if len(row[name]) == 0:
            raise BadRecord(f"row {pair.pair_id + 1} of the source has no {name}; a pair needs all three")
    for name in REFERENCE_FIELDS:
        value = getattr(pair, name)
        if (value is None) == (name in schema):
            wanted = "with" if name in schema else "without"
            raise BadRecord(f"row {pair.pair_id + 1} of the source: {name} is {value} in a record {wanted} reference")
        if value is not None:
            row[name] = np.array([value], np.float32)
    return row


def _layout(sizes: Sizes) -> tuple[int, int]:
    """Bytes of the header and of a page, powers of two: a page holds the longest row, the header lists all pages.

    Pages are not made larger for more rows, since MindSpore's memory grows with them: by 90 times one while it indexes.
    """
    page = max(SMALLEST_PAGE, _power_of_two(sizes.largest_row))
    return max(SMALLEST_HEADER, _power_of_two(sizes.row_bytes // page * HEADER_PER_PAGE)), page


def _power_of_two(count: int) -> int:
    """The least that is not below `count`."""
    return 1 << max(count - 1, 0).bit_length()


def _write_mindrecord(path: Path, pairs: Iterable[Pair], sizes: Sizes, schema: dict[str, dict[str, Any]]) -> None:
    from mindspore.mindrecord import FileWriter

    writer = FileWriter(str(path))
    header, page = _layout(sizes)
    writer.set_header_size(header)
    writer.set_page_size(page)
    writer.add_schema(schema, "pairs")
    rest = iter(pairs)
    while some := [_row(pair, schema) for pair in islice(rest, ROWS_PER_WRITE)]:
        writer.write_raw_data(some)
    writer.commit()
    kept = _count_indexed(data_files(path)[1])
    # A pair that MindSpore does not like is dropped with no more than a warning.
    if kept != sizes.pairs:
        raise BadRecord(f"{path.name}: MindSpore kept {kept} of {sizes.pairs} pairs; their fields have a wrong type")


def _count_indexed(index: Path) -> int:
    """Rows in the index of a MindRecord. MindSpore's reader would tell too, and take 600 bytes of memory for each."""
    with closing(sqlite3.connect(f"{index.absolute().as_uri()}?mode=ro", uri=True)) as database:
        (count,) = database.execute("SELECT COUNT(*) FROM INDEXES").fetchone()
    return int(count)
