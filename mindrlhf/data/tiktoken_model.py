"""A tiktoken `tokenizer.model`, of lines "base64 rank", as a tokenizer of the `tokenizers` library."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mindrlhf.runtime.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# GLM-4's, from its published tokenizer.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPECIALS = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>"),
    *("<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
)
_PRINTABLE = frozenset(b"\t\r\n" + bytes(range(32, 127)))


def is_ranks(data: bytes) -> bool:
    """Whether a file holds lines of ASCII, as no SentencePiece model does."""
    return bool(data.strip()) and _PRINTABLE.issuperset(data)


def parse(data: bytes, file: Path) -> list[bytes]:
    """Tokens by rank; `UserError` naming the line that is none, or what is missing."""
    if data.startswith(b"version https://git-lfs"):
        raise UserError(f"{file} is only a pointer of git-lfs; fetch the file itself with `git lfs pull`")
    by_rank: dict[int, bytes] = {}
    for number, line in enumerate(data.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            token, rank = words
            content = base64.b64decode(token, validate=True)
            index = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(f"{file}, line {number}: not a token in base64 and its rank") from None
        if index in by_rank or not content:
            raise UserError(f"{file}, line {number}: rank {index} is there twice, or its token is empty")
        by_rank[index] = content
    tokens = [by_rank[index] for index in sorted(by_rank)]
    if sorted(by_rank) != list(range(len(tokens))):
        gap = next(index for index in range(len(tokens)) if index not in by_rank)
        raise UserError(f"{file} has no token of rank {gap}; copy or download it again")
    known = set(tokens)
    if len(known) < len(tokens):
        raise UserError(f"{file} holds a token twice; copy or download it again")
    if missing := [value for value in range(256) if bytes([value]) not in known]:
        raise UserError(f"{file} has no token for byte {missing[0]}; copy or download it again")
    return tokens


def backend(tokens: Sequence[bytes], special: Sequence[str]) -> Tokenizer:
    """A tokenizer that gives tiktoken's ids; the special tokens follow the ranks in their order."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = byte_letters()
    names = ["".join(letters[value] for value in token) for token in tokens]
    vocabulary = {name: rank for rank, name in enumerate(names)}
    merges = [
        (name[:cut], name[cut:])
        for name in names
        for cut in range(1, len(name))
        if name[:cut] in vocabulary and name[cut:] in vocabulary
    ]
    # ignore_merges: tiktoken takes a word that is a token whole, however its ranks would make it up.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def byte_letters() -> list[str]:
    """The printable character by which byte-level BPE writes each byte: itself, or one from 256 on."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    free = iter(range(256, 512))
    return [chr(value) if value in shown else chr(next(free)) for value in range(256)]
