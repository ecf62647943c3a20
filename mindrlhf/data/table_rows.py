"""Rows of tables: csv with a header row, and parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mindrlhf.data.row_file import (
    KEPT_OF_A_LONG_ROW,
    LONGEST_ROW,
    LineReader,
    Mark,
    RawRow,
    RowFile,
    StreamFile,
    explaining,
    first_line,
)
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import sha256_file

TABLE_ROWS = 256
MOST_KEPT = 1 << 20  # bytes of a record that is none, such as one whose quote was never closed


class Csv(StreamFile):
    """A table with a header row; a line is the one where a record begins."""

    def _cut(self, mark: Mark | None) -> Iterator[tuple[int, RawRow]]:
        csv.field_size_limit(LONGEST_ROW)
        with self._open(None) as stream:
            lines = LineReader(stream)
            header = self._header(lines)
            if mark:
                stream.seek(mark.offset)
                lines = LineReader(stream, mark)
            taken: list[bytes] = []
            records = csv.reader(_decoded(lines, taken), strict=True)
            while True:
                offset, number = lines.offset, lines.number
                taken.clear()
                try:
                    record = next(records, None)
                except csv.Error as error:
                    if str(error) == "unexpected end of data":
                        # Else all rows behind it would be one, and count as one.
                        raise UserError(
                            f"{self.path}: a quote that opens in the row of line {number} is never closed; close it"
                        ) from None
                    record = []
                    lines.flaws.append(("broken csv", f"it is no csv record: {error}"))
                if record is None:
                    return
                if record or lines.flaws:
                    row = dict(zip(header, record))
                    flaw = lines.flaws[0] if lines.flaws else _flaw(header, record, row)
                    lines.flaws.clear()
                    yield offset, RawRow(self.file, number, _whole(taken) if flaw else row, flaw)

    def _header(self, lines: LineReader) -> list[str]:
        try:
            texts = (text.decode("utf-8") for text in lines)
            header = [name.strip() for name in next(filter(None, csv.reader(texts, strict=True)), [])]
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{self.path}: its header row cannot be read ({error}); save it as csv in UTF-8") from None
        if not all(header) or len(set(header)) < len(header):
            raise UserError(f"{self.path}: its header row has an empty name, or one twice: {', '.join(header)}")
        return header


class Parquet(RowFile):
    """A table of pyarrow's; a line is a row, counted from 1."""

    def scan(self, limit: int | None = None) -> None:
        """Take the number of rows from the file's own description, and hash the file."""
        self.stamp = self._stamp()
        with explaining(self.path):
            rows = self._table().metadata.num_rows
            self.digest = sha256_file(self.path)
        self.total = rows if limit is None else min(rows, limit)
        self._require_rows()

    def rows(self, start: int, stop: int) -> Iterator[RawRow]:
        """Rows `start` to `stop - 1`, counted from 0; row groups before them are not read."""
        if start >= stop:
            return
        self._require_unchanged()
        with explaining(self.path), _arrow(self.path):
            table = self._table()
            sizes = [table.metadata.row_group(index).num_rows for index in range(table.num_row_groups)]
            first = behind = 0
            while first < len(sizes) and behind + sizes[first] <= start:
                behind += sizes[first]
                first += 1
            groups = list(range(first, len(sizes)))
            wanted = [name for name in table.schema_arrow.names if not self.columns or name in self.columns]
            for batch in table.iter_batches(TABLE_ROWS, row_groups=groups, columns=wanted, use_threads=False):
                low, high = max(start - behind, 0), min(stop - behind, batch.num_rows)
                if low < high:
                    for index, row in enumerate(batch.slice(low, high - low).to_pylist(), behind + low + 1):
                        yield RawRow(self.file, index, row)
                behind += batch.num_rows
                if behind >= stop:
                    return

    def _table(self) -> Any:
        from pyarrow.parquet import ParquetFile

        with _arrow(self.path):
            return ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False)


@contextmanager
def _arrow(path: str) -> Iterator[None]:
    """What pyarrow finds wrong with a file, as a sentence that names it."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path} is no parquet file that can be read: {first_line(error)}") from None


def _decoded(lines: LineReader, taken: list[bytes]) -> Iterator[str]:
    """Lines as text, a byte that is no UTF-8 as half of a surrogate pair; `taken` grows by their bytes."""
    for line in lines:
        taken.append(line)
        yield line.decode("utf-8", "surrogateescape")


def _flaw(header: list[str], record: list[str], row: dict[str, str]) -> tuple[str, str] | None:
    if len(record) != len(header):
        return "broken csv", f"it has {len(record)} fields, and the header row {len(header)}"
    for name, text in row.items():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return "wrong encoding", f"field {name!r} is not UTF-8"
    return None


def _whole(lines: list[bytes]) -> bytes:
    """The bytes of a record, only the beginning of a very long one."""
    record = b"".join(lines).rstrip(b"\r\n")
    return record if len(record) <= MOST_KEPT else record[:KEPT_OF_A_LONG_ROW]
