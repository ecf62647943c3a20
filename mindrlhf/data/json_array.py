"""The elements of a JSON array of any size, cut out one after the other without decoding them."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Protocol

BLOCK = 1 << 20
_STRUCTURE = re.compile(rb'["\[\]{}]')
_SCALAR_END = re.compile(rb"[,\]\s]")
_BLANK = re.compile(rb"[ \t\r\n]*")
_OPENING, _QUOTE, _COMMA, _END = b"[{", b'"', b",", b"]"
_BACKSLASH = 0x5C


class BrokenArray(ValueError):
    """The bytes are no JSON array; the message says from where on."""


class Readable(Protocol):
    """What gives bytes."""

    def read(self, size: int, /) -> bytes: ...


class ArrayReader:
    """Elements of the array in a binary stream, each with the offset of its first byte.

    A reader that is given such an offset as `begin`, on a stream that stands there, goes on with that element; `number`
    is that of the element before it.
    """

    def __init__(self, stream: Readable, longest: int, begin: int | None = None, number: int = 0) -> None:
        self.stream = stream
        self.longest = longest
        self._buffer = b""
        self._position = 0
        self._consumed = begin or 0  # bytes before the buffer
        self._number = number
        self._inside = begin is not None

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        if not self._inside:
            self._open()
        if self._next_byte() == _END:
            self._close()
            return
        while True:
            self._number += 1
            if not self._next_byte():
                raise BrokenArray(self._cut())
            yield self._consumed + self._position, self._element()
            byte = self._next_byte()
            if byte == _END:
                self._close()
                return
            if byte != _COMMA:
                raise BrokenArray(f"no comma follows element {self._number}" if byte else self._cut())
            self._position += 1
            if self._next_byte() == _END:
                raise BrokenArray(f"a comma without an element follows element {self._number}")

    def _open(self) -> None:
        if self._more(0) and self._buffer.startswith(codecs.BOM_UTF8):
            self._position = len(codecs.BOM_UTF8)
        if self._next_byte() != b"[":
            raise BrokenArray("it does not begin with [")
        self._position += 1

    def _close(self) -> None:
        self._position += 1
        if self._next_byte():
            raise BrokenArray(f"something follows its end, at byte {self._consumed + self._position}")

    def _cut(self) -> str:
        return f"it ends within the array, after {self._number - 1} whole elements"

    def _next_byte(self) -> bytes:
        """The first byte that is no blank; empty at the end of the stream."""
        while True:
            self._position = _BLANK.match(self._buffer, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._buffer):
                return self._buffer[self._position : self._position + 1]
            if not self._more(self._position):
                return b""

    def _more(self, keep_from: int) -> bool:
        """Read a block, forgetting what stands before `keep_from`; False at the end of the stream."""
        block = self.stream.read(BLOCK)
        self._consumed += keep_from
        self._buffer = self._buffer[keep_from:] + block
        self._position -= keep_from
        return bool(block)

    def _element(self) -> bytes:
        first = self._buffer[self._position : self._position + 1]
        length = self._scalar() if first not in _OPENING and first != _QUOTE else self._nested()
        element = self._buffer[self._position : self._position + length]
        self._position += length
        return element

    def _scalar(self) -> int:
        """Length of a number or word that begins at the position."""
        at = self._position
        while not (found := _SCALAR_END.search(self._buffer, at)):
            at = len(self._buffer) - self._position
            self._grow()
            at += self._position
        if found.start() == self._position:
            raise BrokenArray(f"element {self._number} is missing")
        return found.start() - self._position

    def _nested(self) -> int:
        """Length of an object, array or string that begins at the position."""
        depth, at = 0, self._position
        while True:
            found = _STRUCTURE.search(self._buffer, at)
            if found is None:
                at = len(self._buffer) - self._position
                self._grow()
                at += self._position
                continue
            byte, at = found[0], found.end()
            if byte == _QUOTE:
                at = self._string_end(at)
            else:
                depth += 1 if byte in _OPENING else -1
            if depth <= 0:
                return at - self._position

    def _string_end(self, at: int) -> int:
        """Index behind the quote that closes a string whose text begins at `at`."""
        while True:
            quote = self._buffer.find(_QUOTE, at)
            if quote < 0:
                # A backslash at the end of the buffer may belong to the next quote: it is looked at again.
                at = len(self._buffer) - self._position
                self._grow()
                at += self._position
                continue
            slash = quote - 1
            while self._buffer[slash] == _BACKSLASH:
                slash -= 1
            at = quote + 1
            if (quote - slash) % 2:
                return at

    def _grow(self) -> None:
        """Read on within an element, which begins at the position."""
        if not self._more(self._position):
            raise BrokenArray(self._cut())
        if len(self._buffer) > self.longest + BLOCK:
            raise BrokenArray(f"element {self._number} is longer than {self.longest} bytes, or not closed")
