from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from mindrlhf.checkpoint.find import find_weights
from mindrlhf.checkpoint.hf_folder import SHARD, hugging_face_folder, refuse_weights, shards
from mindrlhf.checkpoint.tensor_file import Spec, spec_of
from mindrlhf.checkpoint.tensors import read_weights
from mindrlhf.runtime.errors import UserError

ARRAYS = {f"layers.{k}.weight": np.full((2, 3), k, np.float32) for k in range(5)}
SPECS = {name: spec_of(array) for name, array in ARRAYS.items()}


def write(folder: Path, limit: int) -> None:
    with hugging_face_folder(folder, SPECS, limit) as put:
        for name, array in ARRAYS.items():
            put(name, array)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_shards_are_filled_in_order_up_to_the_limit() -> None:
    sizes = {"a": 4, "b": 6, "c": 1, "d": 20, "e": 3, "f": 7}
    parts = shards({name: Spec("int8", (size,)) for name, size in sizes.items()}, 10)
    assert [(file, list(part)) for file, part in parts.items()] == [
        ("model-00001-of-00004.safetensors", ["a", "b"]),
        ("model-00002-of-00004.safetensors", ["c"]),
        ("model-00003-of-00004.safetensors", ["d"]),
        ("model-00004-of-00004.safetensors", ["e", "f"]),
    ]
    assert SHARD == 5_000_000_000


def test_a_model_of_one_file_has_no_index(tmp_path: Path) -> None:
    write(tmp_path / "out", SHARD)
    assert names(tmp_path / "out") == ["model.safetensors"]
    with safe_open(tmp_path / "out" / "model.safetensors", framework="np") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_shards_and_their_index(tmp_path: Path) -> None:
    write(tmp_path, 48)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 5 * 24}
    files = [f"model-0000{k}-of-00003.safetensors" for k in (1, 1, 2, 2, 3)]
    assert index["weight_map"] == dict(zip(ARRAYS, files))
    found = read_weights(find_weights(tmp_path))
    assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in ARRAYS.items()}


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with hugging_face_folder(tmp_path, SPECS, 24) as put:
            put("layers.0.weight", ARRAYS["layers.0.weight"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "other",
    ["model.safetensors", "x.ckpt", "other.safetensors", "pytorch_model.bin", "checkpoint_network/", "rank_0/"],
)
def test_weights_are_not_replaced(tmp_path: Path, other: str) -> None:
    place = tmp_path / other
    place.mkdir() if other.endswith("/") else place.write_bytes(b"")
    with pytest.raises(UserError, match=rf"holds weights already \({other.rstrip('/')}\); remove them"):
        refuse_weights(tmp_path)


def test_what_an_export_may_lie_beside(tmp_path: Path) -> None:
    refuse_weights(tmp_path / "absent")
    (tmp_path / "config.json").write_text("{}")
    refuse_weights(tmp_path)
