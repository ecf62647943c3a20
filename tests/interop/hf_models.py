"""Small random models as Hugging Face folders, and the command that converts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mindrlhf.checkpoint.find import find_weights
from mindrlhf.checkpoint.store import read_weights, save_weights
from mindrlhf.commands.convert import main
from mindrlhf.models import get_family
from mindrlhf.runtime.errors import run
from mindrlhf.runtime.files import write_json


def config_of(name: str, variant: str = "", **words: Any) -> dict[str, Any]:
    family = get_family(name)
    config = family.tiny_config(vocab_size=96, hidden_size=128, layers=2)
    config = family.tiny_variants[variant](config) if variant else config
    # transformers' own default for GLM lies beyond this vocabulary.
    return {**config, "pad_token_id": 0, "torch_dtype": "float32", **words}


def arrays_of(name: str, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Values as of a trained model: matrices that keep the size of what they multiply, norms and biases that differ."""
    random = np.random.default_rng(3)

    def values(key: str, shape: tuple[int, ...]) -> np.ndarray:
        drawn = random.normal(size=shape)
        if len(shape) == 2:
            return drawn / np.sqrt(shape[1])
        return 0.1 * drawn + (0 if key.endswith("bias") else 1)

    shapes = {key: shape for group in get_family(name).tensors(config) for key, shape in group.hf.items()}
    return {key: values(key, shape).astype(np.float32) for key, shape in shapes.items()}


def hf_folder(folder: Path, name: str, variant: str = "", **words: Any) -> Path:
    config = config_of(name, variant, **words)
    save_weights(arrays_of(name, config), folder / "model.safetensors", for_hugging_face=True)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"do_sample": False})
    return folder


def converted(source: Path, target: Path, *words: str) -> Path:
    assert run(main, ["--input_path", str(source), "--output_path", str(target), *words]) == 0
    return target


def bits(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    found = read_weights(find_weights(folder))
    return {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in found.items()}
