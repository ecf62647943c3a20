"""Tokenizers of Hugging Face folders: text and conversations to ids and back, by transformers, offline."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mindrlhf.data import model_file
from mindrlhf.data.builtin_templates import AUTO, Chosen, choose_template
from mindrlhf.data.conversation import Message
from mindrlhf.data.templates import ChatTemplate, Piece
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import PathLike
from mindrlhf.runtime.logging import log

_VOCABULARIES = ("tokenizer.json", model_file.MODEL_FILE, "vocab.json", "merges.txt")
_COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
_QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_ROLES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}


class ChatTokenizer:
    """A fast transformers tokenizer with a chat template.

    `path` is where it was loaded from, `files` what a copy needs; where `template_is_own` is false, `template` belongs
    beside the copy as chat_template.jinja. The text of a special token, inside a message or a text, never becomes that
    token.
    """

    def __init__(self, tokenizer: Any, path: Path, files: list[Path], chosen: Chosen) -> None:
        self.path = path
        self.files = files
        self.eos_token: str | None = tokenizer.eos_token
        self.eos_id: int | None = tokenizer.eos_token_id
        self.pad_id: int | None = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.vocab_size = len(tokenizer)
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._template = ChatTemplate(tokenizer, chosen)
        self._chosen = chosen

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self._tokenizer.get_vocab()))

    @property
    def template(self) -> str:
        """Text of the chat template in use."""
        return self._chosen.source

    @property
    def template_name(self) -> str:
        """What the chat template in use is called: a built-in one's name, the path of a file, or "its own"."""
        return self._chosen.name

    @property
    def template_is_own(self) -> bool:
        """Whether the template came with the tokenizer, and not from this package or a file that was named."""
        return self._chosen.own

    @property
    def has_template(self) -> bool:
        """Whether conversations are this tokenizer's: false where chatml is used because nothing says what else."""
        return self._chosen.fits

    def encode_messages(
        self, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[Any] = ()
    ) -> list[int]:
        """Ids of the conversation: those of `apply_chat_template`, unless a text holds a special token's text.

        Raises `TemplateError` where the template refuses the conversation.
        """
        pieces = self._template.split(messages, add_generation_prompt, tools)
        return [token for index, piece in enumerate(pieces) for token in self._encode_piece(piece, index == 0)]

    def encode_text(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`, with the tokenizer's BOS and the like where `add_special_tokens`."""
        return self._encode(text, literal=True, add_special_tokens=add_special_tokens)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`."""
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=skip_special_tokens)

    @cached_property
    def tokenizer_hash(self) -> str:
        """sha256 of what the tokenizer does, whatever files said so and wherever they lie."""
        names = ("bos_token", "eos_token", "pad_token")
        state = {"backend": self._backend_state(), **{name: getattr(self._tokenizer, name) for name in names}}
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()

    @cached_property
    def template_hash(self) -> str:
        """sha256 of the text of the chat template in use."""
        return hashlib.sha256(self.template.encode()).hexdigest()

    def _encode(self, text: str, literal: bool, add_special_tokens: bool) -> list[int]:
        # What the tokenizer does when it is called, without the objects that it makes around the ids.
        self._backend.encode_special_tokens = literal
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def _encode_piece(self, piece: Piece, first: bool) -> list[int]:
        if piece.literal and not first:
            return self._inner_backend.encode(piece.text, add_special_tokens=False).ids
        return self._encode(piece.text, piece.literal, add_special_tokens=False)

    @cached_property
    def _inner_backend(self) -> Any:
        """The backend for literal text that does not begin a rendering.

        A tokenizer that puts a blank before the first word of a text alone must not put one here.
        """
        from tokenizers import Tokenizer

        state = json.dumps(self._backend_state())
        backend = Tokenizer.from_str(json.dumps(json.loads(state, object_hook=_without_first_blank)))
        backend.encode_special_tokens = True
        return backend

    def _backend_state(self) -> dict[str, Any]:
        state = json.loads(self._backend.to_str())
        return {**state, "truncation": None, "padding": None}


def load_tokenizer(path: PathLike, merges_file: PathLike | None = None, chat_template: str = AUTO) -> ChatTokenizer:
    """The tokenizer of a Hugging Face folder, or of one file: tokenizer.json, tokenizer.model, or vocab.json.

    Template and special tokens come from `tokenizer_config.json` and `chat_template.jinja` beside the file; without
    them a tokenizer.model has those it was published with, and a vocab.json Qwen's. A folder's tokenizer.json wins over
    its other files. The merges lie beside the vocabulary unless `merges_file` names them. `chat_template`: auto, the
    name of a built-in template, or a path that ends in .jinja; see `choose_template`. One log line where the template
    is not the tokenizer's own. `UserError` where something is missing or broken.
    """
    tokenizer, given, files = _load(path, merges_file)
    chosen = choose_template(tokenizer, chat_template)
    if not chosen.own and multiprocessing.parent_process() is None:
        log(_what_was_chosen(given, chosen, chat_template))
    return ChatTokenizer(tokenizer, given, files, chosen)


def _what_was_chosen(given: Path, chosen: Chosen, wanted: str) -> str:
    line = f"chat template: {chosen.name}"
    if wanted == AUTO:
        why = "whose tokens its vocabulary has" if chosen.fits else "since nothing says what else"
        line = f"the tokenizer {given} has no chat template; conversations take {chosen.name}, {why}"
    if chosen.missing:
        line += f" ({', '.join(chosen.missing)} are plain text to this tokenizer)"
    return line


def _load(path: PathLike, merges_file: PathLike | None) -> tuple[Any, Path, list[Path]]:
    """The transformers tokenizer, where it is, and its files."""
    given = Path(path)
    if not given.exists():
        raise UserError(f"tokenizer {given} does not exist")
    for name, value in (("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_VERBOSITY", "error")):
        os.environ.setdefault(name, value)
    given = _beside_ranks(given)
    folder = given if given.is_dir() else given.parent
    files = _existing(folder, *_VOCABULARIES, *_COMPANIONS)
    # Of a folder, the vocabulary that it has; of a file, itself.
    names = {file.name for file in files if file.name in _VOCABULARIES} if given.is_dir() else {given.name}
    if merges_file is not None or names == {"vocab.json", "merges.txt"} or given.name.endswith("vocab.json"):
        return _from_vocabulary(given, merges_file)
    if names == {model_file.MODEL_FILE} and (given.is_file() or model_file.has_loader(folder)):
        model = folder / model_file.MODEL_FILE
        return model_file.load(model), given, [model, *_existing(folder, *_COMPANIONS)]
    if given.is_dir() or names == {"tokenizer.json"}:
        return _from_folder(given, folder, files)
    raise UserError(
        f"{given} is no tokenizer; give a Hugging Face folder, or its tokenizer.json, tokenizer.model, or vocab.json "
        f"with merges.txt"
    )


def _beside_ranks(given: Path) -> Path:
    """What a run or a merge left has its tokenizer beside the folders of the ranks."""
    network = given / "checkpoint_network"
    own = any((given / name).is_file() for name in _VOCABULARIES)
    return network if network.is_dir() and not own else given


def holds_tokenizer(path: PathLike) -> bool:
    """Whether `path` is a tokenizer file or a folder with one; nothing is opened."""
    place = _beside_ranks(Path(path))
    return place.is_file() or any((place / name).is_file() for name in _VOCABULARIES)


def _from_vocabulary(given: Path, merges_file: PathLike | None) -> tuple[Any, Path, list[Path]]:
    vocabulary = given / "vocab.json" if given.is_dir() else given
    folder = vocabulary.parent
    merges = folder / "merges.txt" if merges_file is None else Path(merges_file)
    if vocabulary.name == "tokenizer.json":
        raise UserError(f"{vocabulary} holds its merges; a merges file goes with a vocab.json")
    for needed in (vocabulary, merges):
        if not needed.is_file():
            raise UserError(f"{needed} does not exist, and the tokenizer {given} needs it")
    files = [vocabulary, merges, *_existing(folder, *_COMPANIONS)]
    if not (folder / "tokenizer_config.json").is_file():
        return _qwen(vocabulary, merges), given, files
    # tokenizer_file=None: a tokenizer.json in the folder must not win over the files that were named.
    return _from_folder(given, folder, files, vocab_file=str(vocabulary), merges_file=str(merges), tokenizer_file=None)


def _from_folder(
    given: Path, folder: Path, files: list[Path], **vocabulary: str | None
) -> tuple[Any, Path, list[Path]]:
    names = {file.name for file in files}
    if not names & {"tokenizer.json", "tokenizer_config.json"}:
        raise UserError(f"{folder} has neither tokenizer.json nor tokenizer_config.json, so it is no tokenizer")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    loader = AutoTokenizer if "tokenizer_config.json" in names else PreTrainedTokenizerFast
    try:
        tokenizer = loader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **vocabulary)
    except Exception as error:  # the tokenizers library raises no narrower one
        cause = str(error).strip().split("\n")[0]
        if "trust_remote_code" in str(error):
            cause = "it needs Python code of its own, which is never run"
        raise UserError(f"the tokenizer {given} cannot be loaded: {cause}") from error
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer {given} has no fast form; convert it to a tokenizer.json")
    return tokenizer, given, files


def _qwen(vocabulary: Path, merges: Path) -> Any:
    """Qwen's tokenizer of two files: their special tokens are in neither, and follow the vocabulary."""
    from tokenizers import AddedToken
    from transformers import Qwen2TokenizerFast

    try:
        words = json.loads(vocabulary.read_text(encoding="utf-8"))
        first = max(words.values()) + 1
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{vocabulary} is no vocabulary of tokens and ids: {error}") from None
    if known := [token for token in (*_QWEN_TOKENS, "<s>", "</s>") if token in words]:
        raise UserError(
            f"{vocabulary} holds {known[0]}, so it is not Qwen's, and without tokenizer_config.json beside it the "
            f"special tokens are unknown; copy that there"
        )
    added = {
        first + index: AddedToken(token, normalized=False, special=True) for index, token in enumerate(_QWEN_TOKENS)
    }
    try:
        return Qwen2TokenizerFast(
            vocab_file=str(vocabulary),
            merges_file=str(merges),
            added_tokens_decoder=added,
            additional_special_tokens=list(_QWEN_TOKENS),
            **_QWEN_ROLES,
        )
    except Exception as error:  # the tokenizers library raises no narrower one
        raise UserError(f"the tokenizer {vocabulary} cannot be loaded: {str(error).splitlines()[0]}") from error


def _existing(folder: Path, *names: str) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _without_first_blank(node: dict[str, Any]) -> dict[str, Any]:
    return {**node, "prepend_scheme": "never"} if node.get("prepend_scheme") == "first" else node
