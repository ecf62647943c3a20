"""Every mistake of docs/mistakes.md: the sentence that stands there, exit code 2, and no file lost."""

from __future__ import annotations

import re

import pytest
from mistakes import REPLACES, TABLE, WORK
from workshop import COMMANDS, DOCUMENT, Workshop, table

from mindrlhf.runtime.errors import run

CASES = [(section, mistake) for section, mistakes in TABLE.items() for mistake in mistakes]


def ended(argv: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    capfd.readouterr()
    code = run(COMMANDS[argv[0]], argv[1:])
    return code, *capfd.readouterr()


@pytest.mark.parametrize(("section", "mistake"), CASES, ids=lambda word: word)
def test_a_mistake_gets_the_sentence_of_the_document(
    section: str, mistake: str, shop: Workshop, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = TABLE[section][mistake](shop)
    before = shop.files()
    code, out, err = ended(argv, capfd)
    assert code == 2
    assert "Traceback" not in out + err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.replace(f"{shop.folder}/", "") == f"error: {table(section)[mistake]}"
    after = shop.files()
    changed = {name.partition(".")[0] for name, file in before.items() if after.get(name) != file}
    assert changed == ({"train"} if mistake in REPLACES else set())


@pytest.mark.parametrize("oddity", WORK)
def test_what_is_odd_and_no_mistake_works(oddity: str, shop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = ended(WORK[oddity](shop), capfd)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == table("What is odd and works")[oddity]


def test_the_document_has_these_mistakes_and_no_other() -> None:
    sections = {**TABLE, "What is odd and works": WORK}
    assert re.findall("(?m)^## (.*)", DOCUMENT.read_text(encoding="utf-8")) == list(sections)
    assert {section: list(table(section)) for section in sections} == {
        section: list(mistakes) for section, mistakes in sections.items()
    }
    assert len(CASES) > 40
