"""Where the rows of a preference set come from: one stream over its files, whatever their form."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mindrlhf.data import map_keys as mapping
from mindrlhf.data.fields import RowError, decode
from mindrlhf.data.file_rows import open_rows
from mindrlhf.data.formats import DATASET_TYPES, Preference, Rejected, encode_row, parse, require_dataset_type
from mindrlhf.data.row_file import RawRow, RowFile
from mindrlhf.data.source_words import Word, read_words
from mindrlhf.data.table_rows import Csv
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.logging import warn

__all__ = ["Preference", "RawRow", "Rejected", "Source"]

ROWS_LOOKED_AT = 100


@dataclass(frozen=True)
class Share:
    """The rows of one file that a word takes, as rows `first` to `first + total - 1` of the whole list."""

    rows: RowFile
    dataset_type: str
    columns: dict[str, str]
    weight: Fraction
    taken_before: int  # rows of earlier files of the same word, before its weight
    first: int
    total: int


class Source:
    """The rows of one or several preference files as one list, in order.

    Every file is read once when this is made, to count its rows and to hash them, and opened again by every `raw`.
    Picklable, so that a process which parses can be handed it.
    """

    def __init__(
        self, words: Sequence[str], dataset_type: str | None = None, map_keys: Mapping[str, str] | None = None
    ) -> None:
        """`words`: PATH_OR_GLOB[:FORMAT][#COUNT][@WEIGHT] or NAME:SUBSET, each; `dataset_type` of those without FORMAT.

        `UserError` for a word, format or key of `map_keys` that means nothing, and for a file that cannot be read or
        has no row.
        """
        found = read_words(words, dataset_type)
        forms = {word.dataset_type: require_dataset_type(word.dataset_type, word.text) for word in found}
        mapping.require_known(forms, map_keys or {})
        self.shares: list[Share] = []
        self.total = 0
        for word in found:
            self._take(word, map_keys or {})

    def _take(self, word: Word, map_keys: Mapping[str, str]) -> None:
        form = DATASET_TYPES[word.dataset_type]
        columns = mapping.columns_of(form, map_keys)
        wanted = tuple(mapping.columns_read(form, columns))
        taken = 0
        for path in word.files:
            left = None if word.count is None else word.count - taken
            if left == 0:
                break
            rows = open_rows(path, len(self.shares), wanted)
            if not form.flat and isinstance(rows, Csv):
                raise UserError(f"{path}: rows of {word.dataset_type} are nested, which csv cannot hold; give jsonl")
            rows.scan(left)
            total = _position(taken + rows.total, word.weight) - _position(taken, word.weight)
            self.shares.append(Share(rows, word.dataset_type, columns, word.weight, taken, self.total, total))
            _warn_of_absent(rows, columns)
            taken += rows.total
            self.total += total
        if word.count is not None and taken < word.count:
            warn(f"{word.text} has {taken} rows, fewer than #{word.count}; all are taken")

    @property
    def files(self) -> list[str]:
        """Path of each file, in the order of `RawRow.file`."""
        return [share.rows.path for share in self.shares]

    @property
    def sha256(self) -> str:
        """Digest of everything that decides the pairs and their order: rows, formats, map_keys, counts and weights."""
        parts = [
            [share.rows.digest, share.rows.total, share.dataset_type, share.columns, str(share.weight)]
            for share in self.shares
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def raw(self, start: int = 0, stop: int | None = None) -> Iterator[RawRow]:
        """Rows `start` to `stop - 1` of the list, counted from 0, cut out of their files and not decoded."""
        end = self.total if stop is None else min(stop, self.total)
        for share in self.shares:
            low, high = max(start - share.first, 0), min(end - share.first, share.total)
            if low < high:
                yield from _weighted(share, low, high)

    def parse(self, row: RawRow) -> Preference | Rejected:
        """The pair of a row, or why it is none. It depends on nothing but the row, and may run in another process."""
        share = self.shares[row.file]
        file = share.rows.path if len(self.shares) > 1 else ""
        if row.flaw is not None:
            data = row.data if isinstance(row.data, bytes) else encode_row(row.data)
            return Rejected(row.line, *row.flaw, data, file)
        form = DATASET_TYPES[share.dataset_type]
        return parse(row.data, form, line=row.line, file=file, columns=share.columns)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Preference | Rejected]:
        """Rows `start` to `stop - 1` of the list, counted from 0."""
        return map(self.parse, self.raw(start, stop))


def _warn_of_absent(rows: RowFile, columns: Mapping[str, str]) -> None:
    """Say so where a column that map_keys names is in none of the first rows: a field that may be absent hides that."""
    if not any(columns.values()):
        return
    seen: set[str] = set()
    for row in rows.rows(0, min(rows.total, ROWS_LOOKED_AT)):
        with contextlib.suppress(RowError):
            seen.update(row.data if isinstance(row.data, dict) else decode(row.data))
    for field, column in columns.items():
        if column and column not in seen:
            warn(f"map_keys: no row at the beginning of {rows.path} has a field {column!r}, which is to be {field}")


def _position(row: int, weight: Fraction) -> int:
    """Where the row-th row of a word stands in its list, when each row is taken `weight` times, evenly spread."""
    return math.ceil(row * weight)


def _weighted(share: Share, low: int, high: int) -> Iterator[RawRow]:
    """Entries `low` to `high - 1` of a share: row r stands there as often as the positions of r and r + 1 differ."""
    weight, before = share.weight, share.taken_before
    if weight == 1:
        yield from share.rows.rows(low, high)
        return
    begin = _position(before, weight)
    # The row at position p is the last one that does not stand behind it.
    first, last = (math.floor((begin + entry) / weight) - before for entry in (low, high - 1))
    for index, row in enumerate(share.rows.rows(first, last + 1), before + first):
        times = range(max(_position(index, weight), begin + low), min(_position(index + 1, weight), begin + high))
        for _ in times:
            yield row
