"""`tokenizer.model`: which of the two formats and whose tokenizer it is, and the transformers tokenizer made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindrlhf.data import sentencepiece_model, tiktoken_model
from mindrlhf.data.builtin_templates import BUILT_IN
from mindrlhf.runtime.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODEL_FILE = "tokenizer.model"
CLASSES = {
    "sentencepiece": ("LlamaTokenizer", "LlamaTokenizerFast", "YiTokenizer", "BaichuanTokenizer"),
    "tiktoken": ("ChatGLM4Tokenizer",),
}
_ANY_CLASS = ("", "PreTrainedTokenizerFast")
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_CONTROLS = frozenset(token for built in BUILT_IN.values() for token in built.tokens)


@dataclass(frozen=True)
class Beside:
    """What tokenizer_config.json and the like say beside a tokenizer.model; all of it empty where they are absent.

    roles: text of bos_token, eos_token, unk_token, pad_token. more: further special tokens. added: id -> token.
    special: all tokens of which it is said that they are.
    """

    words: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    more: tuple[str, ...] = ()
    added: Mapping[int, str] = field(default_factory=dict)
    special: frozenset[str] = frozenset()

    @property
    def tokenizer_class(self) -> str:
        """The class that the tokenizer was published with; it is never run."""
        return self.words.get("tokenizer_class") or ""


def has_loader(folder: Path) -> bool:
    """Whether the tokenizer.model of a folder is loaded here, by the class that its tokenizer_config.json names."""
    known = {*_ANY_CLASS, *(name for names in CLASSES.values() for name in names)}
    return read_beside(folder).tokenizer_class in known


def load(file: Path) -> Any:
    """The PreTrainedTokenizerFast of a tokenizer.model; `UserError` where it is broken or of an unknown kind."""
    from transformers import PreTrainedTokenizerFast

    backend, roles, beside = read(file)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=beside.words.get("chat_template"),
        clean_up_tokenization_spaces=bool(beside.words.get("clean_up_tokenization_spaces", False)),
        additional_special_tokens=[token for token in beside.more if token not in roles.values()] or None,
        **roles,
    )


def read(file: Path) -> tuple[Tokenizer, dict[str, str], Beside]:
    """The tokenizer of a tokenizer.model, the text of its bos_token, eos_token and so on, what lies beside it.

    Raises `UserError` where the file is broken, of an unknown kind, or not of one tokenizer with what lies beside it.
    """
    beside = read_beside(file.parent)
    data = file.read_bytes()
    if not data:
        raise UserError(f"{file} is empty; copy or download it again")
    kind = "tiktoken" if tiktoken_model.is_ranks(data) else "sentencepiece"
    if beside.tokenizer_class not in (*_ANY_CLASS, *CLASSES[kind]):
        raise UserError(
            f"{file} is a {kind} model, which is not what {beside.tokenizer_class} of its tokenizer_config.json reads; "
            f"supported are {', '.join(CLASSES[kind])}, or a tokenizer.json"
        )
    backend, roles = (_tiktoken if kind == "tiktoken" else _sentencepiece)(data, file, beside)
    _add(backend, beside, file)
    return backend, {**roles, **beside.roles}, beside


def read_beside(folder: Path) -> Beside:
    """The companions of a tokenizer.model in `folder`; `UserError` where one is not readable."""
    words = {**_json(folder / "special_tokens_map.json"), **_json(folder / "tokenizer_config.json")}
    template = folder / "chat_template.jinja"
    try:
        if template.is_file():
            words["chat_template"] = template.read_text(encoding="utf-8")
        decoder = {int(index): token for index, token in words.get("added_tokens_decoder", {}).items()}
        roles = {role: _text(words[role]) for role in _ROLES if words.get(role)}
        more = tuple(map(_text, words.get("additional_special_tokens") or ()))
        special = {_text(token) for token in decoder.values() if token.get("special")}
        added = {index: text for text, index in _json(folder / "added_tokens.json").items()}
        added.update({index: _text(token) for index, token in decoder.items()})
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"what {folder} says of special tokens or the chat template is malformed: {error!r}") from None
    return Beside(words, roles, more, added, frozenset(special.union(more, roles.values())))


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no JSON object")
    return content


def _text(token: Any) -> str:
    """A token as configs write it: its text, or an object with flags."""
    return token["content"] if isinstance(token, Mapping) else token


def _sentencepiece(data: bytes, file: Path, beside: Beside) -> tuple[Tokenizer, dict[str, str]]:
    model = sentencepiece_model.parse(data, file)
    words = beside.words
    baichuan = set(BUILT_IN["baichuan2"].tokens) <= {piece.text for piece in model.pieces}
    prefix = model.add_dummy_prefix and words.get("add_prefix_space", True) is not False
    backend = sentencepiece_model.backend(
        model, file, beside.special | _CONTROLS, prefix=prefix, first_only=words.get("legacy", True) is False
    )
    found = {f"{name}_token": model.piece_of(name) for name in ("bos", "eos", "pad", "unk")}
    roles = {role: piece for role, piece in found.items() if piece is not None}
    if baichuan:
        roles.setdefault("pad_token", roles["unk_token"])
    bos, eos = ({**roles, **beside.roles}.get(role) for role in ("bos_token", "eos_token"))
    _surround(
        backend,
        [bos] if bos and words.get("add_bos_token", bos == "<s>" and not baichuan) else [],
        [eos] if eos and words.get("add_eos_token", False) else [],
    )
    return backend, roles


def _tiktoken(data: bytes, file: Path, beside: Beside) -> tuple[Tokenizer, dict[str, str]]:
    tokens = tiktoken_model.parse(data, file)
    listed = [beside.added[index] for index in sorted(beside.added)]
    special = listed or tiktoken_model.SPECIALS
    backend = tiktoken_model.backend(tokens, special)
    _surround(backend, [token for token in ("[gMASK]", "<sop>") if token in special], [])
    return backend, {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


def _surround(backend: Tokenizer, before: Sequence[str], after: Sequence[str]) -> None:
    """Where `add_special_tokens` is asked for, put these tokens around a text."""
    from tokenizers import processors

    if before or after:
        backend.add_special_tokens([*before, *after])
        known = [(token, backend.token_to_id(token)) for token in dict.fromkeys([*before, *after])]
        backend.post_processor = processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=known)


def _add(backend: Tokenizer, beside: Beside, file: Path) -> None:
    """Add the tokens that the files beside it list; those of the model's own pieces are there, and stay as they are."""
    from tokenizers import AddedToken

    for _, token in sorted(beside.added.items()):
        backend.add_tokens([AddedToken(token, normalized=False, special=token in beside.special)])
    for index, token in beside.added.items():
        if backend.token_to_id(token) != index:
            raise UserError(
                f"{file} puts {token} at id {backend.token_to_id(token)}, the files beside it at {index}; they are not "
                f"of one tokenizer, or one is incomplete"
            )
