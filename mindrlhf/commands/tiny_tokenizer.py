"""Tokenizers of tiny models: trained on the synthetic corpus, written as the family's published ones are."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindrlhf.data import tiktoken_model
from mindrlhf.data.builtin_templates import BUILT_IN, built_in_name
from mindrlhf.data.model_file import MODEL_FILE, read
from mindrlhf.data.synthetic import preference_rows
from mindrlhf.runtime.files import replacing, write_json, write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

POSITIONS = 4096
CORPUS_ROWS = 1500
BYTES = 256
# The split of Qwen2's tokenizer; longer tokens than this would be whole clauses of our narrow corpus.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LONGEST_TOKEN = 15

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Short forms, without tools and a default system message.
TEMPLATES = {"chatml": CHATML, "qwen": CHATML, "qwen2_5": CHATML, "llama3": LLAMA_CHAT}
FLAGS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


@dataclass(frozen=True)
class Voice:
    """The special tokens of a tokenizer and what its tokenizer_config.json says.

    specials: in the order of their ids. roles: as in special_tokens_map.json. bos: what config.json calls so. ends:
    tokens that end an answer, where config.json names several. in_generation: further ids of generation_config.json.
    """

    specials: tuple[str, ...]
    roles: Mapping[str, str]
    words: Mapping[str, Any]
    bos: str | None = None
    ends: tuple[str, ...] = ()
    in_generation: Mapping[str, str] = field(default_factory=dict)


def voice_of(kind: str, template: str) -> Voice:
    """The voice of a tokenizer of a kind (bpe, sentencepiece, tiktoken) that talks by a built-in chat template."""
    name = built_in_name(template, "the template of the family")
    tokens = BUILT_IN[name].tokens
    text = TEMPLATES.get(name) or BUILT_IN[name].source
    if kind == "sentencepiece":
        return _sentencepiece_voice(name, tokens, text)
    if kind == "tiktoken":
        specials = tiktoken_model.SPECIALS
        end = specials[0]
        return Voice(
            specials + tuple(token for token in tokens if token not in specials),
            {"eos_token": end, "pad_token": end},
            {"tokenizer_class": "ChatGLM4Tokenizer", "chat_template": text, "padding_side": "left"},
            ends=(end, "<|user|>", "<|observation|>"),
        )
    if name == "llama3":
        start, end, pad = "<|begin_of_text|>", tokens[-1], "<|end_of_text|>"
        roles = {"bos_token": start, "eos_token": end, "pad_token": pad}
        words = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": text}
        return Voice((start, pad, *tokens), roles, words, bos=start)
    start = "<|endoftext|>"
    chatml = "<|im_end|>" in tokens
    roles = {"eos_token": "<|im_end|>" if chatml else start, "pad_token": start}
    words = {"tokenizer_class": "Qwen2Tokenizer" if chatml else "PreTrainedTokenizerFast", "chat_template": text}
    return Voice((start, *tokens), roles, words, bos=start)


def _sentencepiece_voice(name: str, tokens: tuple[str, ...], text: str) -> Voice:
    specials = ("<unk>", "<s>", "</s>", *tokens)
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    if name == "baichuan2":
        words = {"tokenizer_class": "BaichuanTokenizer", "add_bos_token": False, "add_eos_token": False}
        turns = {"user_token_id": tokens[0], "assistant_token_id": tokens[1]}
        return Voice(specials, roles, words, bos="<s>", in_generation=turns)
    words = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": True}
    return Voice(specials, roles, {**words, "chat_template": text}, bos="<s>")


def smallest(kind: str, voice: Voice) -> int:
    """The fewest tokens that a tokenizer of this kind can have."""
    return BYTES + len(voice.specials) + (kind == "sentencepiece")


def write_tokenizer(
    folder: Path, kind: str, voice: Voice, vocab_size: int, own_code: bool
) -> tuple[Tokenizer, set[str]]:
    """Train a tokenizer of at most `vocab_size` tokens and write its files to `folder`; it, and their names.

    own_code: the published model has Python files of its own, so that transformers alone does not read its tokenizer;
    else a tiktoken model has the tokenizer.json beside it that transformers reads.
    """
    written = {"tokenizer_config.json", "special_tokens_map.json"}
    if kind == "bpe":
        tokenizer = train_bpe(vocab_size, voice.specials)
        _write_config(folder, voice, tokenizer)
    else:
        tiktoken = kind == "tiktoken"
        data = (train_ranks if tiktoken else train_sentencepiece)(vocab_size, voice.specials)
        with replacing(folder / MODEL_FILE) as temporary:
            temporary.write_bytes(data)
        written.add(MODEL_FILE)
        listed = tiktoken_model.backend(tiktoken_model.parse(data, folder), voice.specials) if tiktoken else None
        _write_config(folder, voice, listed, own_code or not tiktoken)
        tokenizer, _, _ = read(folder / MODEL_FILE)
    if kind == "bpe" or (kind == "tiktoken" and not own_code):
        write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
        written.add("tokenizer.json")
    return tokenizer, written


def train_bpe(vocab_size: int, specials: Sequence[str], words: str = WORDS) -> Tokenizer:
    """Train a byte-level BPE of at most `vocab_size` tokens on the synthetic corpus; `specials` get the last ids."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def train_ranks(vocab_size: int, specials: Sequence[str]) -> bytes:
    """A tiktoken file: the tokens of a byte-level BPE in the order in which it made them, with room for `specials`."""
    values = {letter: value for value, letter in enumerate(tiktoken_model.byte_letters())}
    ranks = train_bpe(vocab_size - len(specials), (), tiktoken_model.WORDS).get_vocab()
    tokens = [bytes(values[letter] for letter in token) for token in sorted(ranks, key=ranks.__getitem__)]
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))


