"""Formats of preference rows: each one decorated function, from a decoded row to prompt, chosen and rejected.

Fields that a format does not name are ignored.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Any, Callable, NamedTuple

from mindrlhf.data.conversation import (
    HH_ROLES,
    Message,
    Messages,
    Text,
    common_length,
    message,
    openai_message,
    sharegpt_message,
    tool_definitions,
    transcript,
    turn,
)
from mindrlhf.data.fields import RowError, decode, field, optional, require_unicode
from mindrlhf.data.map_keys import rename
from mindrlhf.runtime.errors import UserError

__all__ = ["DATASET_TYPES", "Format", "Message", "Preference", "Rejected", "Text", "Texts", "dataset_type", "parse"]


class Texts(NamedTuple):
    """What a row holds: three conversations or three plain strings, and the tools a template is told of."""

    prompt: Text
    chosen: Text
    rejected: Text
    tools: tuple[Any, ...] = ()


Reader = Callable[[Mapping[str, Any]], Texts]


@dataclass(frozen=True)
class Preference:
    """One pair: `prompt`, `chosen` and `rejected` are messages or, all three, plain strings.

    A message has `role` (system, user, assistant or tool), `content` and, of an assistant, perhaps `tool_calls`.
    `line` counts from 1: lines of a file, elements of a JSON array, rows of a table. `file` is empty where there is one
    file. `raw` are the bytes it had in the file, of a table's row its JSON.
    """

    line: int
    prompt: Text
    chosen: Text
    rejected: Text
    raw: bytes = attribute(default=b"", compare=False)
    file: str = ""
    tools: tuple[Any, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether this is text without turns, which gets no chat template."""
        return isinstance(self.prompt, str)


@dataclass(frozen=True)
class Rejected:
    """One row that is no pair, with the bytes it had in the file."""

    line: int
    reason: str
    sentence: str
    raw: bytes
    file: str = ""


@dataclass(frozen=True)
class Format:
    """A reader, the fields it names, and `words`: map_keys' other names for these fields.

    `flat`: its fields can be plain text, so that a row fits in csv.
    """

    read: Reader
    fields: tuple[str, ...]
    words: Mapping[str, str]
    flat: bool


DATASET_TYPES: dict[str, Format] = {}


def dataset_type(
    name: str, *fields: str, words: Mapping[str, str] | None = None, flat: bool = True
) -> Callable[[Reader], Reader]:
    """Register a reader of rows with these `fields`: from a decoded row to its texts, or `RowError`."""

    def register(reader: Reader) -> Reader:
        if name in DATASET_TYPES:
            raise ValueError(f"dataset type {name!r} is registered twice")
        DATASET_TYPES[name] = Format(reader, fields, words or {}, flat)
        return reader

    return register


def require_dataset_type(name: str, source: str = "--dataset_type") -> Format:
    """The format of that name; `UserError` naming the nearest where there is none."""
    if name not in DATASET_TYPES:
        nearest = difflib.get_close_matches(name, DATASET_TYPES, n=1, cutoff=0.0)[0]
        known = ", ".join(DATASET_TYPES)
        raise UserError(f"{source}: dataset type {name!r} is unknown; did you mean {nearest}? There are {known}")
    return DATASET_TYPES[name]


def parse(
    data: bytes | Mapping[str, Any],
    form: Format,
    *,
    line: int,
    file: str = "",
    columns: Mapping[str, str] | None = None,
) -> Preference | Rejected:
    """A row, as bytes or decoded, read as `form`; `columns` has the file's own name of a field that is called else."""
    raw = data if isinstance(data, bytes) else encode_row(data)
    try:
        row = decode(data) if isinstance(data, bytes) else data
        prompt, chosen, rejected, tools = form.read(rename(row, columns) if columns else row)
        _check("prompt", prompt, ("user", "tool"))
        _check("chosen response", chosen, ("assistant",))
        _check("rejected response", rejected, ("assistant",))
        if chosen == rejected:
            raise RowError("identical responses", "the chosen and the rejected response are the same")
    except RowError as error:
        return Rejected(line, error.reason, error.sentence, raw, file)
    return Preference(line, prompt, chosen, rejected, raw, file, tools)


