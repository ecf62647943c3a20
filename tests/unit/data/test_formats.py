from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mindrlhf.data.formats import DATASET_TYPES, Preference, Rejected, dataset_type, require_dataset_type
from mindrlhf.data.sources import Source
from mindrlhf.runtime.errors import UserError

GOOD = {"prompt": "你好", "pos_resp": "yes", "neg_resp": "no"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def line(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}, ensure_ascii=False).encode("utf-8")


def read(folder: Path, *lines: bytes, kind: str = "cvalues", name: str = "x.jsonl") -> list[Preference | Rejected]:
    path = folder / name
    path.write_bytes(b"\n".join(lines) + b"\n")
    return list(Source([str(path)], kind).read())


def read_one(folder: Path, row: Any, kind: str) -> Preference | Rejected:
    return read(folder, json.dumps(row).encode(), kind=kind)[0]


def test_dataset_types_are_these() -> None:
    expected = ["cvalues", "hh_rlhf_cn", "hh_rlhf", "orca_dpo_pairs", "alpaca", "sharegpt", "messages"]
    assert list(DATASET_TYPES) == expected


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        dataset_type("cvalues")(DATASET_TYPES["cvalues"].read)


def test_cvalues(tmp_path: Path) -> None:
    assert read(tmp_path, line()) == [Preference(1, (user("你好"),), (assistant("yes"),), (assistant("no"),))]


def test_hh_rlhf_cn_keeps_its_history(tmp_path: Path) -> None:
    context = [{"role": role, "text": text} for role, text in (("human", "a"), ("assistant", "b"), ("human", "c"))]
    row = {
        "context": context,
        "chosen": {"role": "assistant", "text": "d"},
        "rejected": {"role": "assistant", "text": "e"},
    }
    pair = read_one(tmp_path, row, "hh_rlhf_cn")
    assert pair == Preference(1, (user("a"), assistant("b"), user("c")), (assistant("d"),), (assistant("e"),))


@pytest.mark.parametrize("system", [{}, {"system": ""}, {"system": " \n"}, {"system": None}])
def test_orca_without_system_has_no_system_message(tmp_path: Path, system: dict[str, Any]) -> None:
    pair = read_one(tmp_path, {**system, "question": "q", "chosen": "c", "rejected": "r"}, "orca_dpo_pairs")
    assert pair == Preference(1, (user("q"),), (assistant("c"),), (assistant("r"),))


def test_orca_with_system(tmp_path: Path) -> None:
    pair = read_one(tmp_path, {"system": "be", "question": "q", "chosen": "c", "rejected": "r"}, "orca_dpo_pairs")
    assert isinstance(pair, Preference)
    assert pair.prompt == ({"role": "system", "content": "be"}, user("q"))


def test_messages_conversational(tmp_path: Path) -> None:
    row = {"prompt": [user("q")], "chosen": [assistant("c")], "rejected": [assistant("r")]}
    pair = read_one(tmp_path, row, "messages")
    assert pair == Preference(1, (user("q"),), (assistant("c"),), (assistant("r"),))
    assert not pair.plain


def test_messages_plain(tmp_path: Path) -> None:
    pair = read_one(tmp_path, {"prompt": "q", "chosen": "c", "rejected": "r"}, "messages")
    assert pair == Preference(1, "q", "c", "r")
    assert pair.plain


