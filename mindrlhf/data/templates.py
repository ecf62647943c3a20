"""Chat templates: the tokenizer's own rendering, its special tokens told from those that users wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from mindrlhf.data.builtin_templates import Chosen
from mindrlhf.data.conversation import Message

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
    """A chat template for a transformers tokenizer; `source` is its text."""

    def __init__(self, tokenizer: Any, chosen: Chosen) -> None:
        self.source = chosen.source
        self._tokenizer = tokenizer
        added = sorted(tokenizer.added_tokens_decoder.values(), key=lambda token: len(token.content), reverse=True)
        special = [token for token in added if token.special]
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
        # Tokens that a template which is not the tokenizer's own writes, but that the tokenizer cannot keep as text.
        controls = [] if chosen.own else [token.content for token in added if token.content in chosen.source]
        plain = [content for content in controls if not self._written.fullmatch(content)]
        self._unprotected = re.compile("|".join(map(re.escape, plain)) or never)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[Any] = ()) -> str:
        """What transformers' `apply_chat_template` gives; `TemplateError` where the template refuses it."""
        from jinja2 import TemplateError as JinjaError

        try:
            return self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=list(tools) or None,
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except (JinjaError, TypeError, ValueError, AttributeError, LookupError, RecursionError) as error:
            raise TemplateError(f"the chat template refuses it: {error}") from error

    def split(self, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[Any] = ()) -> list[Piece]:
        """The rendering in pieces that concatenate to it: one, unless a text of it holds a special token's text.

        Then marks stand for such text while the template renders, so that the special tokens found are its own. Texts
        are those of contents, of calls of tools with their arguments, and of the `tools` with all they describe.
        """
        try:
            return self._split(messages, add_generation_prompt, tools)
        except RecursionError as error:
            raise TemplateError("its tools are nested too deeply") from error

    def _split(self, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[Any]) -> list[Piece]:
        rendering = self.render(messages, add_generation_prompt, tools)
        texts = [text for value in (messages, tools) for text in _texts(value)]
        for text in texts:
            if unprotected := self._unprotected.search(text):
                raise TemplateError(f"it holds {unprotected[0]}, which this tokenizer cannot keep as text")
        named = sorted({name for text in texts for name in self._written.findall(text)})
        if not named:
            return [Piece(rendering, literal=False)]
        taken = set(rendering).union(*texts)
        free = (chr(code) for code in range(_FIRST_MARK, _LAST_MARK) if chr(code) not in taken)
        marks = dict(zip(named, free))

        def mark(text: str) -> str:
            return self._written.sub(lambda name: marks[name[0]], text)

        marked = self.render(_changed(list(messages), mark), add_generation_prompt, _changed(list(tools), mark))
        restore = str.maketrans({mark: name for name, mark in marks.items()})
        if marked.translate(restore) != rendering:
            raise TemplateError("the chat template treats a special token inside a message as its own")
        return [Piece(text.translate(restore), literal) for text, literal in _cut(self._swallowing, marked) if text]


def _texts(value: Any) -> Iterator[str]:
    """Every text in messages or tools, however deep, names of fields included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """A copy with every text that `_texts` finds changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _changed(item, change) for key, item in value.items()}
    return [_changed(item, change) for item in value] if isinstance(value, (list, tuple)) else value


def _cut(pattern: re.Pattern[str], text: str) -> list[tuple[str, bool]]:
    """`text` as (part, False) for each match of `pattern` and (part, True) for what stands between them."""
    parts, position = [], 0
    for match in pattern.finditer(text):
        parts += [(text[position : match.start()], True), (match[0], False)]
        position = match.end()
    return [*parts, (text[position:], True)]