def encode_row(row: Mapping[str, Any]) -> bytes:
    """A decoded row of a table as a line of JSON."""
    return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "surrogateescape")


def _check(name: str, text: Text, last_roles: tuple[str, ...]) -> None:
    empty = RowError("empty prompt" if name == "prompt" else "empty response", f"the {name} is empty")
    if not text:
        raise empty
    if not isinstance(text, str):
        last = text[-1]
        if last["role"] not in last_roles:
            role, wanted = last["role"], " or ".join(last_roles)
            raise RowError("wrong last role", f"the last message of the {name} has role {role}, not {wanted}")
        if last.get("tool_calls"):
            return
        text = str(last["content"])
    if not text.strip():
        raise empty


@dataset_type("cvalues", "prompt", "pos_resp", "neg_resp")
def _cvalues(row: Mapping[str, Any]) -> Texts:
    prompt, chosen, rejected = (field(row, key, str) for key in ("prompt", "pos_resp", "neg_resp"))
    return Texts(turn("user", prompt), turn("assistant", chosen), turn("assistant", rejected))


@dataset_type("hh_rlhf_cn", "context", "chosen", "rejected", flat=False)
def _hh_rlhf_cn(row: Mapping[str, Any]) -> Texts:
    context = tuple(message(item, "text", HH_ROLES) for item in field(row, "context", list))
    chosen, rejected = (message(field(row, key, dict), "text", HH_ROLES) for key in ("chosen", "rejected"))
    return Texts(context, (chosen,), (rejected,))


@dataset_type("hh_rlhf", "prompt", "chosen", "rejected")
def _hh_rlhf(row: Mapping[str, Any]) -> Texts:
    """Anthropic's transcripts; with a field `prompt` the answers may stand alone."""
    chosen, rejected = (field(row, key, str) for key in ("chosen", "rejected"))
    given = optional(row, "prompt", str)
    if given is None:
        return _split(transcript(chosen, "chosen transcript"), transcript(rejected, "rejected transcript"))
    asked = given.lstrip().startswith(("Human:", "Assistant:"))
    prompt = transcript(given, "prompt") if asked else turn("user", given)
    if prompt[-1] == {"role": "assistant", "content": ""}:
        prompt = prompt[:-1]
    return _split(*(_transcript_after(prompt, answer) for answer in (chosen, rejected)))


def _transcript_after(prompt: Messages, answer: str) -> Messages:
    """The whole conversation where `answer` is a transcript, or only its last turn, or only that turn's text."""
    begins = answer.lstrip()
    if begins.startswith("Human:"):
        return transcript(answer, "answer")
    return prompt + turn("assistant", begins.removeprefix("Assistant:").strip())


def _split(chosen: Messages, rejected: Messages) -> Texts:
    """Two conversations that part at their last message, an answer."""
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        _check(f"{name} response", turns, ("assistant",))
    if chosen[:-1] != rejected[:-1]:
        raise RowError("different prompts", "chosen and rejected part before their last answer")
    return Texts(chosen[:-1], chosen[-1:], rejected[-1:])


# MindSpeed-RL's words for the fields of a row with one question.
_ALPACA_WORDS = {"query": "input", "response": "output", "history": "history"}


@dataset_type(
    "orca_dpo_pairs", "system", "question", "chosen", "rejected", words={"prompt": "question", **_ALPACA_WORDS}
)
def _orca_dpo_pairs(row: Mapping[str, Any]) -> Texts:
    named = getattr(row, "called", {})
    return _one_question(row, "question", [key for key in _ALPACA_WORDS.values() if key in named])


@dataset_type(
    "alpaca",
    *("system", "history", "instruction", "input", "chosen", "rejected", "output"),
    words={"prompt": "instruction", "query": "input", "response": "output"},
)
def _alpaca(row: Mapping[str, Any]) -> Texts:
    """Ranking rows of LLaMA-Factory and MindSpeed-RL; `output` is a list of both answers, [chosen, rejected]."""
    return _one_question(row, "instruction", list(_ALPACA_WORDS.values()))


