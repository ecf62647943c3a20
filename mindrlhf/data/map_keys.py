"""`map_keys`: the fields of a format under the names that a file has for them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from mindrlhf.data.fields import Row
from mindrlhf.runtime.errors import UserError


class Fields(Protocol):
    """What is asked of a format: its fields, and map_keys' other words for them."""

    @property
    def fields(self) -> tuple[str, ...]: ...

    @property
    def words(self) -> Mapping[str, str]: ...


def read_map_keys(text: str, source: str = "--map_keys") -> dict[str, str]:
    """The mapping in `field=column,field=column`, or in JSON; `UserError` for anything else."""
    if not text.lstrip().startswith("{"):
        pairs = [word.partition("=") for word in text.split(",")]
        wrong = next((word for word, (_, equals, _) in zip(text.split(","), pairs) if not equals), None)
        if wrong is not None:
            raise UserError(f"{source}: {wrong!r} is no field=column; write prompt=question,chosen=better")
        return check_map_keys(_once([(field.strip(), column.strip()) for field, _, column in pairs], source), source)
    try:
        return check_map_keys(json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, source)), source)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{source} is no JSON ({error}); write {{"prompt": "question"}} or prompt=question') from None


def _once(pairs: list[tuple[str, Any]], source: str) -> dict[str, Any]:
    """The pairs as a mapping; `UserError` for a field that is given twice."""
    found: dict[str, Any] = {}
    for field, column in pairs:
        if field in found:
            raise UserError(f"{source}: {field} is given twice; give it once")
        found[field] = column
    return found


def check_map_keys(value: Any, source: str) -> dict[str, str]:
    """`value` as a mapping of names to names; null and "" mean that the file has no such field."""
    if not isinstance(value, Mapping):
        raise UserError(f"{source} is no mapping of a format's fields to the file's; write {{prompt: question}}")
    for key, column in value.items():
        if not isinstance(key, str) or not (column is None or isinstance(column, str)):
            raise UserError(f"{source}: {key}: {column!r} is no name of a field; put it in quotes")
    return {key: column or "" for key, column in value.items()}


def columns_of(form: Fields, map_keys: Mapping[str, str]) -> dict[str, str]:
    """From a field of `form` to the file's name of it, for what `map_keys` says of this format."""
    known = {**{name: name for name in form.fields}, **form.words}
    return {known[key]: column for key, column in map_keys.items() if key in known}


def require_known(forms: Mapping[str, Fields], map_keys: Mapping[str, str], source: str = "map_keys") -> None:
    """`UserError` for a key that none of `forms`, by their names, has."""
    known = [name for form in forms.values() for name in (*form.fields, *form.words)]
    for key in map_keys:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            names = ", ".join(forms)
            listed = ", ".join(dict.fromkeys(known))
            raise UserError(f"{source}: {names} has no field {key!r}; did you mean {nearest}? There are {listed}")


def rename(row: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    """The row with each field of `columns` taken from the column named there; absent where the row has none."""
    renamed = Row(row)
    for field in columns:
        renamed.pop(field, None)
    for field, column in columns.items():
        if column and column in row:
            renamed[field] = row[column]
    renamed.called = columns
    return renamed


def columns_read(form: Fields, columns: Mapping[str, str]) -> Iterable[str]:
    """Names, in the file, of all fields that `form` may read."""
    wanted = dict.fromkeys((*form.fields, *form.words.values(), *columns))
    return (columns.get(name, name) for name in wanted)
