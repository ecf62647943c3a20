"""Ids and texts against the tiktoken library itself, special tokens in GLM-4's published order, broken files."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import tiktoken
from model_files import GLM, ranks, strings

from mindrlhf.data.tiktoken_model import SPECIALS, byte_letters
from mindrlhf.data.tokenizers import load_tokenizer
from mindrlhf.runtime.errors import UserError

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def saved(folder: Path, data: bytes) -> Path:
    (folder / "tokenizer.model").write_bytes(data)
    return folder / "tokenizer.model"


def reference(data: bytes) -> tiktoken.Encoding:
    lines = [line.split() for line in data.splitlines()]
    tokens = {base64.b64decode(token): int(rank) for token, rank in lines}
    return tiktoken.Encoding("glm4", pat_str=PATTERN, mergeable_ranks=tokens, special_tokens={})


def shuffled() -> bytes:
    """Ranks that no training gave: the words of the corpus before most of what they are made of."""
    tokens = [base64.b64decode(line.split()[0]) for line in ranks().splitlines()]
    order = tokens[:256] + sorted(tokens[256:], key=len, reverse=True)
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(order))


@pytest.mark.parametrize("data", [ranks(), shuffled()], ids=["trained", "shuffled"])
def test_ids_and_texts_are_those_of_tiktoken(tmp_path: Path, data: bytes) -> None:
    theirs, tokenizer = reference(data), load_tokenizer(saved(tmp_path, data))
    for text in strings():
        expected = theirs.encode(text, disallowed_special=())
        assert tokenizer.encode_text(text, add_special_tokens=False) == expected, repr(text)
        assert tokenizer.decode(expected, skip_special_tokens=False) == text
    assert len(strings()) == 1500


def test_special_tokens_follow_the_ranks_in_the_published_order(tmp_path: Path) -> None:
    count = len(ranks().splitlines())
    tokenizer = load_tokenizer(saved(tmp_path, ranks()))
    published = {
        **{"<|endoftext|>": 151329, "[MASK]": 151330, "[gMASK]": 151331, "[sMASK]": 151332, "<sop>": 151333},
        **{"<eop>": 151334, "<|system|>": 151335, "<|user|>": 151336, "<|assistant|>": 151337},
        **{"<|observation|>": 151338, "<|begin_of_image|>": 151339, "<|end_of_image|>": 151340},
        **{"<|begin_of_video|>": 151341, "<|end_of_video|>": 151342},
    }
    assert {token: 151329 + index for index, token in enumerate(SPECIALS)} == published
    for token, index in published.items():
        assert tokenizer.decode([index - 151329 + count], skip_special_tokens=False) == token
    assert tokenizer.vocab_size == count + len(SPECIALS)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (count, count)


def test_a_conversation_of_glm4(tmp_path: Path) -> None:
    """[gMASK]<sop>, then of each turn its role, a line break and its text; a token's name in a text stays text."""
    tokenizer, theirs = load_tokenizer(saved(tmp_path, ranks())), reference(ranks())
    end, prefix, start = (len(ranks().splitlines()) + index for index in (0, 2, 4))
    system, user, assistant = (end + 6 + index for index in range(3))
    text = "say <|assistant|> or [gMASK]<sop>"
    told = [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]

    def plain(words: str) -> list[int]:
        return theirs.encode(words, disallowed_special=())

    prompt = [prefix, start, system, *plain("\nbe brief"), user, *plain("\n" + text), assistant]
    assert tokenizer.encode_messages(told, add_generation_prompt=True) == prompt
    answered = [*told, {"role": "assistant", "content": "no"}]
    assert tokenizer.encode_messages(answered, add_generation_prompt=False) == [*prompt, *plain("\nno"), end]
    assert tokenizer.encode_text("<sop>") == [prefix, start, *plain("<sop>")]
    assert tokenizer.template_name == "glm4"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\n \n", "is neither a SentencePiece nor a tiktoken model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "pointer of git-lfs"),
        (b"<html>\n", "line 1: not a token in base64 and its rank"),
        (ranks() + b"abc\n", "line 801: not a token"),
        (ranks() + b"YWJj x\n", "line 801: not a token"),
        (ranks() + b"YW_j 800\n", "line 801: not a token"),
        (ranks() + b"YWJj 3\n", "line 801: rank 3 is there twice"),
        (ranks() + b"YWJjZGVmZ2hpamts 805\n", "has no token of rank 800"),
        (ranks() + b"AA== 800\n", "holds a token twice"),
        (ranks()[:1000], "line|has no token for byte"),
        (ranks()[:-2], "line 800: rank 79 is there twice"),
        (b"PK\x03\x04" + bytes(range(256)), "is neither a SentencePiece nor a tiktoken model"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(UserError, match=rf"tokenizer\.model.*({says})"):
        load_tokenizer(saved(tmp_path, data))


def test_a_file_with_fewer_lines_than_its_config_knows_is_refused(tmp_path: Path) -> None:
    lines = ranks().splitlines(keepends=True)
    added = {str(len(lines) + index): {"content": token, "special": True} for index, token in enumerate(SPECIALS)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**GLM, "added_tokens_decoder": added}))
    whole = load_tokenizer(saved(tmp_path, ranks()))
    with pytest.raises(UserError, match=r"puts <\|endoftext\|> at id 799, the files beside it at 800"):
        load_tokenizer(saved(tmp_path, b"".join(lines[:-1])))
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_tokenizer(saved(tmp_path, ranks())).tokenizer_hash == whole.tokenizer_hash


def test_letters_of_bytes_are_those_of_the_tokenizers_library() -> None:
    from tokenizers import pre_tokenizers

    assert sorted(byte_letters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("a \n\t~¡", "天🙂é", "\x00\x7f\xad"):
        expected = "".join(byte_letters()[value] for value in text.encode())
        assert split.pre_tokenize_str(text)[0][0] == expected
