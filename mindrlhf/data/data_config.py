"""The yaml of a data set in MindSpeed-RL's words, as --data_config takes it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindrlhf.config import kinds
from mindrlhf.config.kinds import Kind
from mindrlhf.config.read_yaml import read_file
from mindrlhf.data.builtin_templates import AUTO, built_in_name
from mindrlhf.data.formats import DATASET_TYPES
from mindrlhf.data.map_keys import check_map_keys
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import PathLike
from mindrlhf.runtime.logging import warn


@dataclass(frozen=True)
class DataConfig:
    """What the file says, in our words; None and empty are "not said". Paths are as they stand in the file."""

    src: tuple[str, ...] = ()
    dst: str | None = None
    dataset_type: str | None = None
    map_keys: dict[str, str] = field(default_factory=dict)
    tokenizer: str | None = None
    merges_file: str | None = None
    chat_template: str | None = None
    seq_len: int | None = None
    workers: int | None = None
    log_interval: int | None = None


HANDLERS = {
    "AlpacaStylePairwiseHandler": "alpaca",
    "SharegptStylePairwiseHandler": "sharegpt",
    **{name: name for name in DATASET_TYPES},
}
TOKENIZER_TYPES = ("HuggingFaceTokenizer", "PretrainedFromHF")
# Their other words. They say how Megatron's files are made, which are not made here.
WITHOUT_EFFECT = (
    *("streaming", "json_keys", "split_sentences", "keep_newlines", "prompt_type_path", "dataset_additional_keys"),
    *("overwrite_cache", "seed", "cache_dir", "pack", "neat_pack", "script_data_dir", "tokenizer_not_use_fast"),
    *("append_eod", "make_vocab_size_divisible_by", "pad_vocab_size_to", "placeholder_token", "reward_tokens"),
    *("dataset_impl", "n_subs", "merge_group_keys", "enable_thinking"),
)
_COUNT = kinds.whole(1)
_PATH = kinds.text("a path")
# Their word: ours, and what it accepts.
_WORDS: dict[str, tuple[str, Kind | None]] = {
    "input": ("src", None),
    "output_prefix": ("dst", _PATH),
    "handler_name": ("dataset_type", kinds.text("the name of a handler")),
    "map_keys": ("map_keys", None),
    "tokenizer_type": ("", kinds.choice(*TOKENIZER_TYPES)),
    "tokenizer_name_or_path": ("tokenizer", _PATH),
    "vocab_file": ("tokenizer", _PATH),
    "merge_file": ("merges_file", _PATH),
    "prompt_type": ("chat_template", kinds.text("the name of a chat template")),
    "seq_length": ("seq_len", kinds.whole(2)),
    "workers": ("workers", _COUNT),
    "log_interval": ("log_interval", _COUNT),
    "interleave_probs": ("", None),
}


def read_data_config(path: PathLike) -> DataConfig:
    """The data set that a yaml file describes.

    `UserError` naming file and key for a key that is unknown, a value that is not accepted, and what cannot be done
    here; one warning for words of theirs without effect.
    """
    source = str(path)
    tree = read_file(Path(path), source)
    if not isinstance(tree, Mapping) or not tree:
        raise UserError(f"{source} is no mapping; write lines such as `input: data.jsonl`")
    found: dict[str, Any] = {}
    idle: list[str] = []
    for key, value in tree.items():
        if key in WITHOUT_EFFECT:
            idle.append(key)
        elif key not in _WORDS:
            nearest = difflib.get_close_matches(str(key), [*_WORDS, *WITHOUT_EFFECT], n=1, cutoff=0.0)[0]
            raise UserError(f"{source}: {key} is not a key; did you mean {nearest}?")
        elif value is not None:
            _take(source, key, value, found)
    if idle:
        warn(f"{source}: {', '.join(idle)} {'have' if len(idle) > 1 else 'has'} no effect here")
    return DataConfig(**found)


def _take(source: str, key: str, value: Any, found: dict[str, Any]) -> None:
    """Put what `key` says into `found`, in our words."""
    ours, kind = _WORDS[key]
    try:
        value = value if kind is None else kind.read(value)
    except ValueError:
        assert kind is not None
        raise UserError(f"{source}: {key} is {kinds.show(value)}{kind.complaint}") from None
    if key == "input":
        value = _inputs(source, value)
    elif key == "output_prefix":
        value = value if value.endswith(".mindrecord") else f"{value}.mindrecord"
    elif key == "handler_name":
        value = _handler(source, value)
    elif key == "map_keys":
        value = check_map_keys(value, f"{source}: map_keys")
    elif key == "prompt_type":
        as_it_is = value == AUTO or value.endswith(".jinja")
        value = value if as_it_is else built_in_name(value, f"{source}: prompt_type")
    elif key == "interleave_probs":
        raise UserError(f"{source}: interleave_probs is not read; write weights behind the files, as in data.jsonl@0.5")
    if ours in found and found[ours] != value:
        raise UserError(f"{source}: {key} and tokenizer_name_or_path are one thing here; keep one")
    if ours:
        found[ours] = value


def _inputs(source: str, value: Any) -> tuple[str, ...]:
    """Words of --src: a list, or text where they stand with commas between, as in MindSpeed-RL, unless it is a path."""
    if isinstance(value, str) and not Path(value).exists():
        value = [word.strip() for word in value.split(",")]
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
        raise UserError(f"{source}: input is {kinds.show(value)}; give a path or a list of paths")
    return tuple(words)


def _handler(source: str, value: str) -> str:
    if value not in HANDLERS:
        known = ", ".join(HANDLERS)
        raise UserError(
            f"{source}: handler_name is {kinds.show(value)}, which makes no pairs here; give one of {known}"
        )
    return HANDLERS[value]
