"""Every mistake of docs/mistakes.md: the sentence that stands there, exit code 2, and no file lost."""

from __future__ import annotations

import re

import pytest
from mistakes import ODDITIES, REPLACES, TABLE, WORK
from workshop import DOCUMENT, Workshop, ended, table

CASES = [(section, mistake) for section, mistakes in TABLE.items() for mistake in mistakes]


@pytest.mark.parametrize(("section", "mistake"), CASES, ids=lambda word: word)
def test_a_mistake_gets_the_sentence_of_the_document(section: str, mistake: str, shop: Workshop) -> None:
    argv = TABLE[section][mistake](shop)
    before = shop.files()
    assert ended(argv) == (2, table(section)[mistake]), "python tests/fault/write_document.py writes the tables anew"
    after = shop.files()
    changed = {name.partition(".")[0] for name, file in before.items() if after.get(name) != file}
    assert changed == ({"train"} if mistake in REPLACES else set())


@pytest.mark.parametrize("oddity", WORK)
def test_what_is_odd_and_no_mistake_works(oddity: str, shop: Workshop) -> None:
    assert ended(WORK[oddity](shop)) == (0, table(ODDITIES)[oddity])


def test_the_document_has_these_mistakes_and_no_other() -> None:
    sections = {**TABLE, ODDITIES: WORK}
    assert re.findall("(?m)^## (.*)", DOCUMENT.read_text(encoding="utf-8")) == list(sections)
    assert {section: list(table(section)) for section in sections} == {
        section: list(mistakes) for section, mistakes in sections.items()
    }
    assert len(CASES) > 40