BAD_LINES = [
    (b'{"prompt": "a"', "broken json"),
    (b'{"prompt": "a", "prompt": "b", "pos_resp": "c", "neg_resp": "d"}', "broken json"),
    (line(score=float("nan")), "broken json"),
    (b"[" * 100_000, "broken json"),
    (b"9" * 10_000, "broken json"),
    (b'["a"]', "not an object"),
    (b"null", "not an object"),
    (b'{"prompt": "a", "pos_resp": "b"}', "missing field"),
    (line(neg_resp=None), "null"),
    (line(prompt=3), "wrong type"),
    (line(prompt=["a"]), "wrong type"),
    (line(pos_resp=" \u3000\n"), "empty response"),
    (line(neg_resp=""), "empty response"),
    (line(prompt=""), "empty prompt"),
    (line(pos_resp="no"), "identical responses"),
    ("{\"prompt\": \"你好\"}".encode("gbk"), "wrong encoding"),
    (b'{"prompt": "a", "pos_resp": "\\ud800", "neg_resp": "c"}', "wrong encoding"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "reason"), BAD_LINES, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_line_is_rejected_and_kept(tmp_path: Path, bad: bytes, reason: str) -> None:
    before, rejected, after = read(tmp_path, line(), bad, line())
    assert isinstance(before, Preference)
    assert isinstance(after, Preference)
    assert after.line == 3
    assert isinstance(rejected, Rejected)
    assert (rejected.line, rejected.reason, rejected.raw) == (2, reason, bad)
    assert rejected.sentence


CHAT = {"prompt": [user("q")], "chosen": [assistant("c")], "rejected": [assistant("r")]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": []}, "empty prompt"),
        ({"prompt": [user("q"), assistant("a")]}, "wrong last role"),
        ({"chosen": [user("q")]}, "wrong last role"),
        ({"chosen": []}, "empty response"),
        ({"chosen": [assistant(" ")]}, "empty response"),
        ({"prompt": [{"role": "robot", "content": "q"}]}, "unknown role"),
        ({"prompt": [{"role": None, "content": "q"}]}, "null"),
        ({"prompt": [{"content": "q"}]}, "missing field"),
        ({"prompt": ["q"]}, "wrong type"),
        ({"chosen": "c"}, "wrong type"),
        ({"prompt": {"role": "user"}}, "wrong type"),
        ({"rejected": [assistant("c")]}, "identical responses"),
    ],
)
def test_bad_messages(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    row = read_one(tmp_path, {**CHAT, **changes}, "messages")
    assert isinstance(row, Rejected)
    assert row.reason == reason


def test_unnamed_fields_are_ignored(tmp_path: Path) -> None:
    assert isinstance(read(tmp_path, line(extra=None, other=[1]))[0], Preference)


def test_unknown_dataset_type_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean cvalues"):
        require_dataset_type("cvalue")


def test_reading_needs_neither_transformers_nor_mindspore() -> None:
    code = (
        "import sys, mindrlhf.data.formats as f; sys.exit(any(m in sys.modules for m in ('transformers', 'mindspore')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def refused(row: Preference | Rejected) -> str:
    assert isinstance(row, Rejected)
    assert row.sentence
    return row.reason


# The words of Anthropic's own rows.
HUMAN = "\n\nHuman: What is a dog?\n\nAssistant: An animal.\n\nHuman: And a cat?"


def test_hh_rlhf_splits_transcripts_at_the_last_answer(tmp_path: Path) -> None:
    row = {"chosen": HUMAN + "\n\nAssistant: Another one. ", "rejected": HUMAN + "\n\nAssistant: A dog:\n\nno"}
    pair = read_one(tmp_path, row, "hh_rlhf")
    prompt = (user("What is a dog?"), assistant("An animal."), user("And a cat?"))
    assert pair == Preference(1, prompt, (assistant("Another one."),), (assistant("A dog:\n\nno"),))


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        (HUMAN, "c", " r"),
        (HUMAN + "\n\nAssistant:", " c", "\n\nAssistant: r"),
        (HUMAN, HUMAN + "\n\nAssistant: c", HUMAN + "\n\nAssistant: r"),
    ],
)
def test_hh_rlhf_with_a_prompt_of_its_own(tmp_path: Path, prompt: str, chosen: str, rejected: str) -> None:
    pair = read_one(tmp_path, {"prompt": prompt, "chosen": chosen, "rejected": rejected}, "hh_rlhf")
    turns = (user("What is a dog?"), assistant("An animal."), user("And a cat?"))
    assert pair == Preference(1, turns, (assistant("c"),), (assistant("r"),))


