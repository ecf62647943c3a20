"""The words of --src: PATH_OR_GLOB[:FORMAT][#COUNT][@WEIGHT], or NAME[:SUBSET] of a known set."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from mindrlhf.data.file_rows import ENDINGS
from mindrlhf.data.formats import DATASET_TYPES
from mindrlhf.data.known_sets import KNOWN_SETS, KnownSet
from mindrlhf.data.sidecar import PART_NAME
from mindrlhf.runtime.errors import UserError

GRAMMAR = "PATH_OR_GLOB[:FORMAT][#COUNT][@WEIGHT]"
FOLDER_OF_SETS = "MINDRLHF_DATASETS"
MOST_TIMES = 1000
# What we write beside a record is no input, even where it lies among the files of a set.
OURS = (".rejected.jsonl", ".mindrecord.json")
_SUFFIX = re.compile(r"(?s)(.+)([:#@])([^:#@/]*)")
_SET = re.compile(r"([^:#@]+)(:[^:#@]*)?")
_WEIGHT = re.compile(r"[0-9]+(\.[0-9]+)?|\.[0-9]+")
_OTHER_SPLIT = re.compile(r"(?i)(?<![a-z])(test|eval|valid|validation|dev)(?![a-z])")


@dataclass(frozen=True)
class Word:
    """What a word means: `files` in order, of their rows the first `count`, each `weight` times."""

    text: str
    files: tuple[str, ...]
    dataset_type: str
    count: int | None = None
    weight: Fraction = Fraction(1)


def read_words(words: Sequence[str], dataset_type: str | None) -> list[Word]:
    """The words in order; `UserError` for one that means no file. An existing path wins."""
    if not words:
        raise UserError(f"--src names nothing; give {GRAMMAR}")
    return [_read_word(word, dataset_type) for word in words]


def _read_word(text: str, dataset_type: str | None) -> Word:
    rest, given = text, dict[str, str]()
    known = None
    while not (files := _files(rest)):
        known = _known(rest)
        if known is not None:
            files = known_files(rest, known)
            break
        parts = _SUFFIX.fullmatch(rest)
        if parts is None or parts[2] in given:
            raise _nothing(text, rest)
        rest, given[parts[2]] = parts[1], parts[3]
    form = given.get(":") or (known.dataset_type if known else dataset_type)
    if form is None:
        names = ", ".join(DATASET_TYPES)
        raise UserError(f"{text} has no dataset type; give --dataset_type, or write {rest}:FORMAT; there are {names}")
    return Word(text, files, form, _count(text, given.get("#")), _weight(text, given.get("@")))


def _nothing(text: str, rest: str) -> UserError:
    place = repr(rest) if rest == text else f"{text}: {rest!r}"
    if glob.has_magic(rest):
        return UserError(f"{place} matches no file; --src takes {GRAMMAR}")
    sets = ", ".join(KNOWN_SETS)
    return UserError(f"{place} does not exist; --src takes {GRAMMAR}, or one of the known sets {sets}")


def _files(path: str) -> tuple[str, ...]:
    """The files that a path, a folder or a glob means; none where it means nothing."""
    if not path or "\0" in path:
        return ()
    if os.path.isdir(path):
        return _of_folder(path)
    if os.path.exists(path):
        return (path,)
    if not glob.has_magic(path):
        return ()
    return tuple(name for name in sorted(glob.glob(path, recursive=True)) if os.path.isfile(name))


def _of_folder(path: str) -> tuple[str, ...]:
    names = (name for name in sorted(os.listdir(path)) if _is_rows(name))
    files = tuple(file for name in names if os.path.isfile(file := os.path.join(path, name)))
    if not files:
        parts = "; to join parts, give --merge True" if any(map(PART_NAME.fullmatch, os.listdir(path))) else ""
        raise UserError(f"{path} is a folder without a file of rows; their names end in {', '.join(ENDINGS)}{parts}")
    return files


def _is_rows(name: str) -> bool:
    lower = name.lower()
    return lower.endswith(ENDINGS) and not lower.startswith(".") and not lower.endswith(OURS)


def _known(word: str) -> KnownSet | None:
    parts = _SET.fullmatch(word)
    return KNOWN_SETS.get(parts[1]) if parts else None


def known_files(word: str, known: KnownSet) -> tuple[str, ...]:
    """The files of NAME[:SUBSET] in $MINDRLHF_DATASETS, else ./datasets; `UserError` telling where to get them.

    Of a subset's files, those of another split (test, eval, ...) are taken only where SUBSET says so.
    """
    name, _, subset = word.partition(":")
    folder = Path(os.environ.get(FOLDER_OF_SETS) or "datasets") / name
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    beginning = [path for path in inside if path.name.startswith(subset)]
    nested = [file for path in beginning if path.is_dir() for file in sorted(path.iterdir())]
    files = [path for path in (*beginning, *nested) if path.is_file() and _is_rows(path.name)]
    if not _OTHER_SPLIT.search(subset):
        files = [path for path in files if not _OTHER_SPLIT.search(path.name)]
    if not files:
        wanted = folder / f"{subset}*{{.jsonl,.json,.parquet,.csv}}"
        raise UserError(
            f"{word} is not on this machine: get it from {known.page}, and put its files at {wanted} (the folder of "
            f"all sets is ${FOLDER_OF_SETS}, else ./datasets), or give --src the path of a file"
        )
    return tuple(str(path) for path in files)


def _count(word: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) == 0:
        raise UserError(f"{word}: #{text} is no count of rows; write a whole number from 1 on, as in data.jsonl#1000")
    return int(text)


def _weight(word: str, text: str | None) -> Fraction:
    if text is None:
        return Fraction(1)
    if not _WEIGHT.fullmatch(text) or len(text) > 20 or not 0 < Fraction(text) <= MOST_TIMES:
        raise UserError(
            f"{word}: @{text} does not say how often a row is taken; write a number above 0 and up to {MOST_TIMES}, "
            f"as in data.jsonl@0.5"
        )
    return Fraction(text)
