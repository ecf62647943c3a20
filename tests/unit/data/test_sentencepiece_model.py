"""Ids and texts against the sentencepiece library itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_files import RESERVED, sentencepiece_model, strings
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

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
    model = sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_model())
    for score, piece in enumerate(more):
        if piece not in {known.piece for known in model.pieces}:
            model.pieces.add(piece=piece, score=-score)
    reference = SentencePieceProcessor(model_proto=model.SerializeToString())
    tokenizer = load_tokenizer(saved(tmp_path, model.SerializeToString()))
    assert ids(tokenizer, text) == reference.encode(text)
    assert not {0, 1, 2, reference.piece_to_id("<0x0A>")} & set(ids(tokenizer, text))


@pytest.mark.parametrize("legacy", [None, True, False])
def test_a_conversation_is_encoded_as_transformers_does(tmp_path: Path, legacy: bool | None) -> None:
    """`legacy` false: a blank goes before the text, else before what follows each special token too."""
    from transformers import LlamaTokenizer

    template = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{{ eos_token }}{% endfor %}"
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": template}
    file = saved(tmp_path, sentencepiece_model(), tokenizer_class="LlamaTokenizer", legacy=legacy, **roles)
    tokenizer, theirs = load_tokenizer(tmp_path), LlamaTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenizer_hash == load_tokenizer(file).tokenizer_hash
    compared = 0
    for text in strings():
        if not any(name in text for name in ("<s>", "</s>", "<unk>")):
            compared += 1
            messages = [{"role": "user", "content": text}] * 2
            assert tokenizer.encode_messages(messages, False) == theirs.apply_chat_template(messages), repr(text)
            assert tokenizer.encode_text(text) == theirs(text).input_ids, repr(text)
    assert compared > 900


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
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    proto.pieces[300].piece = proto.pieces[301].piece
    with pytest.raises(UserError, match="holds a piece that is broken, empty or there twice"):
        load_tokenizer(saved(tmp_path, proto.SerializeToString()))
    broken = model.replace("的".encode(), "的".encode()[:2] + b"x")
    with pytest.raises(UserError, match="holds a piece that is broken|is neither a SentencePiece"):
        load_tokenizer(saved(tmp_path, broken))
