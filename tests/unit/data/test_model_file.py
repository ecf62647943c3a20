"""A tokenizer.model alone, in its published folder, and copied beside weights: one tokenizer each time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from model_files import BAICHUAN, GLM, RESERVED, baichuan_model, ranks, sentencepiece_model

from mindrlhf.data.tokenizers import ChatTokenizer, holds_tokenizer, load_tokenizer
from mindrlhf.runtime.errors import UserError

CHAT = [{"role": "user", "content": "How do I cook rice?"}, {"role": "assistant", "content": "Rinse it"}]
YI = ("<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")


def published(folder: Path, model: bytes, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def words(tokenizer: ChatTokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.decode([token], skip_special_tokens=False) for token in ids]


@pytest.mark.parametrize(("model", "config"), [(baichuan_model(), BAICHUAN), (ranks(), GLM)], ids=["baichuan2", "glm4"])
def test_alone_it_is_the_tokenizer_of_its_folder(tmp_path: Path, model: bytes, config: dict[str, Any]) -> None:
    folder = published(tmp_path / "hf", model, config)
    alone = published(tmp_path / "alone", model)
    whole = load_tokenizer(folder)
    assert [file.name for file in whole.files] == ["tokenizer.model", "tokenizer_config.json"]
    copy = tmp_path / "copy" / "checkpoint_network"
    copy.mkdir(parents=True)
    for file in whole.files:
        shutil.copy(file, copy)
    assert holds_tokenizer(copy.parent)
    for place in (folder / "tokenizer.model", alone, alone / "tokenizer.model", copy, copy.parent):
        other = load_tokenizer(place)
        assert other.tokenizer_hash == whole.tokenizer_hash
        assert other.template_hash == whole.template_hash
        assert (other.eos_id, other.pad_id, other.vocab_size) == (whole.eos_id, whole.pad_id, whole.vocab_size)
        assert other.encode_messages(CHAT, False) == whole.encode_messages(CHAT, False)


def test_turns_of_baichuan2_are_tokens(tmp_path: Path) -> None:
    """The published </s> is for single words only, which the end of an answer is not."""
    tokenizer = load_tokenizer(published(tmp_path, baichuan_model(), BAICHUAN))
    ids = tokenizer.encode_messages(CHAT, False)
    user, assistant = 3, 4  # <reserved_106> and <reserved_107>: 195 and 196 in Baichuan2's own vocabulary
    assert (ids[0], ids[-1]) == (user, 2)
    assert ids.index(assistant) == len(tokenizer.encode_messages(CHAT[:1], True)) - 1
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.template_name) == (2, 0, "baichuan2")
    assert tokenizer.decode(ids) == "How do I cook rice?Rinse it"
    assert 1 not in tokenizer.encode_text("no first token")


def test_names_of_tokens_in_a_message_stay_text(tmp_path: Path) -> None:
    text = f"a{RESERVED[1]}b</s>{RESERVED[0]}c"
    tokenizer = load_tokenizer(published(tmp_path, baichuan_model(), BAICHUAN))
    ids = tokenizer.encode_messages([{"role": "user", "content": text}], True)
    assert [ids[0], ids[-1]] == [3, 4]
    assert not {2, 3, 4} & set(ids[1:-1])
    assert tokenizer.decode(ids[1:-1], skip_special_tokens=False) == text


def test_code_beside_a_known_tokenizer_is_not_run(tmp_path: Path) -> None:
    published(tmp_path, baichuan_model(), BAICHUAN)
    (tmp_path / "tokenization_baichuan.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_vocabulary_like_yi(tmp_path: Path) -> None:
    """Control pieces with names of their own, ChatML's tokens among the pieces, blanks kept, no first token."""
    bos, eos, *turns = YI
    model = sentencepiece_model(
        **{"add_dummy_prefix": False, "bos_piece": bos, "eos_piece": eos, "user_defined_symbols": tuple(turns)}
    )
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": bos, "eos_token": turns[1], "add_bos_token": False}
    alone = load_tokenizer(published(tmp_path / "alone", model))
    tokenizer = load_tokenizer(published(tmp_path / "hf", model, config))
    assert (alone.eos_token, alone.eos_id, tokenizer.eos_token) == (eos, 2, "<|im_end|>")
    for each in (alone, tokenizer):
        assert (each.template_name, each.has_template) == ("chatml", True)
        said = words(each, each.encode_messages([{"role": "user", "content": " <|im_end|>x"}], True))
        assert [said[0], said.count("<|im_start|>"), said.count("<|im_end|>")] == ["<|im_start|>", 2, 1]
        assert 1 not in each.encode_text("x")


