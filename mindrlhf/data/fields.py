"""One decoded row and its fields: strict JSON, and for everything else a reason and a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Union

_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
Kinds = Union[type, tuple[type, ...]]


class RowError(Exception):
    """Why a row is no pair: `reason` is a short stable name that is counted, `sentence` is for the reader."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence


class Row(dict[str, Any]):
    """A row under the names of its format; `called` has the file's own name of each field that was mapped."""

    called: Mapping[str, str] = {}


def decode(raw: bytes) -> dict[str, Any]:
    """The object that `raw` spells in UTF-8; RowError for anything else, a key given twice and NaN included."""
    try:
        row = json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise RowError("wrong encoding", f"it is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        message = error.msg.removesuffix(" at")
        raise RowError("broken json", f"it is not JSON: {message} at character {error.pos}") from error
    except RecursionError as error:
        raise RowError("broken json", "it is not JSON that can be read: it is nested too deeply") from error
    except ValueError as error:
        raise RowError("broken json", f"it is not JSON that can be read: {error}") from error
    if not isinstance(row, dict):
        raise RowError("not an object", f"it is {kind_of(row)}, not an object")
    return row


def decode_text(name: str, text: str) -> Any:
    """What the JSON text in field `name` spells; RowError where it is no JSON."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError, RowError) as error:
        raise RowError("broken json", f"{name} holds text that is no JSON") from error


def field(row: Mapping[str, Any], key: str, kinds: Kinds) -> Any:
    """The value of a field that must be there, not null, and of one of `kinds`."""
    if key not in row:
        raise RowError("missing field", f"field {name_of(row, key)} is missing")
    value = row[key]
    if value is None:
        raise RowError("null", f"field {name_of(row, key)} is null")
    if not isinstance(value, kinds):
        wanted = " or ".join(_KINDS[each] for each in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise RowError("wrong type", f"field {name_of(row, key)} is {kind_of(value)}, not {wanted}")
    if isinstance(value, str):
        require_unicode(f"field {name_of(row, key)}", value)
    return value


def optional(row: Mapping[str, Any], key: str, kinds: Kinds) -> Any:
    """The value of a field, None where it is absent, null, empty or blank."""
    value = None if row.get(key) is None else field(row, key, kinds)
    return None if value in ("", [], {}) or (isinstance(value, str) and not value.strip()) else value


def name_of(row: Mapping[str, Any], key: str) -> str:
    """The field as the file calls it."""
    called = row.called.get(key) if isinstance(row, Row) else None
    return f"{called!r} (map_keys: {key})" if called else repr(key)


def kind_of(value: Any) -> str:
    """ "a list", for sentences."""
    return "null" if value is None else _KINDS.get(type(value), f"of type {type(value).__name__}")


def require_unicode(name: str, value: Any) -> None:
    """RowError where a text, however deep in `value`, holds half of a surrogate pair, or `value` is too deep."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError("wrong encoding", f"{name} holds half of a surrogate pair") from error
    except RecursionError as error:
        raise RowError("broken json", f"{name} is nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise RowError("broken json", "a key stands twice in one object")
    return value


def _constant(name: str) -> None:
    raise RowError("broken json", f"it is not JSON: {name}")
