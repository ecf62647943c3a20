"""Ids and texts against the sentencepiece library itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_files import RESERVED, sentencepiece_model, strings
from sentencepiece import SentencePieceProcessor

from mindrlhf.data.sentencepiece_model import parse
from mindrlhf.data.tokenizers import ChatTokenizer, load_tokenizer
from mindrlhf.runtime.errors import UserError

SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "without a first blank": {"add_dummy_prefix": False},
    "baichuan2": {"add_dummy_prefix": False, "user_defined_symbols": RESERVED},
    "user-defined pieces": {"add_dummy_prefix": False, "user_defined_symbols": ("<sep>", "the", "▁▁▁", "▁▁", " x")},
    "long pieces": {"split_by_whitespace": False, "split_digits": False, "allow_whitespace_only_pieces": True},
    "fewer blanks": {"remove_extra_whitespaces": True},
    "nmt_nfkc": {"remove_extra_whitespaces": True, "normalization_rule_name": "nmt_nfkc"},
    "unknown characters": {"byte_fallback": False, "character_coverage": 0.99},
}
KEEPS_EVERYTHING = ("llama", "without a first blank", "baichuan2", "user-defined pieces", "long pieces")


def saved(folder: Path, model: bytes, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder / "tokenizer.model"


def proto(model: bytes) -> Any:
    """The model to be changed."""
    import mindspore  # noqa: F401  (its protobuf modules fail where protobuf was imported before it)
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(model)


def ids(tokenizer: ChatTokenizer, text: str) -> list[int]:
    return tokenizer.encode_text(text, add_special_tokens=False)


@pytest.mark.parametrize("name", SETTINGS)
def test_ids_and_texts_are_those_of_sentencepiece(tmp_path: Path, name: str) -> None:
    model = sentencepiece_model(**SETTINGS[name])
    reference = SentencePieceProcessor(model_proto=model)
    tokenizer = load_tokenizer(saved(tmp_path, model))
    assert len(strings()) == 1500
    for text in strings():
        expected = reference.encode(text)
        assert ids(tokenizer, text) == expected, repr(text)
        if name in KEEPS_EVERYTHING:
            # A blank that the text does not have is SentencePiece's sign for BLANK.
            whole = text.replace("▁", " ")
            assert tokenizer.decode(expected, skip_special_tokens=False) == reference.decode(expected) == whole


def test_names_of_pieces_stay_text(tmp_path: Path) -> None:
    """Even where the pieces of a name could be put together to it."""
    text = "<s></s><unk><0x0A>"
    more = ("s>", "/s>", "</", "un", "unk", "unk>", "<0", "<0x", "A>", "0A>", *"<>/unksx0A")
    model = proto(sentencepiece_model())
    for score, piece in enumerate(more):
        if piece not in {known.piece for known in model.pieces}:
            model.pieces.add(piece=piece, score=-score)
    reference = SentencePieceProcessor(model_proto=model.SerializeToString())
    tokenizer = load_tokenizer(saved(tmp_path, model.SerializeToString()))
    assert ids(tokenizer, text) == reference.encode(text)
    assert not {0, 1, 2, reference.piece_to_id("<0x0A>")} & set(ids(tokenizer, text))


@pytest.mark.parametrize("legacy", [None, True, False])
def test_where_a_blank_goes_before_a_text(tmp_path: Path, legacy: bool | None) -> None:
    """At the beginning; unless `legacy` is false, behind each special token too, as in transformers."""
    template = "{{ bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": template}
    file = saved(tmp_path, sentencepiece_model(), tokenizer_class="LlamaTokenizer", legacy=legacy, **roles)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.tokenizer_hash == load_tokenizer(file).tokenizer_hash
    without = proto(sentencepiece_model())
    without.normalizer_spec.add_dummy_prefix = False
    first = SentencePieceProcessor(model_proto=sentencepiece_model())
    inner = SentencePieceProcessor(model_proto=without.SerializeToString()) if legacy is False else first
    bos, eos = 1, 2
    for text in strings():
        part = inner.encode(text)
        messages = [{"role": "user", "content": text}] * 2
        assert tokenizer.encode_messages(messages, False) == [bos, *part, eos, *part, eos], repr(text)
        assert tokenizer.encode_text(text) == [bos, *first.encode(text)], repr(text)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model_type": "unigram"}, "of kind unigram; only bpe"),
        ({"model_type": "char", "vocab_size": 900}, "of kind char; only bpe"),
        ({"treat_whitespace_as_suffix": True}, "treats blanks"),
        ({"user_defined_symbols": ("<sep>",)}, "the piece '<sep>' of the user-defined kind"),
    ],
)
def test_what_would_be_encoded_otherwise_is_refused(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=rf"tokenizer\.model .*{says}"):
        load_tokenizer(saved(tmp_path, sentencepiece_model(**settings)))


def test_part_of_a_model_is_refused(tmp_path: Path) -> None:
    model = sentencepiece_model()
    for length in [*range(1, len(model), 211), *range(len(model) - 40, len(model))]:
        with pytest.raises(UserError, match=r"tokenizer\.model "):
            load_tokenizer(saved(tmp_path, model[:length]))
    twice = proto(model)
    twice.pieces[300].piece = twice.pieces[301].piece
    with pytest.raises(UserError, match="holds an empty piece, one twice"):
        load_tokenizer(saved(tmp_path, twice.SerializeToString()))
    broken = model.replace("的".encode(), "的".encode()[:2] + b"x")
    with pytest.raises(UserError, match="is neither a SentencePiece nor a tiktoken"):
        load_tokenizer(saved(tmp_path, broken))


def test_a_model_is_read_as_protobuf_reads_it(tmp_path: Path) -> None:
    for settings in SETTINGS.values():
        data = sentencepiece_model(**settings)
        model, theirs = parse(data, tmp_path), proto(data)
        assert [(piece.text, piece.score, piece.kind) for piece in model.pieces] == [
            (piece.piece, piece.score, piece.type) for piece in theirs.pieces
        ]
        trainer, normalizer = theirs.trainer_spec, theirs.normalizer_spec
        assert model.trainer == {
            **{"model_type": trainer.model_type, "byte_fallback": trainer.byte_fallback, "unk": trainer.unk_id},
            **{"bos": trainer.bos_id, "eos": trainer.eos_id, "pad": trainer.pad_id, "unk_piece": trainer.unk_piece},
            "treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
        }
        assert model.normalizer == {
            "charsmap": normalizer.precompiled_charsmap,
            **{key: getattr(normalizer, key) for key in ("add_dummy_prefix", "remove_extra_whitespaces")},
            "escape_whitespaces": normalizer.escape_whitespaces,
        }
        assert model.trainer["pad"] == -1