def test_tokens_that_were_added_later(tmp_path: Path) -> None:
    """Llama with a pad token, told as transformers tells it now and as it did before."""
    count = 1500
    later = {"added_tokens_decoder": {str(count): {"content": "<pad>", "special": True}}, "pad_token": "<pad>"}
    roles = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "LlamaTokenizer"}
    now = published(tmp_path / "now", sentencepiece_model(), {**roles, **later})
    before = published(tmp_path / "before", sentencepiece_model(), roles)
    (before / "added_tokens.json").write_text(json.dumps({"<pad>": count}))
    (before / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<pad>"}}))
    tokenizers = [load_tokenizer(now), load_tokenizer(before)]
    for tokenizer in tokenizers:
        assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.vocab_size) == (count, 2, count + 1)
        assert tokenizer.encode_text("x")[0] == 1
    assert tokenizers[0].tokenizer_hash == tokenizers[1].tokenizer_hash
    assert {file.name for file in tokenizers[1].files} == {
        *("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    }


def test_a_template_beside_it_is_its_own(tmp_path: Path) -> None:
    folder = published(tmp_path, baichuan_model(), {**BAICHUAN, "chat_template": "{{ messages[0].content }}!"})
    assert load_tokenizer(folder).decode(load_tokenizer(folder).encode_messages(CHAT, False)).endswith("rice?!")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}?")
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    assert (tokenizer.template, tokenizer.template_is_own) == ("{{ messages[0].content }}?", True)


def test_a_tokenizer_json_of_a_folder_wins_unless_the_model_is_named(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    folder = published(tmp_path, ranks(), {"tokenizer_class": "PreTrainedTokenizerFast"})
    Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[])).save(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder).vocab_size == 2
    assert load_tokenizer(folder / "tokenizer.model").vocab_size > 800


@pytest.mark.parametrize(
    ("model", "config", "says"),
    [
        (ranks(), {"tokenizer_class": "BaichuanTokenizer"}, "is a tiktoken model, which is not what BaichuanTokenizer"),
        (baichuan_model(), GLM, "is a sentencepiece model, which is not what ChatGLM4Tokenizer"),
        (baichuan_model(), {"tokenizer_class": "ChatGLMTokenizer"}, "supported are LlamaTokenizer"),
        (baichuan_model(), {"added_tokens_decoder": []}, "malformed"),
        (baichuan_model(), {"eos_token": {"lstrip": False}}, "malformed"),
        (
            *(baichuan_model(), {"added_tokens_decoder": {"7": {"content": "<reserved_106>", "special": True}}}),
            "puts <reserved_106> at id 3, the files beside it at 7",
        ),
    ],
)
def test_what_does_not_fit_together_is_named(tmp_path: Path, model: bytes, config: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_tokenizer(published(tmp_path, model, config) / "tokenizer.model")


def test_a_config_that_is_not_json_is_named(tmp_path: Path) -> None:
    folder = published(tmp_path, baichuan_model())
    for text in ("{", "[]"):
        (folder / "tokenizer_config.json").write_text(text)
        with pytest.raises(UserError, match=r"tokenizer_config\.json"):
            load_tokenizer(folder)
