"""The synthetic preference set: disjoint splits, whole sentences, two languages, two manners, a spread of lengths."""

from __future__ import annotations

from itertools import islice

import pytest

from mindrlhf.data.phrases import Language
from mindrlhf.data.synthetic import LANGUAGES, SPLITS, preference_rows, split_of

GROUPS = [group for language in LANGUAGES for group in language.groups]


def starts_well(answer: str) -> bool:
    """Whether the answer opens as one of the good styles."""
    openings = [opening.split("{}")[0] for group in GROUPS for opening in group.good.openings]
    return any(answer.startswith(opening) for opening in openings if opening)


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)


@pytest.mark.parametrize("split", SPLITS)
def test_a_seed_names_the_rows(split: str) -> None:
    rows = list(preference_rows(20, 7, split))
    assert rows == list(preference_rows(20, 7, split))
    assert rows == list(islice(preference_rows(50, 7, split), 20))
    assert rows != list(preference_rows(20, 8, split))


def test_no_prompt_is_in_two_splits() -> None:
    prompts = {
        split: {row["prompt"] for seed in (0, 1) for row in preference_rows(1500, seed, split)} for split in SPLITS
    }
    assert prompts["held_out"].isdisjoint(prompts["train"] | prompts["corpus"])
    assert prompts["train"].isdisjoint(prompts["corpus"])
    assert all(split_of(prompt) == split for split in SPLITS for prompt in prompts[split])


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_whole_and_differ(split: str) -> None:
    for row in preference_rows(500, 0, split):
        assert list(row) == ["prompt", "pos_resp", "neg_resp"]
        assert row["pos_resp"] != row["neg_resp"]
        for text in row.values():
            assert text[-1] in ".!?。！？"
            assert not {"{", "}"} & set(text)
            assert "  " not in text
        assert is_chinese(row["prompt"]) == is_chinese(row["pos_resp"]) == is_chinese(row["neg_resp"])


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_good_answer_is_preferred(split: str) -> None:
    rows = list(preference_rows(300, 0, split))
    assert all(starts_well(row["pos_resp"]) and not starts_well(row["neg_resp"]) for row in rows)


def test_the_corpus_teaches_both_manners_equally() -> None:
    rows = list(preference_rows(300, 0, "corpus"))
    assert [starts_well(row["pos_resp"]) for row in rows] == [True, False] * 150
    assert [starts_well(row["neg_resp"]) for row in rows] == [False, True] * 150


def test_languages_are_mixed() -> None:
    share = sum(is_chinese(row["prompt"]) for row in preference_rows(1000, 0, "train")) / 1000
    assert 0.4 < share < 0.6


def test_lengths_spread_with_a_long_tail() -> None:
    rows = [row for row in preference_rows(2000, 0, "train") if not is_chinese(row["prompt"])]
    lengths = sorted(len((row["prompt"] + " " + row["pos_resp"]).split()) for row in rows)
    median = lengths[len(lengths) // 2]
    assert lengths[0] < median / 1.5
    assert lengths[-1] > 2 * median
    assert lengths[-1] - median > 1.5 * (median - lengths[0])


@pytest.mark.parametrize("language", LANGUAGES)
def test_tables_can_be_composed(language: Language) -> None:
    tasks = [topic.task for group in language.groups for topic in group.topics]
    assert len(set(tasks)) == len(tasks)
    assert all(form.count("{}") == 1 for form in language.forms)
    for group in language.groups:
        assert set(group.good.openings).isdisjoint(group.bad.openings)
        for topic in group.topics:
            assert set(topic.tips).isdisjoint(topic.shortcuts)
        for style, points in ((group.good, "tips"), (group.bad, "shortcuts")):
            assert all(frame.count("{}") == 1 for frame in style.first + style.further)
            assert all(len(getattr(topic, points)) <= len(style.further) + 1 for topic in group.topics)
