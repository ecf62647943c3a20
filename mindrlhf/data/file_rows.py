"""Files of rows: jsonl, json, csv and parquet, all but the last also gzipped."""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Iterable
from pathlib import Path

from mindrlhf.data.row_file import RowFile, explaining
from mindrlhf.data.table_rows import Csv, Parquet
from mindrlhf.data.text_rows import Array, Lines
from mindrlhf.runtime.errors import UserError

ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")
_FOREIGN = {
    b"\x1f\x8b": "is compressed by gzip; let its name end in .gz",
    b"PAR1": "is a parquet file; let its name end in .parquet",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"BZh": "is compressed by bzip2; unpack it, or compress it by gzip",
    b"\xfd7zXZ": "is compressed by xz; unpack it, or compress it by gzip",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it, or compress it by gzip",
    codecs.BOM_UTF32_LE: "is UTF-32 text; save it as UTF-8",
    codecs.BOM_UTF16_LE: "is UTF-16 text; save it as UTF-8",
    codecs.BOM_UTF16_BE: "is UTF-16 text; save it as UTF-8",
}


def open_rows(path: str | Path, file: int = 0, columns: Iterable[str] = ()) -> RowFile:
    """The rows of a file, by the ending of its name and, where that is .json, by its content.

    `UserError` for a file that cannot be read, or is no text of that kind.
    """
    name = str(path)
    ending = name.lower().removesuffix(".gz")
    kind: type[RowFile] = Lines
    if name.lower().endswith(".parquet"):
        kind = Parquet
    else:
        head = _head(name)
        if ending.endswith(".csv"):
            kind = Csv
        elif _begins_array(name, head, ending.endswith(".json")):
            kind = Array
    return kind(name, file, tuple(columns))


def _head(path: str) -> bytes:
    """The first block of a text file; `UserError` where it is none."""
    with explaining(path):
        if Path(path).exists() and not Path(path).is_file():
            raise UserError(f"{path} is no file that can be read twice; save it to the disk")
        with gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb") as stream:
            head: bytes = stream.read(1 << 16)
    for magic, sentence in _FOREIGN.items():
        if head.startswith(magic):
            raise UserError(f"{path} {sentence}")
    if b"\0" in head[:8] or head[:1024].count(0) * 20 > len(head[:1024]):
        raise UserError(f"{path} is a binary file, and no text of rows")
    return head


def _begins_array(path: str, head: bytes, may: bool) -> bool:
    """Whether a file is one JSON array. `UserError` where it `may` not be, or is neither that nor one object a line."""
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if may and text.startswith(b"["):
        return True
    line, end, _ = text.partition(b"\n")
    try:
        json.loads(line)
    except json.JSONDecodeError:
        if end and text.startswith(b"["):
            raise UserError(f"{path} begins like a JSON array; let its name end in .json") from None
        if end and may:
            raise UserError(
                f"{path} is neither a JSON array nor one object a line: its first line is no whole object"
            ) from None
    except (ValueError, RecursionError):
        pass  # the row is told from the others when it is read
    return False
