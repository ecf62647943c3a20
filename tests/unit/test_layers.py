"""Who may import whom, what stands in one place only, what is written nowhere, and how long a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mindrlhf"
ENTRIES = [ROOT / "run_dpo.py", *sorted((ROOT / "tools").glob("*.py")), *sorted((ROOT / "examples").rglob("*.py"))]
SOURCES = [*sorted(PACKAGE.rglob("*.py")), *ENTRIES, ROOT / "setup.py"]
LAYERED = [path for path in SOURCES if path.is_relative_to(PACKAGE) and path.parent != PACKAGE]
YAMLS = sorted(path for folder in ("model_configs", "examples") for path in (ROOT / folder).rglob("*.yaml"))
LINES_OF_A_FILE, LINES_OF_A_FUNCTION, LINES_OF_A_YAML, LINES_OF_AN_ENTRY = 400, 60, 60, 20

LOWER = {"runtime", "config", "data", "parallel"}
ALL = LOWER | {"losses", "models", "checkpoint", "cells", "generation", "trainers"}
# Each layer may also import itself.
MAY_IMPORT = {
    "runtime": set(),
    "losses": set(),
    "config": {"runtime"},
    "data": {"runtime", "config"},
    "parallel": {"runtime", "config"},
    "models": LOWER,
    "checkpoint": LOWER,
    "cells": {"losses", "parallel"},
    "generation": {"models"},
    "trainers": ALL,
    "commands": ALL,
}
# An imported module, and where alone it may be: folders and files of the package.
ONLY_IN = {
    "mindformers": ("models/",),
    "mindformers.core.optim": ("trainers/",),
    "mindformers.models.build_model": ("trainers/",),
    "mindformers.tools.register": ("trainers/", "models/mcore_config.py"),
    "mindspore.mindrecord": ("data/records.py",),
    "mindspore.load_checkpoint": ("checkpoint/",),
    "mindspore.save_checkpoint": ("checkpoint/",),
    "mindspore.load_checkpoint_async": ("checkpoint/",),
    "mindspore.device_context": ("runtime/device.py",),
    # make_tiny: transformers reads only files whose metadata name a framework, and ours carry a checksum there.
    "safetensors": ("checkpoint/",),
    "torch": ("checkpoint/torch_bin.py",),
}
DANGEROUS_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle"}
DANGEROUS_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
DANGEROUS_KEYWORDS = {"shell", "trust_remote_code", "allow_pickle"}
STANDARD = (
    "__future__",
    "collections",
    "dataclasses",
    "difflib",
    "argparse",
    "importlib",
    "signal",
    "inspect",
    "math",
    "typing",
)


@cache
def tree(path: Path) -> ast.Module:
    """The file as Python 3.9 reads it."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 9))


def name(path: Path) -> str:
    return path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, inside functions too; of `from a import b` it is a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def used(path: Path) -> Iterator[str]:
    """Dotted names of imports and of attributes as they are written, `ms` and `mindspore` alike."""
    yield from imports(path)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            written = ast.unparse(node)
            yield "mindspore" + written[2:] if written.startswith("ms.") else written


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def dangerous(call: ast.Call) -> bool:
    """A call of a dangerous function, or one with a dangerous keyword that is not the constant False."""
    risky = [word.value for word in call.keywords if word.arg in DANGEROUS_KEYWORDS]
    given = [value for value in risky if not (isinstance(value, ast.Constant) and value.value is False)]
    return ast.unparse(call.func) in DANGEROUS_CALLS or bool(given)


def within(module: str, parent: str) -> bool:
    return module == parent or module.startswith(parent + ".")


def layer(path: Path) -> str:
    return name(path).split("/")[0]


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_layers_are_all_there_are() -> None:
    assert {layer(path) for path in LAYERED} == set(MAY_IMPORT)


def test_who_imports_whom() -> None:
    wrong = []
    for path in LAYERED:
        # `from mindrlhf import __version__` is of no layer.
        allowed = MAY_IMPORT[layer(path)] | {layer(path), "__version__"}
        ours = {module.split(".")[1] for module in imports(path) if within(module, "mindrlhf")}
        wrong += [f"{name(path)} imports {other}" for other in ours - allowed]
    assert wrong == []


def test_losses_know_only_operators() -> None:
    wrong = [
        f"{name(path)} imports {module}"
        for path in LAYERED
        if layer(path) == "losses"
        for module in imports(path)
        if not any(within(module, known) for known in ("mindspore", "mindrlhf.losses", *STANDARD))
    ]
    assert wrong == []


def test_an_entry_file_calls_a_command() -> None:
    for path in ENTRIES:
        assert lines(path) < LINES_OF_AN_ENTRY, name(path)
        ours = {module.split(".")[1] for module in imports(path) if within(module, "mindrlhf")}
        assert ours == {"commands", "runtime"}, name(path)


def test_what_stands_in_one_place() -> None:
    wrong = []
    for path in SOURCES:
        for module in used(path):
            # The longest rule wins: mindformers.core.optim over mindformers.
            rule = max((parent for parent in ONLY_IN if within(module, parent)), key=len, default=None)
            if rule and not name(path).startswith(ONLY_IN[rule]):
                wrong.append(f"{name(path)} uses {module}")
    assert wrong == []


def test_layouts_stand_in_cells_and_models() -> None:
    sharded = {
        layer(path)
        for path in LAYERED
        for call in calls(path)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "shard"
    }
    assert sharded == {"cells", "models"}


def test_nothing_dangerous() -> None:
    wrong = []
    for path in SOURCES:
        wrong += [name(path) for module in imports(path) if module.split(".")[0] in DANGEROUS_MODULES]
        wrong += [f"{name(path)}: {ast.unparse(call)}" for call in calls(path) if dangerous(call)]
    assert wrong == []


def test_lengths() -> None:
    wrong = []
    for path in SOURCES:
        # losses/preference.py is a table, one entry per loss.
        if lines(path) >= LINES_OF_A_FILE and name(path) != "losses/preference.py":
            wrong.append(f"{name(path)} has {lines(path)} lines")
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                count = (node.end_lineno or 0) - node.lineno + 1
                if count > LINES_OF_A_FUNCTION:
                    wrong.append(f"{name(path)}: {node.name} has {count} lines")
    wrong += [f"{path} has {lines(path)} lines" for path in YAMLS if lines(path) >= LINES_OF_A_YAML]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("def f():\n    from mindrlhf.models import llama\n", "mindrlhf.models.llama"),
        ("import mindspore.mindrecord as m\n", "mindspore.mindrecord"),
        ("import mindspore as ms\nms.load_checkpoint('x')\n", "mindspore.load_checkpoint"),
    ],
)
def test_what_is_looked_for_is_found(tmp_path: Path, text: str, rule: str) -> None:
    path = tmp_path / "source.py"
    path.write_text(text, encoding="utf-8")
    assert rule in set(used(path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("eval(word)", True),
        ("model.eval()", False),
        ("subprocess.run(words, shell=True)", True),
        ("subprocess.run(words, shell=False)", False),
        ("yaml.load(text)", True),
        ("yaml.load(text, Loader=StrictLoader)", True),
        ("yaml.safe_load(text)", False),
        ("AutoTokenizer.from_pretrained(path, trust_remote_code=flag)", True),
    ],
)
def test_what_is_dangerous(text: str, expected: bool) -> None:
    assert dangerous(ast.parse(text, mode="eval").body) == expected