def test_hh_rlhf_with_a_plain_question(tmp_path: Path) -> None:
    pair = read_one(tmp_path, {"prompt": "q", "chosen": "c", "rejected": "r"}, "hh_rlhf")
    assert pair == Preference(1, (user("q"),), (assistant("c"),), (assistant("r"),))


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("no turns", "\n\nHuman: q\n\nAssistant: r", "no transcript"),
        ("\n\nHuman: q", "\n\nHuman: q\n\nAssistant: r", "wrong last role"),
        ("\n\nHuman: q\n\nAssistant:", "\n\nHuman: q\n\nAssistant: r", "empty response"),
        ("\n\nHuman: q\n\nAssistant: c", "\n\nHuman: Q\n\nAssistant: r", "different prompts"),
        ("\n\nHuman: q\n\nAssistant: c", "\n\nHuman: q\n\nAssistant: c ", "identical responses"),
        ("\n\nAssistant: c", "\n\nAssistant: r", "empty prompt"),
    ],
)
def test_bad_transcripts(tmp_path: Path, chosen: str, rejected: str, reason: str) -> None:
    assert refused(read_one(tmp_path, {"chosen": chosen, "rejected": rejected}, "hh_rlhf")) == reason


SHAREGPT = {
    "conversations": [{"from": "system", "value": "be"}, {"from": "human", "value": "q"}],
    "chosen": {"from": "gpt", "value": "c"},
    "rejected": {"from": "gpt", "value": "r"},
}


def test_sharegpt(tmp_path: Path) -> None:
    expected = Preference(1, ({"role": "system", "content": "be"}, user("q")), (assistant("c"),), (assistant("r"),))
    assert read_one(tmp_path, SHAREGPT, "sharegpt") == expected
    # A system turn wins over the field, which stands in where there is none.
    assert read_one(tmp_path, {**SHAREGPT, "system": "other"}, "sharegpt") == expected
    field = {**SHAREGPT, "conversations": SHAREGPT["conversations"][1:], "system": "be"}  # type: ignore[index]
    assert read_one(tmp_path, field, "sharegpt") == expected
    openai = {"conversations": [{"role": "system", "content": "be"}, user("q")], "chosen": "c", "rejected": ["r"]}
    assert refused(read_one(tmp_path, openai, "sharegpt")) == "wrong type"
    assert read_one(tmp_path, {**openai, "rejected": [assistant("r")]}, "sharegpt") == expected


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "x"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {}}}


def test_sharegpt_with_tools(tmp_path: Path) -> None:
    call = json.dumps({"name": "weather", "arguments": {"city": "x"}})
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": call}]
    row = {**SHAREGPT, "tools": json.dumps([TOOL]), "conversations": [*turns, {"from": "observation", "value": "sun"}]}
    pair = read_one(tmp_path, row, "sharegpt")
    assert isinstance(pair, Preference)
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert pair.prompt == (user("q"), called, {"role": "tool", "content": "sun"})
    assert pair.tools == (TOOL,)
    answer = {**SHAREGPT, "chosen": {"from": "function_call", "value": f"[{call}]"}}
    chosen = read_one(tmp_path, answer, "sharegpt")
    assert isinstance(chosen, Preference)
    assert chosen.chosen == (called,)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"conversations": []}, "empty prompt"),
        ({"conversations": [{"from": "gpt", "value": "q"}]}, "wrong last role"),
        ({"conversations": [{"from": "bot", "value": "q"}]}, "unknown role"),
        ({"conversations": ["q"]}, "wrong type"),
        ({"chosen": {"from": "human", "value": "c"}}, "wrong last role"),
        ({"chosen": {"from": "gpt"}}, "missing field"),
        ({"chosen": {"from": "function_call", "value": "no json"}}, "broken json"),
        ({"chosen": {"from": "function_call", "value": "[1]"}}, "tool calls"),
        ({"chosen": {"from": "function_call", "value": '{"name": "f", "arguments": [1]}'}}, "tool calls"),
        ({"tools": "{"}, "broken json"),
        ({"tools": {"a": 1}}, "wrong type"),
        ({"tools": ["a"]}, "wrong type"),
        ({"system": 3}, "wrong type"),
    ],
)
def test_bad_sharegpt(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    assert refused(read_one(tmp_path, {**SHAREGPT, **changes}, "sharegpt")) == reason


def test_messages_with_the_prompt_in_both_answers(tmp_path: Path) -> None:
    shared = [{"role": "system", "content": "be"}, user("q")]
    row = {"chosen": [*shared, assistant("c")], "rejected": [*shared, assistant("r")]}
    expected = Preference(1, tuple(shared), (assistant("c"),), (assistant("r"),))
    assert read_one(tmp_path, row, "messages") == expected
    # As in UltraFeedback, where the prompt is also the text of the question.
    assert read_one(tmp_path, {**row, "prompt": "q"}, "messages") == expected
    assert read_one(tmp_path, {**row, "prompt": shared}, "messages") == expected
    assert refused(read_one(tmp_path, {**row, "prompt": "other"}, "messages")) == "different prompts"


def test_messages_with_a_text_for_some(tmp_path: Path) -> None:
    expected = Preference(1, (user("q"),), (assistant("c"),), (assistant("r"),))
    for row in (
        {"prompt": "q", "chosen": [assistant("c")], "rejected": [assistant("r")]},
        {"prompt": [user("q")], "chosen": "c", "rejected": "r"},
        {"prompt": [{"role": "user", "content": "q", "name": None}], "chosen": "c", "rejected": "r", "tools": []},
    ):
        assert read_one(tmp_path, row, "messages") == expected


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),  # TRL's own example
        ("ab", "ac", "a"),
        ("abc", "abcd", "ab"),
        ("same", "same", None),
        ("a", "b", None),
    ],
)
def test_messages_plain_with_an_implicit_prompt(tmp_path: Path, chosen: str, rejected: str, prompt: str | None) -> None:
    pair = read_one(tmp_path, {"chosen": chosen, "rejected": rejected}, "messages")
    if prompt is None:
        refused(pair)
    else:
        assert pair == Preference(1, prompt, chosen[len(prompt) :], rejected[len(prompt) :])


