"""A SentencePiece `tokenizer.model` as a tokenizer of the `tokenizers` library."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindrlhf.runtime.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BLANK = "▁"  # how SentencePiece writes a blank
_BPE = 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_KINDS = {1: "unigram", 3: "word", 4: "char"}
# Numbers of the fields of its ModelProto that are read, trainer's and normalizer's with what they are when left out.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TRAINER_FIELDS = {
    **{"model_type": (3, 1), "byte_fallback": (35, 0), "treat_whitespace_as_suffix": (24, 0)},
    **{"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1), "unk_piece": (45, b"<unk>")},
}
_NORMALIZER_FIELDS = {
    **{"charsmap": (2, b""), "add_dummy_prefix": (3, 1), "remove_extra_whitespaces": (4, 1)},
    **{"escape_whitespaces": (5, 1)},
}
_FIXED = {1: 8, 5: 4}  # bytes of the wire types of one length


@dataclass(frozen=True)
class Piece:
    """A token: `kind` is normal, unknown, control, user-defined, unused or byte, in SentencePiece's numbers."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class Model:
    """What a file says. trainer, normalizer: values by the names of `_TRAINER_FIELDS` and `_NORMALIZER_FIELDS`."""

    pieces: tuple[Piece, ...]
    trainer: Mapping[str, Any]
    normalizer: Mapping[str, Any]

    @property
    def add_dummy_prefix(self) -> bool:
        """Whether a blank goes before a text."""
        return bool(self.normalizer["add_dummy_prefix"])

    def piece_of(self, role: str) -> str | None:
        """Text of the bos, eos, pad or unk piece; None where the model has none."""
        index = self.trainer[role]
        return self.pieces[index].text if 0 <= index < len(self.pieces) else None


def parse(data: bytes, file: Path) -> Model:
    """The model that `data` holds; `UserError` where it is no whole model, or of a kind that is not supported."""
    try:
        model = _read(data)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error):
        raise UserError(f"{file} is neither a SentencePiece nor a tiktoken model, or only part of one") from None
    texts = {piece.text for piece in model.pieces}
    if len(texts) < len(model.pieces) or "" in texts or model.trainer["unk_piece"] not in texts:
        raise UserError(f"{file} holds an empty piece, one twice, or none for the unknown; copy or download it again")
    if model.trainer["model_type"] != _BPE:
        kind = _KINDS.get(model.trainer["model_type"], "unknown")
        raise UserError(f"{file} is a SentencePiece model of kind {kind}; only bpe is supported, else a tokenizer.json")
    if model.trainer["treat_whitespace_as_suffix"] or not model.normalizer["escape_whitespaces"]:
        raise UserError(f"{file} treats blanks in a way that is not supported; give a tokenizer.json instead")
    return model


def _read(data: bytes) -> Model:
    # By hand: where protobuf is imported before MindSpore, MindSpore cannot be imported any more.
    pieces, parts = [], {}
    for number, value in _fields(data):
        if number == _PIECES:
            piece = dict(_fields(value))
            (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
            pieces.append(Piece(piece[1].decode(), score, piece.get(3, _NORMAL)))
        else:
            parts[number] = value
    trainer = _named(parts[_TRAINER], _TRAINER_FIELDS)
    trainer["unk_piece"] = trainer["unk_piece"].decode()
    return Model(tuple(pieces), trainer, _named(parts[_NORMALIZER], _NORMALIZER_FIELDS))


def _named(data: bytes, wanted: Mapping[str, tuple[int, Any]]) -> dict[str, Any]:
    """The fields of a message that have names here; ValueError where one is of another type."""
    found = dict(_fields(data))
    values = {name: found.get(number, absent) for name, (number, absent) in wanted.items()}
    if any(type(value) is not type(wanted[name][1]) for name, value in values.items()):
        raise ValueError("of another type")
    return values


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protobuf message, a whole number or bytes; ValueError where it is cut."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        wire = key & 7
        value: int | bytes
        if wire == 0:
            value, place = _varint(data, place)
        else:
            size, place = _varint(data, place) if wire == 2 else (_FIXED[wire], place)
            value, place = data[place : place + size], place + size
        if place > len(data) or key < 8:
            raise ValueError("cut short")
        yield key >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A whole number of 7 bits a byte, of 64 bits with a sign, and where it ends."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return (value - (1 << 64) if value >> 63 else value), place
        if shift > 63:
            raise ValueError("no number")


def backend(model: Model, file: Path, special: Collection[str], prefix: bool, first_only: bool) -> Tokenizer:
    """A tokenizer that gives SentencePiece's ids; `UserError` for pieces that it could not treat as SentencePiece does.

    special: pieces that are special tokens besides the control ones. prefix: a blank goes before the text; first_only:
    only at its beginning, not behind each special token.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = {piece.text: index for index, piece in enumerate(model.pieces)}
    control = {piece.text for piece in model.pieces if piece.kind in (_UNKNOWN, _CONTROL) or piece.text in special}
    added = [piece.text for piece in model.pieces if _is_found(piece) or piece.text in control]
    if prefix and len(added) > len(control):
        whole = next(piece for piece in added if piece not in control)
        # The library would put the blank that goes before a text behind each of these pieces too.
        raise UserError(f"{file} has the piece {whole!r} of the user-defined kind, which needs a tokenizer.json here")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges({piece.text: piece.score for piece in model.pieces if piece.kind == _NORMAL}, set(added)),
            unk_token=model.trainer["unk_piece"],
            fuse_unk=True,
            byte_fallback=bool(model.trainer["byte_fallback"]),
        )
    )
    for piece in added:
        # SentencePiece looks for a user's piece where blanks are already written as BLANK.
        tokenizer.add_tokens([AddedToken(piece, normalized=BLANK in piece, special=piece in control)])
    steps = _normalisation(model.normalizer)
    if prefix and first_only:
        # Metaspace spares a text that begins with a blank, of which none is left here; then it writes its own anew.
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(" ", prepend_scheme="first", split=False),
                pre_tokenizers.Metaspace(BLANK, prepend_scheme="never", split=False),
            ]
        )
    elif prefix:
        steps.append(normalizers.Prepend(BLANK))
    steps.append(normalizers.Replace(" ", BLANK))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()] + [decoders.Strip(" ", 1, 0)] * prefix
    )
    return tokenizer


def _is_found(piece: Piece) -> bool:
    """Whether a piece is taken whole wherever a text holds it; one with a blank is looked for, but never there."""
    return piece.kind == _USER_DEFINED and " " not in piece.text


def _merges(scores: dict[str, float], never: Collection[str]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, the best first.

    Of pairs that make one piece the longer left half goes first, which is how runs of one character split. Bytes,
    control tokens and the pieces `never` come of no merge, so that their names in a text stay text.
    """
    usable = {piece: score for piece, score in scores.items() if piece not in never}
    pairs = [
        (-score, -cut, piece)
        for piece, score in usable.items()
        for cut in range(1, len(piece))
        if piece[:cut] in usable and piece[cut:] in usable
    ]
    return [(piece[:-cut], piece[-cut:]) for _, cut, piece in sorted(pairs)]


def _normalisation(spec: Mapping[str, Any]) -> list[Any]:
    from tokenizers import Regex, normalizers

    steps = [normalizers.Precompiled(spec["charsmap"])] if spec["charsmap"] else []
    if spec["remove_extra_whitespaces"]:
        steps += [normalizers.Replace(Regex(rf"\A +|[ {BLANK}]+\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    return steps
