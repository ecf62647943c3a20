"""Preference files: a stream of rows, each a pair or a reason why it is none.

A `.json` file is one array, read whole; any other file has one JSON object a line and is never whole in memory.
A row is strict JSON in UTF-8: no key twice in an object, no NaN. Fields that its format does not name are ignored.
"""

from __future__ import annotations

import codecs
import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Union

from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import PathLike

Message = dict[str, str]
Text = Union[str, tuple[Message, ...]]
Reader = Callable[[dict[str, Any]], tuple[Text, Text, Text]]

DATASET_TYPES: dict[str, Reader] = {}

_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
_HH_ROLES = {"human": "user", "assistant": "assistant"}
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}


class RowError(Exception):
    """Why a row is no pair: `reason` is a short stable name that is counted, `sentence` is for the reader."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence


@dataclass(frozen=True)
class Preference:
    """One pair: `prompt`, `chosen` and `rejected` are messages or, all three, plain strings.

    A message has `role` (system, user or assistant) and `content`. `line` counts from 1: lines of a file, elements of a
    JSON array. `raw` are the bytes it had in the file.
    """

    line: int
    prompt: Text
    chosen: Text
    rejected: Text
    raw: bytes = field(default=b"", compare=False)

    @property
    def plain(self) -> bool:
        """Whether this is text without turns, which gets no chat template."""
        return isinstance(self.prompt, str)


@dataclass(frozen=True)
class Rejected:
    """One row that is no pair, with the bytes it had in the file."""

    line: int
    reason: str
    sentence: str
    raw: bytes


def dataset_type(name: str) -> Callable[[Reader], Reader]:
    """Register a reader: from a decoded row to (prompt, chosen, rejected), or `RowError`."""

    def register(reader: Reader) -> Reader:
        if name in DATASET_TYPES:
            raise ValueError(f"dataset type {name!r} is registered twice")
        DATASET_TYPES[name] = reader
        return reader

    return register


def count_rows(path: PathLike) -> int:
    """Number of rows, good and bad; `UserError` where the file cannot be read or has none."""
    total = sum(1 for _ in _raw_rows(path))
    if total == 0:
        raise UserError(f"{path} holds no rows")
    return total


def read_rows(
    path: PathLike, dataset_type: str, start: int = 0, stop: int | None = None
) -> Iterator[Preference | Rejected]:
    """Rows `start` to `stop - 1`, counted from 0, in file order.

    `UserError` for an unknown dataset type or a file that cannot be read.
    """
    if dataset_type not in DATASET_TYPES:
        nearest = difflib.get_close_matches(dataset_type, DATASET_TYPES, n=1, cutoff=0.0)[0]
        known = ", ".join(DATASET_TYPES)
        raise UserError(f"dataset type {dataset_type!r} is unknown; did you mean {nearest}? There are {known}")
    reader = DATASET_TYPES[dataset_type]
    return (_parse(line, raw, reader) for line, raw in islice(_raw_rows(path), start, stop))


def _raw_rows(path: PathLike) -> Iterator[tuple[int, bytes]]:
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if empty:
        raise UserError(f"{path} is empty")
    return _elements(Path(path)) if Path(path).suffix.lower() == ".json" else _lines(Path(path))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if content.strip():
                yield number, content.rstrip(b"\r\n")


def _elements(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is no JSON array ({error}); a file with one object a line must end in .jsonl"
        ) from error
    if not isinstance(value, list):
        raise UserError(f"{path} is no JSON array; a file with one object a line must end in .jsonl")
    # Cut the source into elements, so that they take the same way as lines and a rejected one is kept as written.
    decoder, comma = json.JSONDecoder(), re.compile(r"\s*,?\s*")
    position = text.index("[") + 1
    for number in range(1, len(value) + 1):
        begin = comma.match(text, position).end()  # type: ignore[union-attr]
        position = decoder.raw_decode(text, begin)[1]
        yield number, text[begin:position].encode("utf-8")


def _parse(line: int, raw: bytes, reader: Reader) -> Preference | Rejected:
    try:
        prompt, chosen, rejected = reader(_decode(raw))
        _check("prompt", prompt, "user")
        _check("chosen response", chosen, "assistant")
        _check("rejected response", rejected, "assistant")
        if chosen == rejected:
            raise RowError("identical responses", "the chosen and the rejected response are the same")
    except RowError as error:
        return Rejected(line, error.reason, error.sentence, raw)
    return Preference(line, prompt, chosen, rejected, raw)


def _decode(raw: bytes) -> dict[str, Any]:
    try:
        row = json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise RowError("wrong encoding", f"it is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise RowError("broken json", f"it is not JSON: {error.msg} at character {error.pos}") from error
    except (ValueError, RecursionError) as error:
        raise RowError("broken json", f"it is not JSON that can be read: {error}") from error
    if not isinstance(row, dict):
        raise RowError("not an object", f"it is {_kind(row)}, not an object")
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise RowError("broken json", "a key stands twice in one object")
    return value


def _constant(name: str) -> None:
    raise RowError("broken json", f"it is not JSON: {name}")


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS[type(value)]


def _check(name: str, text: Text, last_role: str) -> None:
    empty = RowError("empty prompt" if last_role == "user" else "empty response", f"the {name} is empty")
    if not text:
        raise empty
    if not isinstance(text, str):
        if text[-1]["role"] != last_role:
            role = text[-1]["role"]
            raise RowError("wrong last role", f"the last message of the {name} has role {role}, not {last_role}")
        text = text[-1]["content"]
    if not text.strip():
        raise empty


def _field(row: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    if key not in row:
        raise RowError("missing field", f"field {key!r} is missing")
    value = row[key]
    if value is None:
        raise RowError("null", f"field {key!r} is null")
    if not isinstance(value, kind):
        wanted = " or ".join(_KINDS[each] for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise RowError("wrong type", f"field {key!r} is {_kind(value)}, not {wanted}")
    if isinstance(value, str):
        _require_unicode(key, value)
    return value


def _require_unicode(key: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError("wrong encoding", f"field {key!r} holds half of a surrogate pair") from error


def _message(item: Any, text_key: str, roles: Mapping[str, str]) -> Message:
    if not isinstance(item, dict):
        raise RowError("wrong type", f"a message is {_kind(item)}, not an object")
    role = _field(item, "role", str)
    if role not in roles:
        raise RowError("unknown role", f"role {role!r} is none of {', '.join(roles)}")
    return {"role": roles[role], "content": _field(item, text_key, str)}


def _turn(role: str, text: str) -> tuple[Message, ...]:
    return ({"role": role, "content": text},)


@dataset_type("cvalues")
def _cvalues(row: dict[str, Any]) -> tuple[Text, Text, Text]:
    prompt, chosen, rejected = (_field(row, key, str) for key in ("prompt", "pos_resp", "neg_resp"))
    return _turn("user", prompt), _turn("assistant", chosen), _turn("assistant", rejected)


@dataset_type("hh_rlhf_cn")
def _hh_rlhf_cn(row: dict[str, Any]) -> tuple[Text, Text, Text]:
    context = tuple(_message(item, "text", _HH_ROLES) for item in _field(row, "context", list))
    chosen, rejected = (_message(_field(row, key, dict), "text", _HH_ROLES) for key in ("chosen", "rejected"))
    return context, (chosen,), (rejected,)


@dataset_type("orca_dpo_pairs")
def _orca_dpo_pairs(row: dict[str, Any]) -> tuple[Text, Text, Text]:
    question, chosen, rejected = (_field(row, key, str) for key in ("question", "chosen", "rejected"))
    prompt = _turn("user", question)
    if row.get("system") is not None and _field(row, "system", str).strip():
        prompt = _turn("system", row["system"]) + prompt
    return prompt, _turn("assistant", chosen), _turn("assistant", rejected)


@dataset_type("messages")
def _messages(row: dict[str, Any]) -> tuple[Text, Text, Text]:
    """TRL's two forms: three lists of messages, or three strings."""
    kind = str if isinstance(_field(row, "prompt", (list, str)), str) else list
    prompt, chosen, rejected = (_field(row, key, kind) for key in ("prompt", "chosen", "rejected"))
    if kind is str:
        return prompt, chosen, rejected
    prompt, chosen, rejected = (
        tuple(_message(item, "content", _ROLES) for item in each) for each in (prompt, chosen, rejected)
    )
    return prompt, chosen, rejected
