"""What lies beside a MindRecord: `<file>.json` says what it holds and is checked before MindSpore opens anything.

MindSpore reads a flipped bit silently and crashes on some; a file that does not match its sidecar never reaches it.
Rows are counted in the source file, from 0; sentences for people count them from 1.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mindrlhf.runtime.errors import BadRecord, UserError
from mindrlhf.runtime.files import PathLike, sha256_file, write_json

FORMAT = 2
ENDING = ".mindrecord"
PART_NAME = re.compile(r"part-\d{4,}-\d{5,}\.mindrecord")
FORBIDDEN = "\\:*?\"<>|`&';"  # MindSpore refuses these in a file name


@dataclass(frozen=True)
class Sidecar:
    """What a MindRecord holds: of `total` source rows those from `rows[0]` to `rows[1]` - 1, and what became of them.

    `pairs` were written, `overlong` and `rejected` (reason to count) were not. `largest_row`, `row_bytes` and
    `max_response`: see `mindrlhf.data.spool.Sizes`. `workers` share the rows, of which this is a part. `files` gives
    size and sha256 of the data file, of its index and, beside a part, of its rejected lines.
    """

    provenance: dict[str, Any]
    fields: list[str]
    rows: tuple[int, int]
    total: int
    pairs: int
    overlong: int
    rejected: dict[str, int]
    largest_row: int
    row_bytes: int
    max_response: int
    workers: int
    files: dict[str, dict[str, Any]]
    format: int = FORMAT


Part = tuple[Path, Sidecar]


def sidecar_path(record: PathLike) -> Path:
    """`x.mindrecord` -> `x.mindrecord.json`."""
    return Path(f"{record}.json")


def data_files(record: PathLike) -> tuple[Path, Path]:
    """The two files of a MindRecord: the data and the index that MindSpore keeps of it."""
    return Path(record), Path(f"{record}.db")


def check_destination(dst: PathLike) -> None:
    """UserError where MindSpore would refuse to write a file of this name, before hours of work went into it."""
    path = Path(dst)
    found = sorted(set(FORBIDDEN) & set(path.name))
    if found or path.name != path.name.strip():
        what = "".join(found) or "a blank at either end"
        raise UserError(f"{path}: the name of a MindRecord may not have {what}; choose another one")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the MindRecord to write")


def write_sidecar(record: PathLike, sidecar: Sidecar) -> None:
    """Write `<record>.json`, atomically."""
    body = asdict(sidecar)
    write_json(sidecar_path(record), {**body, "sha256": _digest(body)})


def verify(record: PathLike) -> Sidecar:
    """The sidecar of a MindRecord whose files are bit for bit what was written; BadRecord with the reason otherwise."""
    path = Path(record)
    if not path.is_file():
        raise BadRecord(f"{path} does not exist or is no file")
    sidecar = read_sidecar(path)
    for file in data_files(path):
        if file.name not in sidecar.files:
            written = ", ".join(sorted(sidecar.files))
            raise BadRecord(f"{file} was written as {written}; a MindRecord cannot be renamed, give it its name back")
    for file in (path.with_name(name) for name in sidecar.files):
        if not file.is_file():
            raise BadRecord(f"{file} is missing; copy it from where {path.name} comes from or preprocess again")
        expected = sidecar.files[file.name]
        size = file.stat().st_size
        if size != expected["size"]:
            raise BadRecord(f"{file} has {size} bytes, {expected['size']} were written; copy it or preprocess again")
        if sha256_file(file) != expected["sha256"]:
            raise BadRecord(f"{file} is damaged: its sha256 is not the one written; copy it or preprocess again")
    return sidecar


def find_parts(folder: PathLike) -> list[Path]:
    """The parts in a folder, in the order of their names; UserError where there is none. Other files are ignored."""
    found = sorted(file for file in Path(folder).iterdir() if PART_NAME.fullmatch(file.name))
    if not found:
        raise UserError(f"{folder} holds no part-RRRR-PPPPP{ENDING}; name a MindRecord or the folder of its parts")
    return found


def complete_parts(files: Sequence[Path]) -> list[Part]:
    """Verified MindRecords of one run in row order, which cover all rows of their source once; BadRecord otherwise."""
    parts = [(file, verify(file)) for file in files]
    for part in parts[1:]:
        _check_same_run(parts[0], part)
    parts.sort(key=lambda part: part[1].rows)
    _check_cover(parts)
    return parts


def difference(of: Mapping[str, Any], than: Mapping[str, Any]) -> str:
    """How one provenance differs from another, "its seq_len is 64, not 65"; empty where they are equal."""
    for key in sorted(of.keys() | than.keys()):
        if of.get(key) != than.get(key):
            return f"its {key} is {of.get(key)}, not {than.get(key)}"
    return ""


def read_sidecar(record: Path) -> Sidecar:
    """What a MindRecord says of itself, its files not looked at; BadRecord where that is damaged or absent."""
    path = sidecar_path(record)
    again = "preprocess again"
    if not path.is_file() and record.suffix != ENDING:
        raise BadRecord(f"{record} is not a MindRecord; make one of it with tools/dpo_preprocess.py")
    if not path.is_file():
        raise BadRecord(f"{record} has no {path.name} beside it, so its writing was not finished; {again}")
    try:
        body = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise BadRecord(f"{path} is damaged: it is not JSON; {again}") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise BadRecord(f"{path} is not the sidecar of a MindRecord in format {FORMAT}; {again}")
    names = {field.name for field in fields(Sidecar)} | {"sha256"}
    if body.keys() != names:
        differing = ", ".join(sorted(body.keys() ^ names))
        raise BadRecord(f"{path} is damaged: missing or foreign keys {differing}; {again}")
    if body.pop("sha256") != _digest(body):
        raise BadRecord(f"{path} is damaged: its sha256 is not the one written; {again}")
    return Sidecar(**{**body, "rows": tuple(body["rows"])})


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _check_same_run(first: Part, other: Part) -> None:
    (path, one), (other_path, two) = first, other
    differing = difference({**two.provenance, "rows": two.total}, {**one.provenance, "rows": one.total})
    if differing:
        raise BadRecord(
            f"{other_path} is of another run than {path.name}: {differing}; remove the parts of one of the two"
        )


def _check_cover(parts: list[Part]) -> None:
    total = parts[0][1].total
    stop = 0
    last = "the start"
    for path, sidecar in parts:
        first = sidecar.rows[0]
        if first > stop:
            raise BadRecord(
                f"{path.parent}: rows {stop + 1} to {first} of {total} are missing, between {last} and {path.name}"
            )
        if first < stop:
            both = min(stop, sidecar.rows[1])
            raise BadRecord(f"{path.parent}: {last} and {path.name} both hold rows {first + 1} to {both}; remove one")
        stop = sidecar.rows[1]
        last = path.name
    if stop < total:
        raise BadRecord(f"{parts[-1][0].parent}: rows {stop + 1} to {total} of {total} are missing, after {last}")
