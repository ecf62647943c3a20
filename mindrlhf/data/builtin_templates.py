"""Chat templates that come with this package, for tokenizers that bring none, and how one is chosen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindrlhf.runtime.errors import UserError

AUTO = "auto"
FALLBACK = "chatml"
_FOLDER = Path(__file__).parent / "chat_templates"
_QWEN_2_5_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


@dataclass(frozen=True)
class BuiltIn:
    """A file of `chat_templates` and the tokens it writes. `default_system` replaces the file's own."""

    file: str
    tokens: tuple[str, ...] = ()
    default_system: str = ""

    @property
    def source(self) -> str:
        """The text of the template."""
        text = (_FOLDER / f"{self.file}.jinja").read_text(encoding="utf-8")
        if not self.default_system:
            return text
        return re.sub("(?<=default_system = ')[^']*", self.default_system, text, count=1)


_CHATML = ("<|im_start|>", "<|im_end|>")
# The first whose tokens a vocabulary has is taken for a tokenizer without a template.
BUILT_IN = {
    "chatml": BuiltIn("chatml", _CHATML),
    "llama3": BuiltIn("llama3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "glm4": BuiltIn("glm4", ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>")),
    "baichuan2": BuiltIn("baichuan2", ("<reserved_106>", "<reserved_107>")),
    "deepseek3": BuiltIn("deepseek3", ("<｜User｜>", "<｜Assistant｜>")),
    "gemma": BuiltIn("gemma", ("<start_of_turn>", "<end_of_turn>")),
    "mistral": BuiltIn("mistral", ("[INST]", "[/INST]")),
    "qwen": BuiltIn("qwen", _CHATML),
    "qwen2_5": BuiltIn("qwen", _CHATML, _QWEN_2_5_SYSTEM),
    "qwen3": BuiltIn("qwen3", _CHATML),
    "llama2": BuiltIn("llama2"),
    "alpaca": BuiltIn("alpaca"),
    "empty": BuiltIn("empty"),
}
ALIASES = {"yi": "chatml", "qwen2": "qwen", "llama3_1": "llama3", "mixtral": "mistral", "glm_4": "glm4"}


@dataclass(frozen=True)
class Chosen:
    """A template for a tokenizer: its text, its name, whether it is the tokenizer's `own`.

    `fits`: it is the tokenizer's own, or it was named, or the vocabulary has its tokens. `missing` are tokens that it
    writes and the tokenizer does not know.
    """

    source: str
    name: str
    own: bool = False
    fits: bool = True
    missing: tuple[str, ...] = ()


def choose_template(tokenizer: Any, wanted: str) -> Chosen:
    """The template for a transformers tokenizer: `wanted` is auto, a built-in one's name, or the path of a .jinja file.

    auto: the tokenizer's own; else the first built-in one whose tokens it has; else chatml. `UserError` for a name
    that is none, or a file that cannot be read.
    """
    if wanted.endswith(".jinja"):
        return Chosen(_read(wanted), wanted)
    if wanted != AUTO:
        name = built_in_name(wanted, "tokenizer.chat_template")
        return Chosen(BUILT_IN[name].source, name, missing=_missing(tokenizer, name))
    template = tokenizer.chat_template
    own = (template.get("default") if isinstance(template, dict) else template) or ""
    if own:
        return Chosen(own, "its own", own=True)
    known = [name for name, built in BUILT_IN.items() if built.tokens and not _missing(tokenizer, name)]
    if known:
        return Chosen(BUILT_IN[known[0]].source, known[0])
    return Chosen(BUILT_IN[FALLBACK].source, FALLBACK, fits=False, missing=_missing(tokenizer, FALLBACK))


def built_in_name(word: str, source: str) -> str:
    """The name of the built-in template that `word` means; `UserError` naming the known ones where it means none."""
    plain = word.strip().lower().replace("-", "_").replace(".", "_")
    name = ALIASES.get(plain, plain)
    if name not in BUILT_IN:
        known = ", ".join([AUTO, *BUILT_IN, *ALIASES])
        raise UserError(f"{source}: {word!r} is no chat template; give one of {known}, or a file that ends in .jinja")
    return name


def _read(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"the chat template {path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"the chat template {path} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise UserError(f"the chat template {path} is empty")
    return text


def _missing(tokenizer: Any, name: str) -> tuple[str, ...]:
    """Tokens of a built-in template that do not become one token each."""
    backend = tokenizer.backend_tokenizer
    return tuple(
        token for token in BUILT_IN[name].tokens if len(backend.encode(token, add_special_tokens=False).ids) != 1
    )
