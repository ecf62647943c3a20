"""Yaml text to plain values, by PyYAML's safe loader, with its pitfalls closed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mindrlhf.runtime.errors import UserError

LARGEST_FILE = 1_000_000  # bytes; a model file given by mistake is not read to its end
MOST_VALUES = 10_000  # with every alias written out: a few hundred bytes of nested aliases can mean billions
MOST_OPEN = 200  # brackets; a text in quotes may hold some that mean nothing
BEING_COUNTED = -1


def read_file(path: Path, source: str) -> Any:
    """The content of a yaml file. Raises UserError when it cannot be read or is not yaml; `source` names it there."""
    try:
        with open(path, "rb") as stream:
            raw = stream.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise UserError(f"{source} does not exist; give the path of a yaml file") from None
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}); give the path of a yaml file") from None
    if len(raw) > LARGEST_FILE:
        raise UserError(f"{source} is larger than {LARGEST_FILE} bytes; give the path of a yaml file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 text (byte {error.start}); give the path of a yaml file") from None
    return read_text(text, source)


def read_text(text: str, source: str) -> Any:
    """The value of one yaml document. Raises UserError for what is not plain, well-formed yaml."""
    _refuse_depth(text, source)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, source, {})
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{source}: line {line} is not plain yaml: {problem}") from None
    except yaml.reader.ReaderError as error:
        raise UserError(f"{source}: character {error.position} is not allowed in yaml") from None
    except ValueError as error:  # such as a date with month 13
        raise UserError(f"{source}: {error}; put the text in quotes") from None
    except RecursionError:
        raise _too_deep(source) from None


def _refuse_depth(text: str, source: str) -> None:
    """PyYAML takes seconds over thousands of brackets before it meets Python's own limit."""
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        if depth > MOST_OPEN:
            raise _too_deep(source)


def _too_deep(source: str) -> UserError:
    return UserError(f"{source} is nested too deeply; a configuration has two or three levels")


def _count(node: yaml.Node, source: str, counted: dict[int, int]) -> int:
    """How many values `node` means with every alias written out. Refuses too many, and a key given twice."""
    if id(node) not in counted:
        counted[id(node)] = BEING_COUNTED
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated_keys(node, source)
            parts = [part for entry in node.value for part in entry]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        counted[id(node)] = 1 + sum(_count(part, source, counted) for part in parts)
    elif counted[id(node)] == BEING_COUNTED:
        raise UserError(f"{source}: line {node.start_mark.line + 1} has an anchor that contains itself; write it out")
    if counted[id(node)] > MOST_VALUES:
        raise UserError(
            f"{source} means more than {MOST_VALUES} values once its aliases are written out; it is no configuration"
        )
    return counted[id(node)]


def _refuse_repeated_keys(node: yaml.MappingNode, source: str) -> None:
    """Yaml forbids a key twice in one mapping; PyYAML would silently keep the last.

    The same word twice is let pass: it means one thing, and files that MindFormers published have it.
    """
    first: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        before, word = first.setdefault(key.value, (key, value))
        same = isinstance(value, yaml.ScalarNode) and (value.tag, value.value) == (word.tag, word.value)
        if before is not key and not same:
            lines = f"{before.start_mark.line + 1} and {key.start_mark.line + 1}"
            raise UserError(f"{source}: {key.value} is given twice, on lines {lines}; keep one")
