"""Chat templates: the tokenizer's own rendering, its special tokens told from those that users wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mindrlhf.data.formats import Message

_FIRST_MARK, _LAST_MARK = 0xF0000, 0xFFFFD  # a private plane of Unicode, which no tokenizer gives a meaning


class TemplateError(ValueError):
    """A pair that cannot be encoded: `reason` is a short stable name that is counted, `sentence` is for the reader."""

    def __init__(self, sentence: str, reason: str = "chat template") -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence


@dataclass(frozen=True)
class Piece:
    """Part of a rendering. `literal`: special tokens in `text` were written by a user and stay text."""

    text: str
    literal: bool


class ChatTemplate:
    """The chat template of a transformers tokenizer; `source` is its text, empty where there is none."""

    def __init__(self, tokenizer: Any) -> None:
        template = tokenizer.chat_template
        self.source: str = (template.get("default") if isinstance(template, dict) else template) or ""
        self._tokenizer = tokenizer
        special = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
        special.sort(key=lambda token: len(token.content), reverse=True)
        never = r"(?!)"
        self._written = re.compile("|".join(re.escape(token.content) for token in special) or never)
        # lstrip and rstrip tokens swallow the blanks beside them.
        self._swallowing = re.compile(
            "|".join(
                (r"\s*" if token.lstrip else "") + re.escape(token.content) + (r"\s*" if token.rstrip else "")
                for token in special
            )
            or never
        )

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """What transformers' `apply_chat_template` gives; `TemplateError` where the template refuses it."""
        from jinja2 import TemplateError as JinjaError

        try:
            return self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (JinjaError, TypeError) as error:
            raise TemplateError(f"the chat template refuses it: {error}") from error

    def split(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[Piece]:
        """The rendering in pieces that concatenate to it: one, unless a message holds a special token's text.

        Then marks stand for such text while the template renders, so that the special tokens found are its own.
        """
        rendering = self.render(messages, add_generation_prompt)
        contents = [message["content"] for message in messages]
        named = sorted({name for content in contents for name in self._written.findall(content)})
        if not named:
            return [Piece(rendering, literal=False)]
        taken = set(rendering).union(*contents)
        free = (chr(code) for code in range(_FIRST_MARK, _LAST_MARK) if chr(code) not in taken)
        marks = dict(zip(named, free))
        marked = self.render(
            [{**m, "content": self._written.sub(lambda name: marks[name[0]], m["content"])} for m in messages],
            add_generation_prompt,
        )
        restore = str.maketrans({mark: name for name, mark in marks.items()})
        if marked.translate(restore) != rendering:
            raise TemplateError("the chat template treats a special token inside a message as its own")
        return [Piece(text.translate(restore), literal) for text, literal in _cut(self._swallowing, marked) if text]


def _cut(pattern: re.Pattern[str], text: str) -> list[tuple[str, bool]]:
    """`text` as (part, False) for each match of `pattern` and (part, True) for what stands between them."""
    parts, position = [], 0
    for match in pattern.finditer(text):
        parts += [(text[position : match.start()], True), (match[0], False)]
        position = match.end()
    return [*parts, (text[position:], True)]
