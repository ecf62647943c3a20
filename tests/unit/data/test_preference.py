from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mindrlhf.data.formats import Preference
from mindrlhf.data.preference import OVERLONG, EncodedPair, encode_pair, fit
from mindrlhf.data.templates import TemplateError
from mindrlhf.data.tokenizers import ChatTokenizer, load_tokenizer
from mindrlhf.runtime.errors import UserError

HISTORY = (
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "the question"},
    {"role": "assistant", "content": "a few"},
    {"role": "user", "content": "今天天气？"},
)


def answer(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "assistant", "content": text},)


def pair_of(prompt: int, chosen: int, rejected: int) -> EncodedPair:
    """Tokens 0 to P-1, 100 and up, 200 and up."""
    parts = (np.arange(prompt), 100 + np.arange(chosen), 200 + np.arange(rejected))
    return EncodedPair(*(part.astype(np.int32) for part in parts))


def lengths(pair: EncodedPair | None) -> tuple[int, int, int] | None:
    return None if pair is None else (len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids))


def test_response_is_what_follows_the_generation_prompt(tokenizer: ChatTokenizer) -> None:
    pair = encode_pair(tokenizer, Preference(1, HISTORY, answer("很好"), answer("很好吧")))
    assert pair.prompt_ids.tolist() == tokenizer.encode_messages(HISTORY, add_generation_prompt=True)
    assert tokenizer.decode(pair.chosen_ids, skip_special_tokens=False) == "很好<|im_end|>\n"
    assert tokenizer.decode(pair.rejected_ids, skip_special_tokens=False) == "很好吧<|im_end|>\n"
    assert {ids.dtype for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)} == {np.dtype(np.int32)}


def test_prompt_and_response_are_the_whole_rendering(tokenizer: ChatTokenizer) -> None:
    pair = encode_pair(tokenizer, Preference(1, HISTORY, answer("words <|im_end|>"), answer("the model")))
    for ids, text in ((pair.chosen_ids, "words <|im_end|>"), (pair.rejected_ids, "the model")):
        whole = tokenizer.encode_messages([*HISTORY, *answer(text)], add_generation_prompt=False)
        assert [*pair.prompt_ids, *ids] == whole


def test_plain_text_ends_in_eos_once(tokenizer: ChatTokenizer) -> None:
    pair = encode_pair(tokenizer, Preference(1, "the question: ", "words<|im_end|>", "model"))
    assert tokenizer.decode(pair.prompt_ids).rstrip() == "the question:"
    for ids, text in ((pair.chosen_ids, "words"), (pair.rejected_ids, "model")):
        assert ids[-1] == tokenizer.eos_id
        assert tokenizer.eos_id not in ids[:-1]
        assert [*pair.prompt_ids, *ids[:-1]] == tokenizer.encode_text("the question: " + text)


def test_a_token_across_the_border_belongs_to_the_response(tokenizer: ChatTokenizer) -> None:
    assert len(tokenizer.encode_text(" question")) == 1
    for chosen, rejected in (("ion", "s"), ("s", "ion")):
        pair = encode_pair(tokenizer, Preference(1, "the quest", chosen, rejected))
        assert tokenizer.decode(pair.prompt_ids) == "the"
        assert tokenizer.decode(pair.chosen_ids) == " quest" + chosen
        assert tokenizer.decode(pair.rejected_ids) == " quest" + rejected


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (Preference(1, "天", "气", "好"), "empty prompt"),
        (Preference(1, "the question", "a<|im_end|>", "a"), "identical responses"),
    ],
)
def test_pairs_without_tokens_to_compare_are_refused(tokenizer: ChatTokenizer, pair: Preference, reason: str) -> None:
    with pytest.raises(TemplateError) as caught:
        encode_pair(tokenizer, pair)
    assert caught.value.reason == reason


def with_template(folder: Any, tmp_path: Any, source: str) -> ChatTokenizer:
    for file in load_tokenizer(folder).files:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(source)
    return load_tokenizer(tmp_path)


