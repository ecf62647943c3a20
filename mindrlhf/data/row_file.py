"""What all files of rows have in common: they are read as a stream, counted and hashed once, and cut at any row.

What is held in memory is a row, or a batch of a table, and never the file.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import os
import stat
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as attribute
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

from mindrlhf.runtime.errors import UserError

LONGEST_ROW = 1 << 24  # bytes; a file without line ends is not read into memory
KEPT_OF_A_LONG_ROW = 1000
ROWS_BETWEEN_MARKS = 4096


class RawRow(NamedTuple):
    """A row before it is decoded: of the `file`-th file of a source, `line` counting from 1.

    `data` are its bytes, of a table its columns. `flaw` is (reason, sentence) where it could not be cut out whole.
    """

    file: int
    line: int
    data: bytes | dict[str, Any]
    flaw: tuple[str, str] | None = None


class Mark(NamedTuple):
    """A row, counted from 0, its line, and the offset where it begins."""

    row: int
    line: int
    offset: int


@dataclass
class RowFile(ABC):
    """One file of rows. `scan` counts them once; `rows` then cuts out any slice, again and again."""

    path: str
    file: int = 0
    columns: tuple[str, ...] = ()  # of a table, those that are wanted
    total: int = 0
    digest: str = ""
    stamp: tuple[int, int] = (0, 0)

    @abstractmethod
    def scan(self, limit: int | None = None) -> None:
        """Count the first `limit` rows and hash what decides them. `UserError` where the file is broken or has none."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Iterator[RawRow]:
        """Rows `start` to `stop - 1`, counted from 0."""

    def _require_unchanged(self) -> None:
        if self._stamp() != self.stamp:
            raise UserError(f"{self.path} was changed while it was read; start again")

    def _stamp(self) -> tuple[int, int]:
        with explaining(self.path):
            status = os.stat(self.path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{self.path} is no file that can be read twice; save it to the disk")
        if not status.st_size:
            raise UserError(f"{self.path} is empty")
        return status.st_size, status.st_mtime_ns

    def _require_rows(self) -> None:
        if not self.total:
            raise UserError(f"{self.path} holds no rows")


@dataclass
class StreamFile(RowFile):
    """A file that is read from its beginning, or from marks on the way; plain, or compressed by gzip."""

    marks: list[Mark] = attribute(default_factory=list)

    def scan(self, limit: int | None = None) -> None:
        """Count the first `limit` rows and hash what decides them. `UserError` where the file is broken or has none."""
        self.stamp = self._stamp()
        digest = hashlib.sha256()
        with explaining(self.path):
            for place, raw in islice(self._cut(None), limit):
                if self.total % ROWS_BETWEEN_MARKS == 0 and self.seekable:
                    self.marks.append(Mark(self.total, raw.line, place))
                digest.update(_hashed(raw))
                self.total += 1
        self.digest = digest.hexdigest()
        self._require_rows()

    def rows(self, start: int, stop: int) -> Iterator[RawRow]:
        """Rows `start` to `stop - 1`, counted from 0."""
        if start >= stop:
            return
        self._require_unchanged()
        mark = next((mark for mark in reversed(self.marks) if mark.row <= start), None)
        behind = mark.row if mark else 0
        with explaining(self.path):
            for _, raw in islice(self._cut(mark), start - behind, stop - behind):
                yield raw

    @property
    def seekable(self) -> bool:
        """Whether reading can begin in the middle."""
        return not self.path.lower().endswith(".gz")

    @abstractmethod
    def _cut(self, mark: Mark | None) -> Iterator[tuple[int, RawRow]]:
        """Rows from `mark` on, or all, each with its offset."""

    @contextmanager
    def _open(self, mark: Mark | None) -> Iterator[BinaryIO]:
        with open(self.path, "rb") if self.seekable else gzip.open(self.path, "rb") as stream:
            if mark:
                stream.seek(mark.offset)
            yield stream  # type: ignore[misc]


class LineReader:
    """Lines of a binary stream from `mark` on, with their ends.

    `offset` and `number` are those of the next line. `flaws` grows by (reason, sentence) for a line that was too long,
    of which only the beginning is given.
    """

    def __init__(self, stream: BinaryIO, mark: Mark | None = None) -> None:
        self.stream = stream
        self.offset, self.number = (mark.offset, mark.line) if mark else (0, 1)
        self.flaws: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[bytes]:
        read = self.stream.readline
        most = LONGEST_ROW + 1
        while text := read(most):
            first = self.offset == 0
            self.offset += len(text)
            self.number += 1
            if len(text) == most and not text.endswith(b"\n"):
                self.flaws.append(self._skip())
                text = text[:KEPT_OF_A_LONG_ROW]
            yield text.removeprefix(codecs.BOM_UTF8) if first else text

    def _skip(self) -> tuple[str, str]:
        length = LONGEST_ROW + 1
        while rest := self.stream.readline(LONGEST_ROW):
            length += len(rest)
            self.offset += len(rest)
            if rest.endswith(b"\n"):
                break
        return "too long", f"it has {length} bytes, more than the {LONGEST_ROW} that a row may have"


def _hashed(raw: RawRow) -> bytes:
    if isinstance(raw.data, bytes) and raw.flaw is None:
        return raw.data + b"\n"
    return repr((raw.data, raw.flaw)).encode("utf-8", "surrogateescape")


@contextmanager
def explaining(path: str) -> Iterator[None]:
    """What goes wrong while a file is read, as a sentence that names it."""
    try:
        yield
    except EOFError:
        raise UserError(f"{path} is cut off: its compressed data end too early; copy it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged, or not compressed by gzip: {error}; copy it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or first_line(error)}") from error


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
