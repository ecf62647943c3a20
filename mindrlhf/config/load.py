"""From yaml files, flags and key=value words to one checked Config."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mindrlhf.config import kinds, mindformers_keys, schema
from mindrlhf.config.mindformers_keys import Notes
from mindrlhf.config.read_yaml import read_file, read_text
from mindrlhf.config.schema import Config
from mindrlhf.runtime.errors import UserError


def load_config(
    path: str | Path | None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    spelled: Mapping[str, str] | None = None,
) -> Config:
    """The configuration of a run; without a path, of the defaults.

    Later ones win: the files of `include:` in their order, the keys of `path` itself, `flags` (dotted key -> value,
    None is not given), `overrides` (words key=value, the value in yaml). `spelled`: dotted key -> the flag typed.
    Raises UserError that names source and key.
    """
    notes = Notes()
    tree = _read_tree(str(path), (), notes) if path else {}
    for key, value in (flags or {}).items():
        if value is not None:
            word = (spelled or {}).get(key, f"the flag for {key}")
            tree = merge(tree, _nest(key, schema.read_value(key, value, word, or_null=False)))
    for word in overrides:
        tree = merge(tree, _read_override(word))
    _tell(notes)
    return schema.build(tree)


def _read_tree(path: str, including: tuple[str, ...], notes: Notes) -> dict[str, Any]:
    """The checked keys of a file and of those it includes. `including` are the files on the way to it."""
    real = os.path.realpath(path)
    if real in including:
        raise UserError(f"{path} includes itself ({' -> '.join([*including, real])}); take one include out")
    tree = read_file(Path(path), path)
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}: the file is {kinds.show(tree)}; give a mapping of keys to values")
    own = {name: value for name, value in tree.items() if name != "include"}
    merged: dict[str, Any] = {}
    for name in _includes(tree.get("include"), path):
        included = os.path.normpath(os.path.join(os.path.dirname(path), name))
        if not os.path.exists(included):
            raise UserError(
                f"{path}: include {name} does not exist as {included}; paths are relative to the file that includes"
            )
        merged = merge(merged, _read_tree(included, (*including, real), notes))
    ours, spelled = mindformers_keys.translate(own, path, notes)
    return merge(merged, schema.check(ours, path, spelled))


def _includes(value: Any, path: str) -> list[str]:
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{path}: include is {kinds.show(value)}; give a path or a list of paths of yaml files")
    return names


def _read_override(word: str) -> dict[str, Any]:
    source = f"the override {word}"
    key, equals, value = word.partition("=")
    if not equals:
        raise UserError(f"{source} has no value; write key=value")
    return schema.check(_nest(key, read_text(value, source)), source)


def _nest(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings, at every depth; where both have a value that is no mapping, that of `second`."""
    merged = dict(first)
    for name, value in second.items():
        both = isinstance(merged.get(name), Mapping) and isinstance(value, Mapping)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def _tell(notes: Notes) -> None:
    from mindrlhf.runtime.logging import log, warn

    if notes.mapped:
        pairs = ", ".join(f"{theirs} -> {ours}" for theirs, ours in notes.mapped.items())
        log(f"MindFormers' keys, read as ours: {pairs}")
    for name, source in notes.ignored.items():
        warn(f"{source}: {name} is MindFormers' and has no effect here")


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line that are overrides, and the others, both in order.

    An override is `KEY=...` where KEY is a top-level scalar or stands in a section of the schema; a wrong key of a
    known section counts, so that its error names the nearest. A question such as "1+1=?" does not.
    """
    overrides: list[str] = []
    rest: list[str] = []
    for word in words:
        (overrides if _is_override(word) else rest).append(word)
    return overrides, rest


def _is_override(word: str) -> bool:
    key, equals, _ = word.partition("=")
    section, dot, name = key.partition(".")
    if not equals or key.split() != [key]:
        return False
    if not dot:
        return key in schema.LEAVES
    return bool(name) and (section in schema.SECTIONS or section == "lora")


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as JSON and yaml hold it."""
    return {name: _plain(value) for name, value in dataclasses.asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