def test_messages_with_tools(tmp_path: Path) -> None:
    flat = {"name": "weather", "arguments": '{"city": "x"}'}
    prompt = [user("q"), {"role": "assistant", "content": None, "tool_calls": [{"id": "7", "function": flat}]}]
    prompt.append({"role": "tool", "content": "sun", "tool_call_id": "7"})
    row = {"prompt": prompt, "chosen": [assistant("c")], "rejected": [assistant("r")], "tools": [TOOL]}
    pair = read_one(tmp_path, row, "messages")
    assert isinstance(pair, Preference)
    assert pair.prompt[1] == {"role": "assistant", "content": "", "tool_calls": [{"id": "7", **CALL}]}
    assert pair.prompt[2] == {"role": "tool", "content": "sun", "tool_call_id": "7"}
    assert pair.tools == (TOOL,)
    answers = {"chosen": [{**assistant("c"), "tool_calls": [CALL]}]}
    assert isinstance(read_one(tmp_path, {**row, **answers}, "messages"), Preference)
    wrong = {"chosen": [{"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}]}
    assert refused(read_one(tmp_path, {**row, **wrong}, "messages")) == "missing field"
    assert (
        refused(read_one(tmp_path, {**row, "prompt": [{**user("q"), "tool_calls": [CALL]}]}, "messages"))
        == "tool calls"
    )


def test_half_a_surrogate_pair_is_found_in_tools_too(tmp_path: Path) -> None:
    assert refused(read_one(tmp_path, {**CHAT, "tools": [{"name": "\ud800"}]}, "messages")) == "wrong encoding"


def test_alpaca(tmp_path: Path) -> None:
    row = {"instruction": "do", "input": "this", "chosen": "c", "rejected": "r"}
    assert read_one(tmp_path, row, "alpaca") == Preference(1, (user("do\nthis"),), (assistant("c"),), (assistant("r"),))
    rich = {"instruction": "do", "input": "", "system": "be", "history": [["a", "b"]], "output": ["c", "r"]}
    prompt = ({"role": "system", "content": "be"}, user("a"), assistant("b"), user("do"))
    assert read_one(tmp_path, rich, "alpaca") == Preference(1, prompt, (assistant("c"),), (assistant("r"),))
    for wrong in ({"output": "c"}, {"output": ["c"]}, {"output": ["c", 1]}, {"history": ["a"]}):
        assert refused(read_one(tmp_path, {**rich, **wrong}, "alpaca")) == "wrong type"
    assert refused(read_one(tmp_path, {"input": "", "chosen": "c", "rejected": "r"}, "alpaca")) == "missing field"
