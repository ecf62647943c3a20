"""Parts of several workers joined to the one MindRecord that a single worker would have written; what became of rows.

Every source row is written, overlong or rejected. Rejected ones are judged once, over the whole input.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Callable

from mindrlhf.data.records import clear_temporary, read_pairs, write_records
from mindrlhf.data.rejected import RejectedLines, rejected_file
from mindrlhf.data.sidecar import Part, Sidecar, check_destination, complete_parts, find_parts
from mindrlhf.data.spool import Sizes
from mindrlhf.runtime import logging
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import PathLike


def merge(
    src_folder: PathLike,
    dst: PathLike,
    *,
    max_rejected: float,
    log: Callable[[str], None] = logging.log,
    warn: Callable[[str], None] | None = None,
) -> Sidecar:
    """Join the parts in `src_folder` to `dst`, and their rejected lines to `<dst>.rejected.jsonl`.

    BadRecord for a damaged part, a gap, an overlap or a part of another run. UserError where no row was written; and,
    after `dst` was written, where more than the share `max_rejected` of all rows was rejected; where fewer were,
    `warn` is told.
    """
    folder = Path(src_folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of parts; name the one that preprocessing wrote")
    check_destination(dst)
    clear_temporary(dst)
    parts = complete_parts(find_parts(folder))
    rejected: Counter[str] = Counter()
    overlong, sizes = 0, Sizes()
    for _, sidecar in parts:
        rejected.update(sidecar.rejected)
        overlong += sidecar.overlong
        sizes += Sizes(sidecar.pairs, sidecar.largest_row, sidecar.row_bytes, sidecar.max_response)
    first = parts[0][1]
    total = first.total
    lines = join_rejected(parts, dst)
    require_written(total, sizes.pairs, overlong, rejected, lines)
    merged = write_records(
        dst,
        read_pairs(parts),
        sizes=sizes,
        provenance=first.provenance,
        span=(0, total),
        total=total,
        overlong=overlong,
        rejected=rejected,
    )
    log(f"{dst}: {accounting(total, sizes.pairs, overlong, rejected)}")
    judge(rejected=rejected, total=total, max_rejected=max_rejected, rejected_file=lines, warn=warn)
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
        if overlong:
            counts += " (overlong: give a larger --seq_len, or data.overlong=truncate_prompt_left or truncate_end)"
        raise UserError(f"no row could be used, so nothing was written or replaced: {counts}{_where(rejected_file)}")


def judge(
    *,
    rejected: Mapping[str, int],
    total: int,
    max_rejected: float,
    rejected_file: PathLike | None,
    warn: Callable[[str], None] | None = None,
) -> None:
    """UserError where more than the share `max_rejected` of the whole input was rejected; where fewer were, `warn` is
    told. Overlong rows are no fault.

    To be called once, after the record was written.
    """
    count = sum(rejected.values())
    said = f"{count} of {total} rows were rejected{_reasons(rejected)}"
    # A quotient, since 29 > 0.29 * 100 in binary.
    if count / total > max_rejected:
        raise UserError(
            f"{said}, more than --max_rejected {max_rejected} allows; the record was written nevertheless"
            f"{_where(rejected_file)}"
        )
    if count and warn:
        warn(f"{said}{_where(rejected_file)}")


def join_rejected(parts: Iterable[Part], dst: PathLike) -> Path | None:
    """Join the rejected lines of parts, in their order, to `<dst>.rejected.jsonl`; with none, no file is left there."""
    joined = RejectedLines(rejected_file(dst))
    for path, _ in parts:
        if rejected_file(path).is_file():
            with open(rejected_file(path), "rb") as lines:
                joined.add(lines)
    return joined.finish()


def _reasons(rejected: Mapping[str, int]) -> str:
    words = ", ".join(f"{reason} {count}" for reason, count in sorted(rejected.items()) if count)
    return f" ({words})" if words else ""


def _where(lines_file: PathLike | None) -> str:
    """Where the rejected lines are, and the first of them, which is mostly like the others."""
    if not lines_file:
        return ""
    with open(lines_file, encoding="utf-8") as lines:
        first = json.loads(lines.readline())
    return f"; the rejected lines are in {lines_file}, the first is line {first['line']}: {first['sentence']}"