def test_a_template_that_trims_can_make_responses_identical(tokenizer_folder: Any, tmp_path: Any) -> None:
    trimming = "{% for m in messages %}<|im_start|>{{ m.content | trim }}{% endfor %}"
    tokenizer = with_template(tokenizer_folder, tmp_path, trimming)
    with pytest.raises(TemplateError, match="same tokens"):
        encode_pair(tokenizer, Preference(1, HISTORY, answer("a"), answer("a ")))


def test_a_template_that_drops_the_answer_is_refused(tokenizer_folder: Any, tmp_path: Any) -> None:
    tokenizer = with_template(tokenizer_folder, tmp_path, "{{ messages[0].content }}")
    with pytest.raises(TemplateError, match="no token of its own"):
        encode_pair(tokenizer, Preference(1, HISTORY, answer("a"), answer("b")))


def test_plain_text_needs_an_eos_token(tokenizer_folder: Any, tmp_path: Any) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="no EOS"):
        encode_pair(load_tokenizer(tmp_path), Preference(1, "q ", "a", "b"))


# Prompt 5, chosen 3, rejected 4: 9 tokens with the longer response.
@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("drop", {10: (5, 3, 4), 9: (5, 3, 4), 8: None}),
        ("truncate_prompt_left", {9: (5, 3, 4), 8: (4, 3, 4), 5: (1, 3, 4), 4: None, 1: None}),
        ("truncate_end", {9: (5, 3, 4), 8: (5, 3, 3), 7: (5, 2, 2), 6: (5, 1, 1), 5: None, 1: None}),
    ],
)
def test_overlong_policies(policy: str, expected: dict[int, Any]) -> None:
    pair = pair_of(5, 3, 4)
    assert {seq_len: lengths(fit(pair, seq_len, policy)) for seq_len in expected} == expected


@pytest.mark.parametrize("policy", OVERLONG)
def test_a_fitting_pair_is_left_alone(policy: str) -> None:
    pair = pair_of(2, 6, 1)
    assert fit(pair, 8, policy) is pair


def test_prompt_keeps_its_end_and_responses_their_beginning() -> None:
    left = fit(pair_of(5, 3, 4), 6, "truncate_prompt_left")
    end = fit(pair_of(5, 3, 4), 7, "truncate_end")
    assert left is not None
    assert end is not None
    assert left.prompt_ids.tolist() == [3, 4]
    assert end.chosen_ids.tolist() == [100, 101]
    assert end.rejected_ids.tolist() == [200, 201]


def test_no_policy_leaves_more_than_seq_len_or_an_empty_part() -> None:
    for prompt, chosen, rejected, seq_len in np.random.default_rng(3).integers(1, 12, (400, 4)).tolist():
        for policy in OVERLONG:
            fitted = fit(pair_of(prompt, chosen, rejected), seq_len, policy)
            if fitted is not None:
                sizes = lengths(fitted)
                assert sizes is not None
                assert min(sizes) >= 1
                assert sizes[0] + max(sizes[1:]) <= seq_len


def test_tools_are_part_of_the_prompt(tokenizer_folder: Any) -> None:
    tokenizer = load_tokenizer(tokenizer_folder, chat_template="qwen")
    tools = ({"type": "function", "function": {"name": "weather"}},)
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "x"}}}
    calling = ({"role": "assistant", "content": "", "tool_calls": [call]},)
    pair = encode_pair(tokenizer, Preference(1, HISTORY, calling, answer("no"), tools=tools))
    assert pair.prompt_ids.tolist() == tokenizer.encode_messages(HISTORY, True, tools)
    assert '<tools>\n{"type": "function", "function": {"name": "weather"}}' in tokenizer.decode(pair.prompt_ids)
    assert tokenizer.decode(pair.chosen_ids).startswith('<tool_call>\n{"name": "weather", "arguments": {"city": "x"}}')


def test_unknown_policy_is_an_error() -> None:
    with pytest.raises(ValueError, match="drop"):
        fit(pair_of(5, 3, 4), 8, "cut")
