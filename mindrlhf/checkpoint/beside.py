"""What lies beside weights and goes with them: config.json, generation_config.json, the tokenizer, own code."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import PathLike, replacing

CONFIG_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
)

_PLAIN = re.compile(r"\w+\.\w+")
_BESIDE_IT = re.compile(r"^\s*from\s+\.(\w+)\s+import\b", re.MULTILINE)


def carry_files(
    source: PathLike, target: PathLike, tokenizer_files: Iterable[PathLike] = (), *, clear: bool = True
) -> list[str]:
    """Copy config.json, generation_config.json and the tokenizer's files beside weights; return the names copied.

    tokenizer_files: those of the run's tokenizer where it is not the one in `source`. The Python files that a config
    names are copied too, and run by nothing here. clear: of these names, but for Python files, `target` then holds no
    other file: one that an earlier run left is removed.
    """
    files = _beside(Path(source), [Path(file) for file in tokenizer_files])
    for name, file in files.items():
        place = Path(target) / name
        if not place.exists() or not file.samefile(place):
            with replacing(place) as temporary:
                shutil.copyfile(file, temporary)
    for name in CONFIG_FILES + TOKENIZER_FILES if clear else ():
        if name not in files:
            (Path(target) / name).unlink(missing_ok=True)
    return sorted(files)


def refuse_other_files(source: PathLike, target: PathLike) -> None:
    """Raise `UserError` where files that `carry_files` would copy stand in `target` with another content."""
    for name, file in _beside(Path(source), []).items():
        place = Path(target) / name
        if place.exists() and not file.samefile(place) and file.read_bytes() != place.read_bytes():
            raise UserError(
                f"{place} is of another model than {source}, whose own must lie beside what is written; write into a "
                f"folder of its own"
            )


def _beside(source: Path, tokenizer_files: list[Path]) -> dict[str, Path]:
    """The files that belong beside the weights of `source`, by name."""
    names = CONFIG_FILES if tokenizer_files else CONFIG_FILES + TOKENIZER_FILES
    found = [source / name for name in names] + tokenizer_files + _code(source)
    return {file.name: file for file in found if file.is_file()}


def _code(source: Path) -> list[Path]:
    """The Python files that models and tokenizers bring which transformers has no class for, as their configs say."""
    found: list[Path] = []
    waiting = [name for config in ("config.json", "tokenizer_config.json") for name in _named_modules(source / config)]
    while waiting:
        file = source / f"{waiting.pop()}.py"
        if file not in found and file.is_file():
            found.append(file)
            waiting += _BESIDE_IT.findall(file.read_text(encoding="utf-8", errors="replace"))
    return sorted(found)


def _named_modules(config: Path) -> list[str]:
    """`module` of every "module.Class" in the auto_map of a config."""
    try:
        named = json.loads(config.read_text(encoding="utf-8"))["auto_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    words = [word for value in named for word in (value if isinstance(value, list) else [value])]
    return [word.split(".")[0] for word in words if isinstance(word, str) and _PLAIN.fullmatch(word)]
