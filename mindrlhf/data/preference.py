"""From a preference to token ids, and what is done with a pair that is too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mindrlhf.data.formats import Message, Preference, Text
from mindrlhf.data.templates import TemplateError
from mindrlhf.data.tokenizers import ChatTokenizer
from mindrlhf.runtime.errors import UserError

OVERLONG = ("drop", "truncate_prompt_left", "truncate_end")


@dataclass(frozen=True)
class EncodedPair:
    """Ids of one pair, int32 vectors, none empty: `chosen_ids` and `rejected_ids` each follow `prompt_ids`."""

    prompt_ids: np.ndarray
    chosen_ids: np.ndarray
    rejected_ids: np.ndarray


def encode_pair(tokenizer: ChatTokenizer, preference: Preference) -> EncodedPair:
    """Tokenize a pair: a response is what prompt and answer render to beyond the prompt with the generation prompt.

    Where a token spans that border, the prompt ends before it. Raises `TemplateError` where the template refuses the
    conversation, or where nothing is left of the prompt, of a response, or of the difference between the two.
    """
    encode = _encode_plain if preference.plain else partial(_encode_chat, tools=preference.tools)
    prompt = encode(tokenizer, preference.prompt, None)
    chosen = encode(tokenizer, preference.prompt, preference.chosen)
    rejected = encode(tokenizer, preference.prompt, preference.rejected)
    border = min(_common_length(prompt, chosen), _common_length(prompt, rejected))
    if border == 0:
        raise TemplateError("no token of the prompt stands before the responses", "empty prompt")
    if border in (len(chosen), len(rejected)):
        raise TemplateError("a response has no token of its own", "empty response")
    if chosen == rejected:
        raise TemplateError("the chosen and the rejected response give the same tokens", "identical responses")
    parts = (prompt[:border], chosen[border:], rejected[border:])
    return EncodedPair(*(np.array(ids, dtype=np.int32) for ids in parts))


def fit(pair: EncodedPair, seq_len: int, policy: str) -> EncodedPair | None:
    """The pair with at most `seq_len` tokens in prompt and longer response; None where it is overlong.

    drop: never cut. truncate_prompt_left: the prompt keeps its end, one token at least. truncate_end: prompt and
    response together keep their first `seq_len` tokens, as TRL's keep_start, one of each response at least.
    """
    prompt, chosen, rejected = pair.prompt_ids, pair.chosen_ids, pair.rejected_ids
    room = seq_len - max(len(chosen), len(rejected))
    if len(prompt) <= room:
        return pair
    if policy == "drop":
        return None
    if policy == "truncate_prompt_left":
        return EncodedPair(prompt[-room:], chosen, rejected) if room > 0 else None
    if policy == "truncate_end":
        room = seq_len - len(prompt)
        return EncodedPair(prompt, chosen[:room], rejected[:room]) if room > 0 else None
    raise ValueError(f"overlong policy {policy!r} is none of {', '.join(OVERLONG)}")


def _encode_chat(tokenizer: ChatTokenizer, prompt: Text, answer: Text | None, tools: Sequence[Any] = ()) -> list[int]:
    messages: Sequence[Message] = [*prompt, *(answer or ())]
    return tokenizer.encode_messages(messages, answer is None, tools)


def _encode_plain(tokenizer: ChatTokenizer, prompt: Text, answer: Text | None) -> list[int]:
    assert isinstance(prompt, str)
    if answer is None:
        return tokenizer.encode_text(prompt)
    assert isinstance(answer, str)
    if tokenizer.eos_token is None or tokenizer.eos_id is None:
        raise UserError(f"the tokenizer {tokenizer.path} has no EOS token, and plain responses end in one")
    return [*tokenizer.encode_text(prompt + answer.removesuffix(tokenizer.eos_token)), tokenizer.eos_id]


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right)):
        if a != b:
            return index
    return min(len(left), len(right))
