"""Our writer and reader of safetensors against the package's."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import mindspore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mindrlhf.checkpoint.safetensors_file import NAMES, SafetensorsFile, SafetensorsWriter, write_safetensors
from mindrlhf.checkpoint.tensor_file import BLOCK, blocks, spec_of
from mindrlhf.runtime.errors import CorruptCheckpoint, UserError

DTYPES = [np.dtype(name) for name in NAMES.values() if name != "bfloat16"]
BFLOAT16 = mindspore.Tensor(np.zeros(1, np.float32), mindspore.bfloat16).asnumpy().dtype


def some_arrays() -> dict[str, np.ndarray]:
    arrays = {f"x.{dtype}": (np.arange(6) % 2).reshape(2, 3).astype(dtype) for dtype in (*DTYPES, BFLOAT16)}
    return {**arrays, "层.weight": np.zeros((0, 3), np.float32), "scalar": np.array(2.5, np.float32)}


def write(path: Path, arrays: dict[str, np.ndarray], *, hugging_face: bool = False) -> None:
    specs = {name: spec_of(array) for name, array in arrays.items()}
    write_safetensors(path, specs, arrays.items(), hugging_face=hugging_face)


def read(path: Path) -> dict[str, np.ndarray]:
    opened = SafetensorsFile(path)
    arrays = {name: opened.read(name) for name in opened.table}
    opened.check()
    opened.close()
    return arrays


def test_a_file_for_hugging_face_is_byte_for_byte_the_packages(tmp_path: Path) -> None:
    arrays = some_arrays()
    write(tmp_path / "ours", dict(reversed(arrays.items())), hugging_face=True)
    save_file(arrays, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_the_package_reads_ours_and_we_read_the_packages(tmp_path: Path) -> None:
    arrays = some_arrays()
    write(tmp_path / "ours", arrays)
    save_file(arrays, tmp_path / "theirs")
    for found in (load_file(tmp_path / "ours"), read(tmp_path / "ours"), read(tmp_path / "theirs")):
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            assert found[name].tobytes() == array.tobytes()


def test_the_order_in_which_tensors_come_does_not_matter(tmp_path: Path) -> None:
    arrays = some_arrays()
    for k, names in enumerate((sorted(arrays), sorted(arrays, reverse=True))):
        writer = SafetensorsWriter(tmp_path / str(k), {name: spec_of(array) for name, array in arrays.items()})
        for name in names:
            writer.put(name, arrays[name])
        writer.close()
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_a_file_with_a_missing_or_another_tensor_is_a_mistake_of_ours(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "x", {"a": spec_of(np.zeros(2)), "b": spec_of(np.zeros(2))})
    with pytest.raises(AssertionError, match="a is"):
        writer.put("a", np.zeros(3))
    writer.put("a", np.zeros(2))
    with pytest.raises(AssertionError, match=r"\['b'\] were never written"):
        writer.close()


def test_blocks_are_the_bytes_of_any_array_and_never_large() -> None:
    whole = np.arange(3 * 2 * (BLOCK // 8) + 6, dtype=np.float32)
    cube = whole.reshape(2, 3, -1)
    for array in (whole, whole[1:], cube.transpose(2, 1, 0), cube[:, ::2], cube[:1].transpose(0, 2, 1), whole[:0]):
        pieces = list(blocks(array))
        assert b"".join(piece.tobytes() for piece in pieces) == array.tobytes()
        assert all(piece.nbytes <= BLOCK for piece in pieces)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"a": 1}',
        b'{"a": {}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
        b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [1], '
        b'"data_offsets": [0, 4]}}',
        b'{"\xff": {}}',
    ],
)
def test_a_header_that_is_none_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(CorruptCheckpoint, match=r"x\.safetensors is damaged or cut short"):
        SafetensorsFile(path)


def test_a_length_beyond_the_file_is_refused(tmp_path: Path) -> None:
    for length in (1, 1 << 20, 1 << 63):
        (tmp_path / "x").write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(CorruptCheckpoint, match="it has no header"):
            SafetensorsFile(tmp_path / "x")


def test_a_dtype_that_is_not_supported_is_named(tmp_path: Path) -> None:
    header = json.dumps({"a.weight": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(UserError, match=r"a\.weight is F8_E4M3, which is not supported"):
        SafetensorsFile(tmp_path / "x")


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_any_changed_byte_is_refused_or_changes_no_value(tmp_path_factory, place: int, value: int) -> None:
    path = tmp_path_factory.mktemp("changed") / "x.safetensors"
    arrays = {"a": np.arange(4, dtype=np.float32), "b": np.arange(3, dtype=np.int8)}
    write(path, arrays)
    data = bytearray(path.read_bytes())
    data[place % len(data)] = value
    path.write_bytes(data)
    try:
        found = read(path)
    except UserError:
        return
    assert sorted(array.tobytes() for array in found.values()) == sorted(array.tobytes() for array in arrays.values())
