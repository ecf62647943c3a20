"""What a key of the configuration accepts, and the sentence for what it does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

SHOWN = 60  # characters of a wrong value that an error repeats


@dataclass(frozen=True)
class Kind:
    """`read(value)` gives the value to keep or raises ValueError; `complaint` ends the sentence "KEY is VALUE...".

    Where a part of the value is wrong, `read` raises `WrongPart`.
    """

    complaint: str
    read: Callable[[Any], Any]


class WrongPart(ValueError):
    """A part of a value that its key does not accept; `place` and what is wrong with it follow the key's name."""


def show(value: Any) -> str:
    """A value as yaml spells it, shortened."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def whole(low: int, high: int | None = None) -> Kind:
    """A whole number from `low` to `high`."""

    def read(value: Any) -> int:
        if type(value) is not int or value < low or (high is not None and value > high):
            raise ValueError
        return value

    return Kind(f"; give a whole number >= {low}" + (f" and <= {high}" if high is not None else ""), read)


def number(limits: str, allowed: Callable[[float], bool]) -> Kind:
    """A finite number within `limits`, kept as float. To YAML 1.1, 5e-6 (without a point) is text."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        try:
            found = float(value)
        except OverflowError:
            raise ValueError from None
        if not math.isfinite(found) or not allowed(found):
            raise ValueError
        return found

    return Kind(f"; give a number {limits}", read)


def boolean() -> Kind:
    """true or false."""

    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Kind("; give true or false", read)


def text(what: str = "text (in quotes where it looks like a number or a date)", refusal: str | None = None) -> Kind:
    """Text that is not empty. `refusal` replaces "; give `what`"."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise ValueError
        return value

    return Kind(refusal or f"; give {what}", read)


def choice(*names: str | None) -> Kind:
    """One of `names`."""

    def read(value: Any) -> str | None:
        if not (value is None or isinstance(value, str)) or value not in names:
            raise ValueError
        return value

    known = ", ".join("null" if name is None else name for name in names)
    return Kind(f", which is not one of {known}; this version knows no other", read)


def either(literal: str | None, kind: Kind) -> Kind:
    """`kind`, or the word `literal`; None is yaml's null."""

    def read(value: Any) -> Any:
        return value if type(value) is type(literal) and value == literal else kind.read(value)

    return Kind(f"{kind.complaint} or {literal or 'null'}", read)


def pair(kind: Kind, complaint: str) -> Kind:
    """A list of two values of one kind, kept as a tuple."""

    def read(value: Any) -> tuple[Any, Any]:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ValueError
        return kind.read(value[0]), kind.read(value[1])

    return Kind(complaint, read)


def mapping() -> Kind:
    """A mapping of names to what JSON can hold too; null is an empty one."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            if not all(isinstance(name, str) for name in value):
                raise ValueError
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise ValueError

    def read(value: Any) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise ValueError
        return dict(plain(value))

    return Kind("; give a mapping of names to numbers, text, true, false, lists or mappings", read)


def losses() -> Kind:
    """The name of a loss, or a list of {type, weight, parameters...}, kept as a tuple of dicts; a name stands for its
    entry."""

    def read(value: Any) -> Any:
        if isinstance(value, str) and value.strip():
            return value
        if not isinstance(value, (list, tuple)) or not value:
            raise ValueError
        return tuple(_loss_entry(f"entry {place}", item) for place, item in enumerate(value, start=1))

    return Kind("; give the name of a loss, or a list such as [{type: sigmoid}, {type: sft, weight: 0.1}]", read)


def _loss_entry(place: str, value: Any) -> dict[str, Any]:
    """One entry of a list of losses; which losses and parameters there are is not known here."""
    found = {"type": value} if isinstance(value, str) else value
    if not isinstance(found, Mapping):
        raise WrongPart(f"{place} is {show(value)}; give a mapping such as {{type: sft, weight: 0.1}}")
    name = found.get("type")
    if not isinstance(name, str) or not name.strip():
        what = f"has the type {show(name)}" if "type" in found else "has no type"
        raise WrongPart(f"{place} {what}; give the name of a loss, such as {{type: sft, weight: 0.1}}")
    finite = number("", lambda x: True)
    kept: dict[str, Any] = {}
    for key, item in found.items():
        if not isinstance(key, str):
            raise WrongPart(f"{place} ({name}): {show(key)} is not the name of a parameter; write it as text")
        try:
            kept[key] = item if key == "type" else finite.read(item)
        except ValueError:
            raise WrongPart(f"{place} ({name}): {key} is {show(item)}; give a number") from None
    return kept
