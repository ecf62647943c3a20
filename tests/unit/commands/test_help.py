"""--help of every command, and the frozen list of their flags."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mindrlhf.commands import convert, make_pairs, make_tiny, plan, preprocess, quickstart, train, transform
from mindrlhf.commands.flags import Parser

ROOT = Path(__file__).resolve().parents[3]
# A flag is an interface: one may come, none may go.
OPTIONS = json.loads(Path(__file__).with_name("options.json").read_text(encoding="utf-8"))
PARSERS = {
    "run_dpo.py": train.parser,
    "tools/convert_weight.py": convert.parser,
    "tools/dpo_preprocess.py": preprocess.parser,
    "tools/make_preference_data.py": make_pairs.parser,
    "tools/make_tiny_model.py": make_tiny.parser,
    "tools/plan_layout.py": plan.parser,
    "tools/quickstart.py": quickstart.parser,
    "tools/transform_checkpoint.py": transform.parser,
}
HEAVY = [
    "mindspore",
    "mindformers",
    "numpy",
    "transformers",
    "tokenizers",
    "safetensors",
    "torch",
    "matplotlib",
    "tqdm",
]
# Runs a script as if it were called with --help, then says which of the heavy modules it has loaded.
RUN = """
import runpy, sys
script, *heavy = sys.argv[1:]
sys.argv = [script, "--help"]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as ended:
    print(*(name for name in heavy if name in sys.modules), file=sys.stderr)
    raise SystemExit(ended.code)
"""


def flags_of(parser: Parser) -> list[str]:
    return sorted(option for action in parser._actions for option in action.option_strings if option.startswith("--"))


@pytest.mark.parametrize("script", PARSERS)
def test_the_flags_of_a_command_are_those_published(script: str) -> None:
    assert flags_of(PARSERS[script]()) == sorted([*OPTIONS[script], "--help"])


def test_every_entry_file_has_its_flags_published() -> None:
    entries = {path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("run_*.py"), *ROOT.glob("tools/*.py"))}
    assert entries == set(OPTIONS) == set(PARSERS)


@pytest.mark.parametrize("script", PARSERS)
def test_help_lists_flags_in_groups_and_imports_nothing_heavy(script: str) -> None:
    argv = [sys.executable, "-c", RUN, str(ROOT / script), *HEAVY]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert all(f"  {flag} " in done.stdout or f"  {flag}\n" in done.stdout for flag in OPTIONS[script])


@pytest.mark.parametrize("script", PARSERS)
def test_every_flag_is_in_a_group_and_says_what_it_is_and_its_default(script: str) -> None:
    parser = PARSERS[script]()
    assert [action.option_strings for action in parser._optionals._group_actions] == [["-h", "--help"]]
    text = parser.format_help()
    for group in parser._action_groups[2:]:
        assert f"\n{group.title}:\n" in text
        for action in group._group_actions:
            assert action.help
            said = " ".join(text.partition(f"  {action.option_strings[0]} ")[2].split())
            assert said
            if action.default is not None:
                assert f"(default: {action.default})" in said


def test_a_flag_that_sets_a_key_of_the_yaml_says_so() -> None:
    said = " ".join(train.parser().format_help().split())
    assert "(default: run_mode of the yaml, train)" in said
    assert "(default: data.train of the yaml)" in said
