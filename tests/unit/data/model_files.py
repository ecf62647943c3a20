"""Small tokenizer.model files of both formats, and strings on which tokenizers tend to part."""

from __future__ import annotations

import io
import random
from functools import cache
from typing import Any

from mindrlhf.commands.tiny_tokenizer import train_ranks
from mindrlhf.data.synthetic import preference_rows

GLM = {"tokenizer_class": "ChatGLM4Tokenizer", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
# As Baichuan2 publishes it.
BAICHUAN: dict[str, Any] = {
    "add_bos_token": False,
    "add_eos_token": False,
    "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
    **{
        f"{role}_token": {
            **{"__type": "AddedToken", "content": text, "lstrip": False},
            **{"normalized": True, "rstrip": False, "single_word": True},
        }
        for role, text in (("bos", "<s>"), ("eos", "</s>"), ("pad", "<unk>"), ("unk", "<unk>"))
    },
    "tokenizer_class": "BaichuanTokenizer",
}
RESERVED = ("<reserved_106>", "<reserved_107>")

_WORDS = [
    *("the", " rice", "The", "IT'S", "don't", " x", "aaaa", "naïve", "ﬁ", "天", "气", "怎样煮米饭", "，", "\u3000"),
    *("  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\xa0", "\u200b", "▁", "▁▁", "é", "e\u0301", "\u0627\u0644"),
    *("🙂", "😀😀😀", "👩‍👩‍👧", "🇨🇳", "1", "123", "4567", "1a", "3.14", "<s>", "</s>", "<unk>", "<0x0A>", "<|im_end|>"),
    *("[gMASK]", "<|user|>", "<sep>", "\x00", "\x7f", "��"),
]


@cache
def corpus() -> tuple[str, ...]:
    """English and Chinese rows."""
    return tuple(text for row in preference_rows(400, 0, "corpus") for text in row.values())


@cache
def strings() -> tuple[str, ...]:
    """1,500 of them: sentences, and mixtures of blanks, digits, emoji, names of tokens."""
    rng = random.Random(4)
    mixed = ["".join(rng.choice(_WORDS) for _ in range(rng.randint(1, 20))) for _ in range(1000)]
    plain = ["", " ", "  ", "a", " a", "a ", "  a  b   c    d", "\n", " \n", *_WORDS]
    return (*plain, *corpus()[: 500 - len(plain)], *mixed)


@cache
def sentencepiece_model(**settings: Any) -> bytes:
    """A model trained with these settings over Llama's: bpe of 1,500 pieces, bytes for what is missing."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    llama = {
        **{"model_type": "bpe", "vocab_size": 1500, "byte_fallback": True, "split_digits": True},
        **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "num_threads": 1},
    }
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, minloglevel=2, **{**llama, **given}
    )
    return model.getvalue()


def baichuan_model() -> bytes:
    """A model with Baichuan2's settings."""
    return sentencepiece_model(add_dummy_prefix=False, user_defined_symbols=RESERVED)


@cache
def ranks() -> bytes:
    """A tiktoken file of at most 800 ranks."""
    return train_ranks(800, ())
