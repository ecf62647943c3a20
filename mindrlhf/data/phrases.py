"""The shape of the phrase tables from which the synthetic preference set is composed, and the languages there are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """A thing people ask about: the task as a verb phrase, and points to make, without capital letter and full stop."""

    task: str
    tips: tuple[str, ...]
    shortcuts: tuple[str, ...]


@dataclass(frozen=True)
class Style:
    """A manner of answering: opening, first point, further points, remarks, closing. `{}` is the task, or the point."""

    openings: tuple[str, ...]
    first: tuple[str, ...]
    further: tuple[str, ...]
    remarks: tuple[str, ...]
    closings: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Topics that call for the same manners: `good` presents a topic's tips, `bad` its shortcuts."""

    topics: tuple[Topic, ...]
    good: Style
    bad: Style


@dataclass(frozen=True)
class Language:
    """One language: a prompt is asker, form (of the task) and situation; `space` stands between sentences."""

    space: str
    forms: tuple[str, ...]
    askers: tuple[str, ...]
    situations: tuple[str, ...]
    groups: tuple[Group, ...]
