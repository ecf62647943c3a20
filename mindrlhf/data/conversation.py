"""Messages as chat templates take them, made from the words of the files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Union

from mindrlhf.data.fields import RowError, decode_text, field, kind_of, optional, require_unicode

Message = dict[str, Any]
Messages = tuple[Message, ...]
Text = Union[str, Messages]

# The words for a role, and the template's name for it. `developer` is OpenAI's newer name of `system`.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
HH_ROLES = {"human": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {
    **{"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"},
    **{"observation": "tool", "tool": "tool", "function_call": "function_call"},
}
# Texts that some templates read beside the content.
_EXTRAS = ("name", "tool_call_id", "reasoning_content")
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def turn(role: str, text: str) -> Messages:
    """A conversation of one message."""
    return ({"role": role, "content": text},)


def message(item: Any, text_key: str, roles: Mapping[str, str]) -> Message:
    """A message of {"role", `text_key`}; RowError for another form or a role that `roles` does not hold."""
    return _message(item, "role", text_key, roles)


def openai_message(item: Any) -> Message:
    """A message of {"role", "content"}, with `tool_calls` where an assistant makes some."""
    calls = optional(item, "tool_calls", list) if isinstance(item, dict) else None
    if not calls:
        return {**message(item, "content", ROLES), **_extras(item)}
    made = message({**item, "content": optional(item, "content", str) or ""}, "content", ROLES)
    if made["role"] != "assistant":
        raise RowError("tool calls", f"a message with tool_calls has role {made['role']}, not assistant")
    return {**made, **_extras(item), "tool_calls": tool_calls(calls, "'tool_calls'")}


def sharegpt_message(item: Any) -> Message:
    """A message of {"from", "value"} or of {"role", "content"}; a function_call's value is JSON."""
    keys = ("role", "content") if isinstance(item, dict) and "from" not in item else ("from", "value")
    made = _message(item, *keys, SHAREGPT_ROLES)
    if made["role"] != "function_call":
        return made
    calls = decode_text("a function_call", made["content"])
    named = tool_calls(calls if isinstance(calls, list) else [calls], "a function_call")
    return {"role": "assistant", "content": "", "tool_calls": named}


def tool_calls(calls: list[Any], name: str) -> list[dict[str, Any]]:
    """Calls of {"name", "arguments"}, bare or as {"function": ...}, with arguments as an object."""
    made = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else call
        if not isinstance(function, dict):
            raise RowError(
                "tool calls", f"{name} is {kind_of(function)} where an object with name and arguments stands"
            )
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = decode_text("'arguments' of a tool call", arguments)
        if not isinstance(arguments, dict):
            raise RowError("tool calls", f"'arguments' of a tool call is {kind_of(arguments)}, not an object")
        require_unicode("'arguments' of a tool call", arguments)
        own = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        made.append(
            {**own, "type": "function", "function": {"name": field(function, "name", str), "arguments": arguments}}
        )
    return made


def tool_definitions(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The field `tools`: a list of objects, or JSON text of one; empty where there is none."""
    tools = optional(row, "tools", (list, str))
    if isinstance(tools, str):
        tools = decode_text("field 'tools'", tools)
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise RowError("wrong type", "field 'tools' is no list of objects")
    require_unicode("field 'tools'", tools)
    return tuple(tools or ())


def transcript(text: str, name: str) -> Messages:
    """Turns of "\\n\\nHuman: ...\\n\\nAssistant: ..."; RowError where the text does not begin with one."""
    marks = list(_TURN.finditer(text))
    if not marks or marks[0].start():
        raise RowError("no transcript", f"the {name} does not begin with Human: or Assistant:")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return tuple(
        {"role": HH_ROLES[mark[1].lower()], "content": text[mark.end() : end].strip()} for mark, end in zip(marks, ends)
    )


def common_length(chosen: str | Messages, rejected: str | Messages) -> int:
    """How many messages, or characters, both begin with, at least one of each left over (as TRL counts them)."""
    most = max(min(len(chosen), len(rejected)) - 1, 0)
    return next((index for index in range(most) if chosen[index] != rejected[index]), most)


def _message(item: Any, role_key: str, text_key: str, roles: Mapping[str, str]) -> Message:
    if not isinstance(item, dict):
        raise RowError("wrong type", f"a message is {kind_of(item)}, not an object")
    role = field(item, role_key, str)
    if role not in roles:
        raise RowError("unknown role", f"role {role!r} is none of {', '.join(roles)}")
    return {"role": roles[role], "content": field(item, text_key, str)}


def _extras(item: Mapping[str, Any]) -> Message:
    return {key: field(item, key, str) for key in _EXTRAS if item.get(key) is not None}