def train_sentencepiece(vocab_size: int, specials: Sequence[str]) -> bytes:
    """A SentencePiece model of at most `vocab_size` pieces with Baichuan2's settings; `specials` come first."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    room = vocab_size - BYTES - len(specials)
    SentencePieceTrainer.train(
        sentence_iterator=_fragments((room + 1) // 2),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        user_defined_symbols=list(specials[3:]),  # after <unk>, <s> and </s>
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        max_sentence_length=1 << 20,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _fragments(characters: int) -> Iterator[str]:
    """The corpus between characters that are not among its so many most frequent ones, which bytes must do for.

    SentencePiece wants every character of its corpus in the vocabulary.
    """
    texts = list(_texts())
    counts = Counter(character for text in texts for character in text if character != "\n")
    frequent = sorted(counts, key=lambda character: (-counts[character], character))[:characters]
    pattern = re.compile("[" + re.escape("".join(frequent)) + "]+")
    return (found for text in texts for found in pattern.findall(text))


def _texts() -> Iterator[str]:
    for row in preference_rows(CORPUS_ROWS, 0, "corpus"):
        yield "system\nuser\nassistant\n"
        yield from row.values()


def _write_config(folder: Path, voice: Voice, tokenizer: Tokenizer | None, own_code: bool = True) -> None:
    """tokenizer_config.json, which has the ids of the special tokens of `tokenizer`, and special_tokens_map.json."""
    special_tokens = {**voice.roles, "additional_special_tokens": list(voice.specials)}
    words: dict[str, Any] = {
        **special_tokens,
        **voice.words,
        "bos_token": voice.roles.get("bos_token"),
        "unk_token": voice.roles.get("unk_token"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": POSITIONS,
        "split_special_tokens": False,
    }
    if tokenizer is not None:
        added = sorted(tokenizer.get_added_tokens_decoder().items())
        flags = {index: {flag: getattr(token, flag) for flag in FLAGS} for index, token in added}
        words["added_tokens_decoder"] = {str(index): token for index, token in flags.items()}
    if not own_code:
        words["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(folder / "tokenizer_config.json", words)
    write_json(folder / "special_tokens_map.json", special_tokens)
