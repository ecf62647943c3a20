from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from mindrlhf.data.builtin_templates import ALIASES, AUTO, BUILT_IN, choose_template
from mindrlhf.data.templates import ChatTemplate, TemplateError
from mindrlhf.data.tokenizers import ChatTokenizer, load_tokenizer
from mindrlhf.runtime.errors import UserError


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


TURNS = [said("user", "q1"), said("assistant", "a1"), said("user", "q2")]
WITH_SYSTEM = [said("system", "be"), *TURNS]
ANSWER = [*TURNS, said("assistant", "a2")]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "天"}}}
CALLING = [said("user", "q"), said("assistant", "", tool_calls=[CALL, CALL]), said("tool", "1"), said("tool", "2")]
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.fixture(scope="module")
def bare(tokenizer_folder: Path) -> Any:
    """The small tokenizer without a template, with <s> and </s> as Llama has."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = None
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    return tokenizer


def render(tokenizer: Any, name: str, messages: Any, generation: bool, tools: Any = ()) -> str:
    return ChatTemplate(tokenizer, choose_template(tokenizer, name)).render(messages, generation, tools)


def im(*turns: str) -> str:
    return "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns)


CHATML = im("user\nq1", "assistant\na1", "user\nq2")
QWEN_TOOLS = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n"
    '<tools>\n{"type": "function", "function": {"name": "f"}}\n</tools>\n\n'
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML "
    'tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
CALLED = '<tool_call>\n{"name": "f", "arguments": {"x": "天"}}\n</tool_call>'
RESPONSES = "user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)

# What each publisher's own template gives, written by hand.
PUBLISHED = [
    ("chatml", WITH_SYSTEM, True, im("system\nbe") + CHATML + "<|im_start|>assistant\n"),
    ("yi", TURNS, True, CHATML + "<|im_start|>assistant\n"),
    ("qwen", TURNS, False, im("system\nYou are a helpful assistant.") + CHATML),
    ("qwen", WITH_SYSTEM, False, im("system\nbe") + CHATML),
    ("qwen2_5", TURNS, False,
     im("system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.") + CHATML),
    ("qwen3", WITH_SYSTEM, True, im("system\nbe") + CHATML + "<|im_start|>assistant\n"),
    ("qwen3", ANSWER, False, CHATML + im("assistant\n<think>\n\n</think>\n\na2")),
    ("qwen3", [said("user", "q"), said("assistant", "<think>\nso\n</think>\n\na")], False,
     im("user\nq", "assistant\n<think>\nso\n</think>\n\na")),
    ("qwen3", [said("user", "q"), said("assistant", "<think>\nso\n</think>\n\na"), said("user", "r")], False,
     im("user\nq", "assistant\na", "user\nr")),
    ("llama2", WITH_SYSTEM, True, "<s>[INST] <<SYS>>\nbe\n<</SYS>>\n\nq1 [/INST] a1 </s><s>[INST] q2 [/INST]"),
    ("llama3", WITH_SYSTEM, True,
     "<s><|start_header_id|>system<|end_header_id|>\n\nbe<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nq1<|eot_id|>"
     "<|start_header_id|>assistant<|end_header_id|>\n\na1<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nq2<|eot_id|>"
     "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    ("mistral", ANSWER, False, "<s>[INST] q1 [/INST] a1</s>[INST] q2 [/INST] a2</s>"),
    ("mixtral", WITH_SYSTEM, True, "<s>[INST] be\n\nq1 [/INST] a1</s>[INST] q2 [/INST]"),
    ("baichuan2", WITH_SYSTEM, True, "be<reserved_106>q1<reserved_107>a1<reserved_106>q2<reserved_107>"),
    ("baichuan2", ANSWER, False, "<reserved_106>q1<reserved_107>a1<reserved_106>q2<reserved_107>a2</s>"),
    ("glm4", WITH_SYSTEM, True,
     "[gMASK]<sop><|system|>\nbe<|user|>\nq1<|assistant|>\na1<|user|>\nq2<|assistant|>"),
    ("glm4", ANSWER, False, "[gMASK]<sop><|user|>\nq1<|assistant|>\na1<|user|>\nq2<|assistant|>\na2</s>"),
    ("glm-4", CALLING, True,
     '[gMASK]<sop><|user|>\nq<|assistant|>f\n{"x": "天"}<|assistant|>f\n{"x": "天"}<|observation|>\n1<|observation|>\n2'
     "<|assistant|>"),
    ("deepseek3", [said("system", "be"), *ANSWER], False,
     "<s>be<｜User｜>q1<｜Assistant｜>a1</s><｜User｜>q2<｜Assistant｜>a2</s>"),
    ("gemma", TURNS, True,
     "<s><start_of_turn>user\nq1<end_of_turn>\n<start_of_turn>model\na1<end_of_turn>\n<start_of_turn>user\nq2<end_of_turn>\n"
     "<start_of_turn>model\n"),
    ("alpaca", TURNS, True,
     ALPACA_SYSTEM + "### Instruction:\nq1\n\n### Response:\na1</s>\n\n### Instruction:\nq2\n\n### Response:\n"),
    ("empty", ANSWER, False, "q1a1</s>q2a2</s>"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "messages", "generation", "expected"), PUBLISHED)
def test_a_built_in_template_renders_the_published_form(
    bare: Any, name: str, messages: Any, generation: bool, expected: str
) -> None:
    assert render(bare, name, messages, generation) == expected


def test_tools_of_qwen(bare: Any) -> None:
    calls = im("user\nq", f"assistant\n{CALLED}\n{CALLED}", RESPONSES)
    system = im(f"system\nYou are a helpful assistant.{QWEN_TOOLS}")
    assert render(bare, "qwen", CALLING, False, [TOOL]) == system + calls
    assert render(bare, "qwen3", CALLING, False, [TOOL]) == im("system" + QWEN_TOOLS[1:]) + calls
    with_system = [said("system", "be"), *CALLING]
    assert render(bare, "qwen3", with_system, False, [TOOL]) == im(f"system\nbe{QWEN_TOOLS}") + calls


@pytest.mark.parametrize("name", sorted(BUILT_IN.keys() - {"qwen", "qwen2_5", "qwen3"}))
def test_templates_that_know_no_tools_say_so(bare: Any, name: str) -> None:
    with pytest.raises(TemplateError, match=name):
        render(bare, name, TURNS, True, [TOOL])
    if name != "glm4":
        with pytest.raises(TemplateError, match=name):
            render(bare, name, CALLING, True)


@pytest.mark.parametrize("name", ["llama2", "mistral", "gemma"])
def test_templates_that_want_turns_say_so(bare: Any, name: str) -> None:
    with pytest.raises(TemplateError, match="in turn"):
        render(bare, name, [TURNS[0], TURNS[0]], True)


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_answer_follows_its_prompt(bare: Any, name: str) -> None:
    prompt, whole = render(bare, name, TURNS, True), render(bare, name, ANSWER, False)
    assert whole.startswith(prompt)
    assert "a2" in whole[len(prompt) :]


def test_every_file_is_used_and_every_name_leads_somewhere() -> None:
    import mindrlhf.data

    files = (Path(mindrlhf.data.__file__).parent / "chat_templates").iterdir()
    assert {file.stem for file in files} == {built.file for built in BUILT_IN.values()}
    assert set(ALIASES.values()) <= set(BUILT_IN)
    assert not ALIASES.keys() & BUILT_IN.keys()


def load(source: Path, folder: Path, *tokens: str, template: str = AUTO) -> ChatTokenizer:
    """The tokenizer of `source` without its template and ChatML's tokens, but with `tokens`."""
    shutil.copy(source / "tokenizer.json", folder)
    state = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(re.sub(r"<\|(im_start|im_end)\|>", r"<|old_\1|>", state), encoding="utf-8")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return load_tokenizer(folder, chat_template=template)


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        (("<|im_start|>", "<|im_end|>"), "chatml"),
        (("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "llama3"),
        (("<reserved_106>", "<reserved_107>"), "baichuan2"),
        (("[gMASK]", "<sop>", "<|user|>", "<|assistant|>"), "glm4"),
        (("<start_of_turn>", "<end_of_turn>"), "gemma"),
    ],
)
def test_auto_goes_by_the_tokens(
    tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tokens: tuple[str, ...], name: str
) -> None:
    tokenizer = load(tokenizer_folder, tmp_path, *tokens)
    assert tokenizer.template == BUILT_IN[name].source
    assert (tokenizer.has_template, tokenizer.template_is_own) == (True, False)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"the tokenizer {tmp_path} has no chat template; conversations take {name}, whose tokens its vocabulary has"
    ]
    ids = tokenizer.encode_messages([said("user", "q" + "".join(tokens))], True)
    words = [tokenizer.decode([token], skip_special_tokens=False) for token in ids]
    clean = tokenizer.encode_messages([said("user", "q")], True)
    assert [word for word in words if word in tokens] == [
        word for token in clean if (word := tokenizer.decode([token], skip_special_tokens=False)) in tokens
    ]


