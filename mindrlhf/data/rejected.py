"""Lines that were rejected, kept for the user: `<record>.rejected.jsonl`, written as they come."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mindrlhf.runtime.files import PathLike, fsync_path

if TYPE_CHECKING:
    from mindrlhf.data.formats import Rejected

ENDING = ".rejected.jsonl"


def rejected_file(record: PathLike) -> Path:
    """`out.mindrecord` -> `out.mindrecord.rejected.jsonl`."""
    return Path(f"{record}{ENDING}")


def rejected_line(row: Rejected) -> bytes:
    """One JSON object with line, reason, sentence and text, and the file where a source has several.

    Bytes that are not UTF-8 become lone surrogates (`surrogateescape`), so that the line can be had back.
    """
    words: dict[str, Any] = {"file": row.file} if row.file else {}
    words.update(
        line=row.line, reason=row.reason, sentence=row.sentence, text=row.raw.decode("utf-8", "surrogateescape")
    )
    # Here a lone surrogate becomes the JSON escape that stands for it.
    return json.dumps(words, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


class RejectedLines:
    """Collects lines in a temporary file, so that none need be held; `finish` gives it its name."""

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._file: IO[bytes] | None = None
        for leftover in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            leftover.unlink()

    def add(self, lines: Iterable[bytes]) -> None:
        """Append lines that end in a newline."""
        for line in lines:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._temporary.open("wb")
            self._file.write(line)

    def finish(self) -> Path | None:
        """The file with all lines; where there is none, None, and no file of that name is left."""
        if self._file is None:
            self.path.unlink(missing_ok=True)
            return None
        self._file.close()
        self._file = None
        fsync_path(self._temporary)
        os.replace(self._temporary, self.path)
        return self.path

    def discard(self) -> None:
        """Leave everything as it was."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._temporary.unlink(missing_ok=True)
