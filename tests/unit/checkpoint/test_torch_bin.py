"""What is said of PyTorch's files where there is no torch; tests/interop reads them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mindrlhf.checkpoint.find import find_weights
from mindrlhf.checkpoint.store import read_weights
from mindrlhf.runtime.errors import CorruptCheckpoint, IncompleteCheckpoint, UserError


def bin_folder(folder: Path) -> Path:
    for k in (1, 2):
        (folder / f"pytorch_model-0000{k}-of-00002.bin").write_bytes(b"")
    weight_map = {f"t{k}": f"pytorch_model-0000{k}-of-00002.bin" for k in (1, 2)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_folders_of_bin_files_are_found(tmp_path: Path) -> None:
    weights = find_weights(bin_folder(tmp_path))
    assert [file.name for file in weights.files] == [f"pytorch_model-0000{k}-of-00002.bin" for k in (1, 2)]
    assert (weights.folder, weights.format) == (tmp_path, "bin")
    assert weights.promised == {"t1", "t2"}
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(IncompleteCheckpoint, match=r"missing: pytorch_model-00002-of-00002\.bin"):
        find_weights(tmp_path)


def test_a_single_bin_file_is_found_by_its_folder_and_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(b"")
    (tmp_path / "training_args.bin").write_bytes(b"")
    assert find_weights(tmp_path).files == find_weights(file).files == (file,)


def test_safetensors_win_over_bin_and_both_over_what_was_converted(tmp_path: Path) -> None:
    for name in ("ms.ckpt", "pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).write_bytes(b"")
        assert find_weights(tmp_path).files == (tmp_path / name,)


def test_an_index_of_bin_files_names_bin_files(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "model.safetensors"}}')
    with pytest.raises(CorruptCheckpoint, match=r"a shard must be the name of a \.bin file"):
        find_weights(tmp_path)


def test_without_torch_the_command_that_installs_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(UserError, match=r'only torch reads: run pip install -e "\.\[interop\]" in the repository'):
        read_weights(find_weights(bin_folder(tmp_path)))
