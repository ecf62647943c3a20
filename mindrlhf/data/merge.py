"""Parts of several workers joined to the one MindRecord that a single worker would have written; what became of rows.

Every source row is written, overlong or rejected. Rejected ones are judged once, over the whole input.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from mindrlhf.data.records import read_pairs, write_records
from mindrlhf.data.sidecar import Sidecar, check_destination, complete_parts, find_parts
from mindrlhf.runtime import logging
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import PathLike, replacing

if TYPE_CHECKING:
    from mindrlhf.data.formats import Rejected

WORKER_REJECTED = re.compile(r"rejected-(\d{4,})\.jsonl")


def merge(
    src_folder: PathLike, dst: PathLike, *, max_rejected: float, log: Callable[[str], None] = logging.log
) -> Sidecar:
    """Join the parts in `src_folder` to `dst`, and their rejected lines to `<dst>.rejected.jsonl`.

    BadRecord for a damaged part, a gap, an overlap or a part of another run. UserError where no row was written; and,
    after `dst` was written, where more than the share `max_rejected` of all rows was rejected.
    """
    folder = Path(src_folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of parts; name the one that preprocessing wrote")
    check_destination(dst)
    parts = complete_parts(find_parts(folder))
    sidecars = [sidecar for _, sidecar in parts]
    rejected: Counter[str] = Counter()
    for sidecar in sidecars:
        rejected.update(sidecar.rejected)
    overlong = sum(sidecar.overlong for sidecar in sidecars)
    total = sidecars[0].total
    pairs = list(read_pairs(parts))
    lines = join_rejected(folder, dst)
    require_written(total, len(pairs), overlong, rejected, lines)
    merged = write_records(
        dst,
        pairs,
        provenance=sidecars[0].provenance,
        span=(0, total),
        total=total,
        overlong=overlong,
        rejected=rejected,
    )
    log(f"{dst}: {accounting(total, len(pairs), overlong, rejected)}")
    judge(rejected=rejected, total=total, max_rejected=max_rejected, rejected_file=lines)
    return merged


def accounting(total: int, written: int, overlong: int, rejected: Mapping[str, int]) -> str:
    """ "120 rows in = 117 written + 2 overlong + 1 rejected (missing field 1)"."""
    count = sum(rejected.values())
    return f"{total} rows in = {written} written + {overlong} overlong + {count} rejected{_reasons(rejected)}"


def require_written(
    total: int, written: int, overlong: int, rejected: Mapping[str, int], rejected_file: PathLike | None
) -> None:
    """UserError where no row is left to write. To be called before anything is replaced."""
    if not written:
        counts = accounting(total, written, overlong, rejected)
        raise UserError(f"no row could be used, so nothing was written or replaced: {counts}{_where(rejected_file)}")


def judge(*, rejected: Mapping[str, int], total: int, max_rejected: float, rejected_file: PathLike | None) -> None:
    """UserError where more than the share `max_rejected` of the whole input was rejected. Overlong rows are no fault.

    To be called once, after the record was written.
    """
    count = sum(rejected.values())
    # A quotient, since 29 > 0.29 * 100 in binary.
    if count / total > max_rejected:
        raise UserError(
            f"{count} of {total} rows were rejected{_reasons(rejected)}, more than --max_rejected {max_rejected} allows"
            f"; the record was written nevertheless{_where(rejected_file)}"
        )


def rejected_file(dst: PathLike) -> Path:
    """`out.mindrecord` -> `out.mindrecord.rejected.jsonl`."""
    return Path(f"{dst}.rejected.jsonl")


def worker_rejected(rank: int) -> str:
    """Name of the file of a worker's rejected lines in the folder of parts: `rejected-RRRR.jsonl`."""
    return f"rejected-{rank:04d}.jsonl"


def write_rejected(path: PathLike, rows: Iterable[Rejected]) -> Path | None:
    """Write one JSON object per rejected row to `path` and return it; with none, no file is left there.

    Bytes that are not UTF-8 become lone surrogates (`surrogateescape`), so that the line can be had back.
    """
    target = Path(path)
    lines = [_line(row) for row in rows]
    if not lines:
        target.unlink(missing_ok=True)
        return None
    with replacing(target) as temporary:
        temporary.write_bytes(b"".join(lines))
    return target


def join_rejected(folder: PathLike, dst: PathLike) -> Path | None:
    """Join the workers' rejected lines to `<dst>.rejected.jsonl`, by rank; with none, no file is left there."""
    target = rejected_file(dst)
    ranks = {int(name[1]): file for file in Path(folder).iterdir() if (name := WORKER_REJECTED.fullmatch(file.name))}
    if not ranks:
        target.unlink(missing_ok=True)
        return None
    with replacing(target) as temporary, open(temporary, "wb") as joined:
        for rank in sorted(ranks):
            with open(ranks[rank], "rb") as lines:
                shutil.copyfileobj(lines, joined)
    return target


def _line(row: Rejected) -> bytes:
    words = {
        "line": row.line,
        "reason": row.reason,
        "sentence": row.sentence,
        "text": row.raw.decode("utf-8", "surrogateescape"),
    }
    # Here a lone surrogate becomes the JSON escape that stands for it.
    return json.dumps(words, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _reasons(rejected: Mapping[str, int]) -> str:
    words = ", ".join(f"{reason} {count}" for reason, count in sorted(rejected.items()) if count)
    return f" ({words})" if words else ""


def _where(rejected_file: PathLike | None) -> str:
    """Where the rejected lines are, and the first of them, which is mostly like the others."""
    if not rejected_file:
        return ""
    with open(rejected_file, encoding="utf-8") as lines:
        first = json.loads(lines.readline())
    return f"; the rejected lines are in {rejected_file}, the first is line {first['line']}: {first['sentence']}"
