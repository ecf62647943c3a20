"""Hugging Face folders of every family, and calls of convert_weight.py, for its tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest

from mindrlhf.checkpoint.hf_folder import hugging_face_folder
from mindrlhf.checkpoint.tensor_file import spec_of
from mindrlhf.commands import convert as command
from mindrlhf.models import families, get_family
from mindrlhf.runtime.errors import run
from mindrlhf.runtime.files import write_json

ROOT = Path(__file__).resolve().parents[3]
BFLOAT16 = mindspore.Tensor(np.zeros(1, np.float32), mindspore.bfloat16).asnumpy().dtype
KINDS = {"bf16": BFLOAT16, "fp16": np.dtype("float16"), "fp32": np.dtype("float32")}


def models() -> Iterator[tuple[str, str, bool]]:
    """Every family, every form of it that is published, and a tied twin."""
    for name, family in families().items():
        for variant in ("", *family.tiny_variants):
            for tied in (False, True):
                yield name, variant, tied


def config_of(name: str, variant: str = "", tied: bool = False) -> dict[str, Any]:
    family = get_family(name)
    config = family.tiny_config(vocab_size=96, hidden_size=128, layers=2)
    config = family.tiny_variants[variant](config) if variant else config
    return {**config, "tie_word_embeddings": tied, "torch_dtype": "float32"}


def arrays_of(config: dict[str, Any], name: str, dtype: np.dtype[Any]) -> dict[str, np.ndarray]:
    """Random bits under Hugging Face's names, but no infinities; and what config.json tells."""
    random = np.random.default_rng(7)
    constants = {key: array.astype(dtype) for key, array in get_family(name).constants(config).items()}
    shapes = {key: shape for group in get_family(name).tensors(config) for key, shape in group.hf.items()}
    drawn = {key: random.normal(size=shape).astype(np.float32).astype(dtype) for key, shape in shapes.items()}
    return {**drawn, **constants}


def hf_folder(
    folder: Path, name: str = "qwen2", variant: str = "", tied: bool = False, dtype: str = "fp32", limit: int = 60_000
) -> Path:
    """A Hugging Face folder of several shards; returns it."""
    config = config_of(name, variant, tied)
    arrays = arrays_of(config, name, KINDS[dtype])
    with hugging_face_folder(folder, {key: spec_of(array) for key, array in arrays.items()}, limit) as put:
        for key, array in arrays.items():
            put(key, array)
    write_json(folder / "config.json", config)
    for file in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_text(f'"{name}{variant}"')
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def bits(arrays: dict[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()}


def call(*words: object) -> int:
    return run(command.main, [str(word) for word in words])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The sentence of a refusal."""
    capsys.readouterr()
    assert call(*words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said
