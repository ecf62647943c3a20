"""Rows of JSON text: one object a line, or one array."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import BinaryIO

from mindrlhf.data.json_array import ArrayReader, BrokenArray
from mindrlhf.data.row_file import LONGEST_ROW, LineReader, Mark, RawRow, StreamFile
from mindrlhf.runtime.errors import UserError


class Lines(StreamFile):
    """One JSON object a line; blank lines are no rows."""

    def _cut(self, mark: Mark | None) -> Iterator[tuple[int, RawRow]]:
        with self._open(mark) as stream:
            lines = LineReader(stream, mark)
            offset = lines.offset
            for text in lines:
                content = text.rstrip(b"\r\n")
                if content and not content.isspace():
                    yield (
                        offset,
                        RawRow(self.file, lines.number - 1, content, lines.flaws.pop() if lines.flaws else None),
                    )
                offset = lines.offset


class Array(StreamFile):
    """One JSON array; a line is an element."""

    def _cut(self, mark: Mark | None) -> Iterator[tuple[int, RawRow]]:
        with self._open(mark) as stream:
            if mark is None:
                elements = iter(ArrayReader(Utf8Blocks(self.path, stream), LONGEST_ROW))
            else:
                elements = iter(ArrayReader(stream, LONGEST_ROW, mark.offset, mark.line - 1))
            try:
                for number, (offset, element) in enumerate(elements, mark.line if mark else 1):
                    yield offset, RawRow(self.file, number, element)
            except BrokenArray as error:
                raise UserError(f"{self.path} is no JSON array that can be read: {error}") from None


class Utf8Blocks:
    """Blocks of a stream that must be UTF-8; `UserError` where they are not."""

    def __init__(self, path: str, stream: BinaryIO) -> None:
        self.path, self.stream, self.done = path, stream, 0
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def read(self, size: int, /) -> bytes:
        """The next block, empty at the end."""
        block = self.stream.read(size)
        try:
            self.decoder.decode(block)
        except UnicodeDecodeError as error:
            place = self.done + error.start
            raise UserError(f"{self.path} is not UTF-8 at byte {place} or just before; save it as UTF-8") from None
        self.done += len(block)
        return block
