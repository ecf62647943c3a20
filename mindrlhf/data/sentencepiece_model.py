"""A SentencePiece `tokenizer.model` as a tokenizer of the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindrlhf.runtime.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BLANK = "▁"  # how SentencePiece writes a blank
_BPE = 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_KINDS = {1: "unigram", 3: "word", 4: "char"}


def parse(data: bytes, file: Path) -> Any:
    """The ModelProto that `data` holds; `UserError` where it is no whole model, or of a kind that is not supported."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError):
        raise UserError(f"{file} is neither a SentencePiece nor a tiktoken model, or only part of one") from None
    if not (model.pieces and model.HasField("trainer_spec") and model.HasField("normalizer_spec")):
        raise UserError(f"{file} is only part of a SentencePiece model; copy or download it again")
    pieces = {piece.piece for piece in model.pieces if isinstance(piece.piece, str)}  # what is not UTF-8 is bytes
    if len(pieces) < len(model.pieces) or "" in pieces or model.trainer_spec.unk_piece not in pieces:
        raise UserError(
            f"{file} holds a piece that is broken, empty or there twice, or none for the unknown; copy or download it "
            f"again"
        )
    trainer = model.trainer_spec
    if trainer.model_type != _BPE:
        kind = _KINDS.get(trainer.model_type, "unknown")
        raise UserError(f"{file} is a SentencePiece model of kind {kind}; only bpe is supported, else a tokenizer.json")
    if trainer.treat_whitespace_as_suffix or not model.normalizer_spec.escape_whitespaces:
        raise UserError(f"{file} treats blanks in a way that is not supported; give a tokenizer.json instead")
    return model


def piece_of(model: Any, name: str) -> str | None:
    """Text of the bos, eos or pad piece; None where the model has none."""
    index = getattr(model.trainer_spec, f"{name}_id")
    return model.pieces[index].piece if 0 <= index < len(model.pieces) else None


def backend(model: Any, file: Path, special: Collection[str], prefix: bool, first_only: bool) -> Tokenizer:
    """A tokenizer that gives SentencePiece's ids; `UserError` for pieces that it could not treat as SentencePiece does.

    special: pieces that are special tokens besides the control ones. prefix: a blank goes before the text; first_only:
    only at its beginning, not behind each special token.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces = list(model.pieces)
    vocabulary = {piece.piece: index for index, piece in enumerate(pieces)}
    control = {piece.piece for piece in pieces if piece.type in (_UNKNOWN, _CONTROL) or piece.piece in special}
    added = [piece.piece for piece in pieces if _is_found(piece) or piece.piece in control]
    if prefix and len(added) > len(control):
        whole = next(piece for piece in added if piece not in control)
        # The library would put the blank that goes before a text behind each of these pieces too.
        raise UserError(f"{file} has the piece {whole!r} of the user-defined kind, which needs a tokenizer.json here")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges({piece.piece: piece.score for piece in pieces if piece.type == _NORMAL}, set(added)),
            unk_token=model.trainer_spec.unk_piece,
            fuse_unk=True,
            byte_fallback=model.trainer_spec.byte_fallback,
        )
    )
    for piece in added:
        # SentencePiece looks for a user's piece where blanks are already written as BLANK.
        tokenizer.add_tokens([AddedToken(piece, normalized=BLANK in piece, special=piece in control)])
    steps = _normalisation(model.normalizer_spec)
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


def _is_found(piece: Any) -> bool:
    """Whether a piece is taken whole wherever a text holds it; one with a blank is looked for, but never there."""
    return piece.type == _USER_DEFINED and " " not in piece.piece


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


def _normalisation(spec: Any) -> list[Any]:
    from tokenizers import Regex, normalizers

    steps = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(rf"\A +|[ {BLANK}]+\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    return steps