def _one_question(row: Mapping[str, Any], question_key: str, extras: list[str]) -> Texts:
    """System, history and question, each where it is not empty. Of `_ALPACA_WORDS`, only `extras` are read."""
    extra = {key: row[key] for key in extras if key in row}
    system = optional(row, "system", str)
    turns = turn("system", system) if system else ()
    for item in optional(extra, "history", list) or ():
        question, answer = _two_texts(item, "an item of field 'history'", "[question, answer]")
        turns += turn("user", question) + turn("assistant", answer)
    query = optional(extra, "input", str)
    question = optional(row, question_key, str) if query else field(row, question_key, str)
    turns += turn("user", "\n".join(part for part in (question, query) if part))
    if "output" in extra and "chosen" not in row:
        chosen, rejected = _two_texts(extra["output"], "the response", "[chosen, rejected]")
    else:
        chosen, rejected = (field(row, key, str) for key in ("chosen", "rejected"))
    return Texts(turns, turn("assistant", chosen), turn("assistant", rejected))


def _two_texts(value: Any, name: str, form: str) -> tuple[str, str]:
    if not (isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(text, str) for text in value)):
        raise RowError("wrong type", f"{name} is no list of two texts, {form}")
    require_unicode(name, list(value))
    return value[0], value[1]


@dataset_type("sharegpt", "conversations", "chosen", "rejected", "system", "tools", flat=False)
def _sharegpt(row: Mapping[str, Any]) -> Texts:
    """Ranking rows of LLaMA-Factory: turns of {"from", "value"}; a system turn wins over the field `system`."""
    prompt = tuple(sharegpt_message(item) for item in field(row, "conversations", list))
    system = optional(row, "system", str)
    if system and prompt and prompt[0]["role"] != "system":
        prompt = turn("system", system) + prompt
    chosen, rejected = (_answer(field(row, key, (dict, list, str)), sharegpt_message) for key in ("chosen", "rejected"))
    return Texts(prompt, chosen, rejected, tool_definitions(row))


@dataset_type("messages", "prompt", "chosen", "rejected", "tools")
def _messages(row: Mapping[str, Any]) -> Texts:
    """TRL's forms: lists of messages or strings, with a prompt or with what both answers begin with as the prompt."""
    chosen, rejected = (field(row, key, (list, str)) for key in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("wrong type", "one of the answers is a string, the other a list")
    prompt = None if row.get("prompt") is None else field(row, "prompt", (list, str))
    if isinstance(chosen, str) and not isinstance(prompt, list):
        shared = _shared_text(chosen, rejected) if prompt is None else ""
        return Texts(shared if prompt is None else prompt, chosen[len(shared) :], rejected[len(shared) :])
    answers = [_answer(each, openai_message) for each in (chosen, rejected)]
    asked = None if prompt is None else _answer(prompt, openai_message, "user")
    return Texts(*_after(asked, *answers), tool_definitions(row))


def _after(prompt: Messages | None, chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """Prompt and answers, where the answers may repeat the prompt, or hold it alone."""
    begun = common_length(chosen, rejected)
    if prompt is None:
        return chosen[:begun], chosen[begun:], rejected[begun:]
    if not chosen or not rejected or "assistant" in (chosen[0]["role"], rejected[0]["role"]):
        return prompt, chosen, rejected
    # A prompt that is the last question of the conversation both answers repeat.
    if not prompt or chosen[begun - len(prompt) : begun] != prompt or begun < len(prompt):
        raise RowError("different prompts", "the answers begin with other messages than the prompt")
    return chosen[:begun], chosen[begun:], rejected[begun:]


def _answer(value: Any, read: Callable[[Any], Message], role: str = "assistant") -> Messages:
    """Messages of a list, of one message, or of a text that is said by `role`."""
    if isinstance(value, str):
        return turn(role, value)
    return tuple(read(item) for item in (value if isinstance(value, list) else [value]))


def _shared_text(chosen: str, rejected: str) -> str:
    """What both begin with; a blank before the difference belongs to the answers, as in TRL."""
    shared = chosen[: common_length(chosen, rejected)]
    return shared.removesuffix(" ")
