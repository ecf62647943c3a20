"""Our writer and reader of .ckpt files against MindSpore's."""

from __future__ import annotations

from pathlib import Path

import mindspore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindrlhf.checkpoint import ckpt_file
from mindrlhf.checkpoint.ckpt_file import CkptFile, CkptWriter
from mindrlhf.runtime.errors import CorruptCheckpoint, UserError

WORDS = (
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool_",
)


def tensors() -> dict[str, mindspore.Tensor]:
    values = np.arange(300).reshape(2, 150) % 2
    made = {f"x.{word}": mindspore.Tensor(values, getattr(mindspore, word)) for word in (*WORDS, "bfloat16")}
    return {**made, "scalar": mindspore.Tensor(2.5, mindspore.float32), "n": mindspore.Tensor(np.zeros(3, np.float32))}


def save(path: Path, found: dict[str, mindspore.Tensor], *, crc_check: bool = True, **more: object) -> Path:
    parameters = [{"name": name, "data": value} for name, value in found.items()]
    mindspore.save_checkpoint(parameters, str(path), crc_check=crc_check, **more)
    path.chmod(0o600)
    return path


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    writer = CkptWriter(path)
    for name, array in arrays.items():
        writer.put(name, array)
    writer.close()
    return path


def read(path: Path) -> dict[str, np.ndarray]:
    opened = CkptFile(path)
    arrays = {name: opened.read(name) for name in opened.table}
    opened.check()
    opened.close()
    return arrays


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(
        (left[name].dtype, left[name].shape, left[name].tobytes())
        == (right[name].dtype, right[name].shape, right[name].tobytes())
        for name in left
    )


def test_a_file_is_byte_for_byte_mindspores(tmp_path: Path) -> None:
    found = tensors()
    theirs = save(tmp_path / "theirs.ckpt", found)
    ours = write(tmp_path / "ours.ckpt", {name: value.asnumpy() for name, value in found.items()})
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("crc_check", [False, True])
def test_what_mindspore_wrote_is_read(tmp_path: Path, crc_check: bool) -> None:
    found = tensors()
    path = save(tmp_path / "x.ckpt", found, crc_check=crc_check)
    assert same(read(path), {name: value.asnumpy() for name, value in found.items()})


def test_large_tensors_are_cut_as_mindspore_cuts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ckpt_file, "SLICE", 2048)
    monkeypatch.setattr("mindspore.train.serialization.SLICE_SIZE", 2)  # in units of 1024 bytes
    array = np.random.default_rng(0).normal(size=(30, 77)).astype(np.float32)
    arrays = {"a": array, "b": np.ones(512, np.float32), "c": array.T, "d": array[:1]}
    ours = write(tmp_path / "ours.ckpt", arrays)
    theirs = save(tmp_path / "theirs.ckpt", {name: mindspore.Tensor(each) for name, each in arrays.items()})
    assert ours.read_bytes() == theirs.read_bytes()
    assert same(read(ours), arrays)
    assert len(CkptFile(ours).places["a"]) == 5
    loaded = mindspore.load_checkpoint(str(ours), crc_check=True)
    assert same({name: value.asnumpy() for name, value in loaded.items()}, arrays)


def test_words_beside_the_weights_are_read(tmp_path: Path) -> None:
    path = save(tmp_path / "x.ckpt", {"a": mindspore.Tensor([1.0])}, append_dict={"note": "naïve", "step_num": 7})
    found = read(path)
    assert str(found["note"]) == "naïve"
    assert found["step_num"] == 7


def test_a_shape_of_zero_means_a_scalar_where_there_are_bytes(tmp_path: Path) -> None:
    from mindspore.train.checkpoint_pb2 import Checkpoint

    message = Checkpoint()
    value = message.value.add()
    value.tag = "old"
    value.tensor.dims.append(0)
    value.tensor.tensor_type = "Float32"
    value.tensor.tensor_content = np.float32(3).tobytes()
    (tmp_path / "x.ckpt").write_bytes(message.SerializeToString())
    assert read(tmp_path / "x.ckpt") == {"old": np.float32(3)}


def test_what_is_not_supported_is_named(tmp_path: Path) -> None:
    from mindspore.train.checkpoint_pb2 import Checkpoint

    message = Checkpoint()
    value = message.value.add()
    value.tag = "layer.weight"
    value.tensor.dims.append(4)
    value.tensor.tensor_type = "Int4"
    value.tensor.tensor_content = b"xx"
    (tmp_path / "x.ckpt").write_bytes(message.SerializeToString())
    with pytest.raises(UserError, match=r"layer\.weight is Int4, which is not supported"):
        CkptFile(tmp_path / "x.ckpt")
    message = Checkpoint()
    message.value.add().tag = "table"
    part = message.value[0].maptensor.tensor.add()
    part.tensor_type, part.tensor_content = "Float32", b""
    (tmp_path / "x.ckpt").write_bytes(message.SerializeToString())
    with pytest.raises(UserError, match="'table' is no tensor"):
        CkptFile(tmp_path / "x.ckpt")


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=80))
def test_bytes_that_are_no_checkpoint_are_refused(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "x.ckpt"
    path.write_bytes(data)
    try:
        read(path)
    except UserError:
        return
    # protobuf would have taken it too.
    from mindspore.train.checkpoint_pb2 import Checkpoint

    assert Checkpoint.FromString(data).value


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ckpt", {"a": np.arange(40, dtype=np.float32), "b": np.ones((2, 3), np.float16)})
    whole = path.read_bytes()
    for place in range(len(whole) - 17):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"x\.ckpt"):
            read(path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ckpt", {"a": np.arange(40, dtype=np.float32)})
    whole = path.read_bytes()
    for length in range(len(whole) - 17):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptCheckpoint, match=r"x\.ckpt is damaged or no checkpoint of MindSpore"):
            read(path)