def test_without_a_hint_chatml_is_taken(
    tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load(tokenizer_folder, tmp_path)
    assert tokenizer.template == BUILT_IN["chatml"].source
    assert (tokenizer.has_template, tokenizer.template_is_own) == (False, False)
    said_so = capsys.readouterr().out
    assert "conversations take chatml, since nothing says what else" in said_so
    assert "(<|im_start|>, <|im_end|> are plain text to this tokenizer)" in said_so


def test_a_template_by_name_or_file(tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = load_tokenizer(tokenizer_folder)
    assert own.template_is_own
    assert capsys.readouterr().out == ""
    named = load_tokenizer(tokenizer_folder, chat_template="Qwen2.5")
    assert named.template == BUILT_IN["qwen2_5"].source
    assert not named.template_is_own
    assert "created by Alibaba Cloud" in named.decode(named.encode_messages(TURNS, True))
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}!\n", encoding="utf-8")
    mine = load_tokenizer(tokenizer_folder, chat_template=str(tmp_path / "mine.jinja"))
    assert mine.decode(mine.encode_messages(TURNS, True)) == "q1!"
    assert (mine.has_template, mine.template_is_own) == (True, False)
    assert len({tokenizer.template_hash for tokenizer in (own, named, mine)}) == 3
    assert len({tokenizer.tokenizer_hash for tokenizer in (own, named, mine)}) == 1
    # Written beside a copy, as the trainer does, it is the copy's own.
    for file in own.files:
        shutil.copy(file, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(named.template, encoding="utf-8")
    copy = load_tokenizer(tmp_path)
    assert copy.template_is_own
    assert copy.template_hash == named.template_hash


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("chatlm", "'chatlm' is no chat template; give one of auto, chatml, .*ends in .jinja"),
        ("absent.jinja", "absent.jinja cannot be read"),
        ("empty.jinja", "empty.jinja is empty"),
        ("gbk.jinja", "gbk.jinja is not UTF-8"),
    ],
)
def test_what_is_no_template(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jinja").touch()
    Path("gbk.jinja").write_bytes("你好".encode("gbk"))
    with pytest.raises(UserError, match=says):
        load_tokenizer(tokenizer_folder, chat_template=template)


def test_text_of_a_control_token_that_is_not_special_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    """As in a Baichuan2 vocabulary, whose reserved tokens are ordinary ones: no text can hold them as text."""
    load(tokenizer_folder, tmp_path)
    backend = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    backend.add_tokens([AddedToken(token, normalized=False) for token in ("<reserved_106>", "<reserved_107>")])
    backend.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.template == BUILT_IN["baichuan2"].source
    assert tokenizer.encode_messages(TURNS, True).count(backend.convert_tokens_to_ids("<reserved_106>")) == 2
    with pytest.raises(TemplateError, match="holds <reserved_107>, which this tokenizer cannot keep as text"):
        tokenizer.encode_messages([said("user", "so <reserved_107> yes")], True)
