"""With every family's tokenizer and template: of random conversations the response's tokens are scored, no others."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindrlhf.data.formats import Preference
from mindrlhf.data.preference import EncodedPair, encode_pair
from mindrlhf.data.records import Pair
from mindrlhf.data.rows import COLLATIONS, Rows, round_up
from mindrlhf.data.tokenizers import ChatTokenizer, load_tokenizer
from mindrlhf.models import families, get_family

PAIRS = 200
TOGETHER = 8  # pairs of one batch
CHINESE = "今天天气很好我们去公园散步吧请问怎么煮米饭，。？！：《》「」１２３　"
ENGLISH = [
    "Which",
    "way is north?",
    "It's 3.5 km, isn't it;",
    "e-mail",
    "(soon)!",
    "straße",
    "naïve",
    "\t",
    "\n",
    "\n\n",
]
EMOJI = ["🙂", "👩‍👩‍👧‍👦", "🇨🇳", "👍🏽", "❤️", "𝔘", "\u200b", "\u00a0"]
EMPTYISH = ["", " ", "\n", ".", "a", "0", "\n\n", "  \t"]
# Every tokenizer of a family knows some of these as tokens; in a message they are text.
CONTROLS = ["<|im_end|>", "<|eot_id|>", "</s>", "<reserved_106>", "<|user|>", "[gMASK]", "<|endoftext|>"]
CASES = [(family, template) for family in families() for template in ("auto", get_family(family).template)]


def words(draw: np.random.Generator) -> str:
    """A text of any kind, in the composed form of Unicode that tokenizers keep."""
    kind = draw.integers(8)
    if kind == 0:
        return EMPTYISH[draw.integers(len(EMPTYISH))]
    parts: list[str] = []
    for _ in range(draw.integers(1, 12)):
        which = draw.integers(10)
        if which < 4:
            parts.append("".join(CHINESE[at] for at in draw.integers(len(CHINESE), size=draw.integers(1, 6))))
        elif which < 8:
            parts.append(" " * int(draw.integers(3)) + ENGLISH[draw.integers(len(ENGLISH))])
        elif which < 9 or kind < 6:
            parts.append(EMOJI[draw.integers(len(EMOJI))])
        else:
            parts.append(CONTROLS[draw.integers(len(CONTROLS))])
    return unicodedata.normalize("NFC", "".join(parts))


def conversation(draw: np.random.Generator) -> Preference:
    """Up to three turns, with a system message now and then, and two answers that differ by more than blanks."""
    turns = [{"role": "system", "content": words(draw)}] if draw.integers(4) == 0 else []
    for _ in range(draw.integers(3)):
        turns += [{"role": "user", "content": words(draw)}, {"role": "assistant", "content": words(draw)}]
    turns.append({"role": "user", "content": words(draw)})
    chosen, rejected = words(draw), words(draw)
    while chosen.strip() == rejected.strip():
        rejected = words(draw) + "x"
    answers = [({"role": "assistant", "content": text},) for text in (chosen, rejected)]
    return Preference(1, tuple(turns), *answers)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def tokenizer(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> ChatTokenizer:
    family, template = request.param
    return load_tokenizer(tiny_folder(family), chat_template=template)


@pytest.fixture(scope="module")
def encoded(tokenizer: ChatTokenizer) -> list[tuple[Preference, EncodedPair]]:
    draw = np.random.default_rng(4)
    preferences = [conversation(draw) for _ in range(PAIRS)]
    return [(preference, encode_pair(tokenizer, preference)) for preference in preferences]


def test_responses_are_what_the_template_renders_beyond_the_prompt(
    tokenizer: ChatTokenizer, encoded: list[tuple[Preference, EncodedPair]]
) -> None:
    for preference, pair in encoded:
        prompt = rendered(tokenizer, preference.prompt, True)
        for answer, ids in ((preference.chosen, pair.chosen_ids), (preference.rejected, pair.rejected_ids)):
            whole = rendered(tokenizer, [*preference.prompt, *answer], False)
            assert whole.startswith(prompt)
            before, text = text_of(tokenizer, pair.prompt_ids, ids)
            assert before + text == whole
            # A token that spans the border belongs to the response; nothing else of the prompt does.
            spanned = len(prompt) - len(before)
            assert spanned >= 0
            if spanned:
                assert len(text_of(tokenizer, pair.prompt_ids, ids[:1])[1]) > spanned


def test_scored_tokens_are_exactly_the_responses(encoded: list[tuple[Preference, EncodedPair]]) -> None:
    pairs = [
        Pair(number, pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) for number, (_, pair) in enumerate(encoded)
    ]
    for start in range(0, PAIRS, TOGETHER):
        batch: list[Pair | None] = [*pairs[start : start + TOGETHER], None]
        for pair, rows in zip(batch, rows_of_each(batch)):
            check_rows(pair, rows)


def rows_of_each(batch: list[Pair | None]) -> list[Rows]:
    """The rows of each pair, out of rows of the whole batch."""
    real = [pair for pair in batch if pair is not None]
    responses = [(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in real]
    scored = round_up(max(map(max, responses)))
    length = round_up(max(len(pair.prompt_ids) + max(pair_sizes) - 1 for pair, pair_sizes in zip(real, responses)))
    collation = COLLATIONS["padded"]
    rows = collation.collate(batch, length, scored, len(real), sum(chosen for chosen, _ in responses))
    size = collation.rows_per_unit
    return [Rows(*(_part(field, unit, len(batch), size) for field in rows)) for unit in range(len(batch))]


def _part(field: np.ndarray, unit: int, units: int, size: int) -> np.ndarray:
    """The rows of one unit, where the field is one of rows."""
    return field[unit * size : (unit + 1) * size] if field.shape[:1] == (units * size,) else field


def check_rows(pair: Pair | None, rows: Rows) -> None:
    """Of one pair's two rows, chosen and rejected; a filler has no token and scores none."""
    none = 2
    if pair is None:
        assert (rows.sequence_index == none).all()
        assert not rows.segment_ids.any()
        return
    for branch, response in enumerate((pair.chosen_ids, pair.rejected_ids)):
        scored = rows.sequence_index[branch] != none
        assert (rows.sequence_index[branch][scored] == branch).all()
        targets, places = rows.targets[branch][scored], rows.predict_from[branch][scored]
        np.testing.assert_array_equal(targets, response)
        # Targets are the row's own tokens, one further on; the last is in no row.
        np.testing.assert_array_equal(targets[:-1], rows.input_ids[branch][places[:-1] + 1])
        prompt = len(pair.prompt_ids)
        np.testing.assert_array_equal(places, prompt - 1 + np.arange(len(response)))
        np.testing.assert_array_equal(rows.input_ids[branch][:prompt], pair.prompt_ids)
        # The first is predicted by the prompt's last token, every other one by the response.
        np.testing.assert_array_equal(rows.segment_ids[branch][places], [1, *[2 + branch] * (len(response) - 1)])
        tokens = prompt + len(response) - 1
        assert (rows.segment_ids[branch] > 0).sum() == tokens == places[-1] + 1
        assert not rows.segment_ids[branch][tokens:].any()


def rendered(tokenizer: ChatTokenizer, messages: Any, add_generation_prompt: bool) -> str:
    """The text that transformers makes of a conversation with the template in use."""
    return tokenizer._tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        chat_template=tokenizer.template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
    )


def text_of(tokenizer: ChatTokenizer, prompt: np.ndarray, response: np.ndarray) -> tuple[str, str]:
    """The texts of both: a decoder may treat the first token of all otherwise than the first of the response."""
    before = tokenizer.decode(prompt, skip_special_tokens=False)
    whole = tokenizer.decode([*prompt, *response], skip_special_tokens=False)
    # A character whose bytes are split between them is not whole in `before`.
    before = before.rstrip("\ufffd")
    assert whole.startswith(before)
    return before, whole.removeprefix(before)
