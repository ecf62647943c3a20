"""docs/data.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mindrlhf.data.builtin_templates import ALIASES, BUILT_IN
from mindrlhf.data.data_config import DataConfig, read_data_config
from mindrlhf.data.formats import DATASET_TYPES, Preference
from mindrlhf.data.known_sets import KNOWN_SETS
from mindrlhf.data.sources import Source

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^\| `(\w+)` \| `(\{.*\})` \|$", PAGE, re.MULTILINE)


def test_every_format_has_an_example() -> None:
    assert [name for name, _ in EXAMPLES] == list(DATASET_TYPES)


@pytest.mark.parametrize(("name", "row"), EXAMPLES)
def test_an_example_is_a_pair(tmp_path: Path, name: str, row: str) -> None:
    (tmp_path / "x.jsonl").write_text(row + "\n", encoding="utf-8")
    pair = next(iter(Source([str(tmp_path / "x.jsonl")], name).read()))
    assert isinstance(pair, Preference)
    assert [text[-1]["content"] for text in (pair.prompt, pair.chosen, pair.rejected)] == ["q", "good", "bad"]  # type: ignore[index]


def test_every_template_and_every_known_set_is_named() -> None:
    for name in (*BUILT_IN, *KNOWN_SETS):
        assert f"`{name}`" in PAGE
    assert all(known.page in PAGE for known in KNOWN_SETS.values())
    named = set(re.findall(r"\(`(\w+)`\)", PAGE))
    assert named <= set(ALIASES)


def test_the_yaml_is_read(tmp_path: Path) -> None:
    lines = [line[4:] for line in PAGE.splitlines() if re.match(r"    \w+: ", line)]
    (tmp_path / "d.yaml").write_text("\n".join(lines), encoding="utf-8")
    config = read_data_config(tmp_path / "d.yaml")
    assert config == DataConfig(
        **{**vars(config), "src": ("./orca_rlhf.jsonl",), "dst": "./orca.mindrecord", "dataset_type": "alpaca"}
    )
    assert (config.seq_len, config.workers, config.chat_template) == (4096, 8, "qwen3")
