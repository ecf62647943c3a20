"""PyTorch's .bin files, in which Baichuan2 is published: read as they are, and never with the code they may hold."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hf_models import arrays_of, bits, config_of, converted, hf_folder

torch = pytest.importorskip("torch")

from mindspore import Parameter, Tensor  # noqa: E402

from mindrlhf.checkpoint.find import find_weights  # noqa: E402
from mindrlhf.checkpoint.store import read_weights  # noqa: E402
from mindrlhf.config.schema import Config, Model  # noqa: E402
from mindrlhf.models import families  # noqa: E402
from mindrlhf.runtime.errors import CorruptCheckpoint, UserError  # noqa: E402
from mindrlhf.runtime.files import write_json  # noqa: E402
from mindrlhf.trainers.policy import find_source  # noqa: E402
from mindrlhf.trainers.weights import load_weights  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DTYPES = ("float32", "bfloat16", "float16")


def bin_folder(folder: Path, name: str, dtype: str = "float32", shards: int = 2) -> Path:
    """The model of `hf_folder` as PyTorch writes it."""
    folder.mkdir()
    config = config_of(name)
    tensors = {key: torch.from_numpy(array).to(getattr(torch, dtype)) for key, array in arrays_of(name, config).items()}
    write_json(folder / "config.json", {**config, "torch_dtype": dtype})
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    files = {key: f"pytorch_model-{k % shards + 1:05}-of-{shards:05}.bin" for k, key in enumerate(tensors)}
    for file in set(files.values()):
        torch.save({key: tensors[key] for key in tensors if files[key] == file}, folder / file)
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": files})
    return folder


@pytest.mark.parametrize("name", sorted(families()))
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bin_folder_gives_what_the_safetensors_give(tmp_path: Path, name: str, dtype: str) -> None:
    source = bin_folder(tmp_path / "bin", name, dtype, shards=1 if dtype == "float32" else 3)
    words = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[dtype]
    expected = converted(hf_folder(tmp_path / "hf", name), tmp_path / "expected", "--dtype", words)
    assert bits(converted(source, tmp_path / "ms.ckpt")) == bits(expected)
    assert bits(converted(tmp_path / "ms.ckpt", tmp_path / "back", "--reversed", "True")) == bits(source)


def everything(folder: Path) -> dict[str, np.ndarray]:
    """What a model is given of a folder."""
    source = find_source(Config(model=Model(load_checkpoint=str(folder))))
    shapes = {
        key: array.shape
        for key, array in source.family.hf_to_ms(read_weights(source.weights), source.hf_config).items()
    }
    parameters = {key: Parameter(Tensor(np.zeros(shape, np.float32)), name=key) for key, shape in shapes.items()}
    load_weights(source, parameters)
    return {key: parameter.asnumpy().copy() for key, parameter in parameters.items()}


def test_load_checkpoint_takes_a_bin_folder_as_it_is(tmp_path: Path) -> None:
    found = everything(bin_folder(tmp_path / "bin", "baichuan2"))
    expected = everything(hf_folder(tmp_path / "hf", "baichuan2"))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_views_and_shared_storages_are_read_as_their_values(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"t": base.T, "row": base[1], "same": base, "parameter": torch.nn.Parameter(base), "scalar": base[1, 1]}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    found = read_weights(find_weights(tmp_path))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert np.array_equal(found[name], tensor.detach().numpy()), name
        assert found[name].flags.c_contiguous


class Harm:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("harm-was-done", "w")


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.ones(2), "harm": Harm()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CorruptCheckpoint, match="no file of plain tensors"):
        read_weights(find_weights(tmp_path))
    assert not (tmp_path / "harm-was-done").exists()


def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save({"weight": torch.ones(1000)}, file)
    whole = file.read_bytes()
    for data in (b"", b"x" * 100, whole[:300], whole[: len(whole) // 2]):
        file.write_bytes(data)
        with pytest.raises(CorruptCheckpoint, match=r"pytorch_model\.bin is damaged, or no file of plain tensors"):
            read_weights(find_weights(file))
    torch.save({"weight": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(CorruptCheckpoint, match=r"torch 1\.6 or later"):
        read_weights(find_weights(file))
    for value in ([torch.ones(2)], {"state": {"weight": torch.ones(2)}}, {"epoch": 3}):
        torch.save(value, file)
        with pytest.raises(UserError, match="holds other things than tensors by name"):
            read_weights(find_weights(file))
    torch.save({"weight": torch.ones(2).to(torch.float8_e4m3fn)}, file)
    with pytest.raises(UserError, match="weight is float8_e4m3fn, which is not supported"):
        read_weights(find_weights(file))


MEASURE = """
import re, sys
from pathlib import Path
import torch, mindspore, tqdm
from mindrlhf.commands import conversion, convert
from mindrlhf.checkpoint import ckpt_file, hf_folder, store
from mindrlhf.trainers import policy

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

base = peak()
assert convert.main(["--input_path", "bin", "--output_path", "ms.ckpt", "--dtype", "bf16"]) == 0
print(peak() - base)
"""


@pytest.mark.slow
def test_memory_is_bounded_by_the_largest_tensor_of_bin_files_too(tmp_path: Path) -> None:
    from mindrlhf.models import get_family

    sizes = {"vocab_size": 16000, "hidden_size": 2048, "num_hidden_layers": 4, "intermediate_size": 5504}
    config = {**config_of("baichuan2"), **sizes}
    (tmp_path / "bin").mkdir()
    write_json(tmp_path / "bin" / "config.json", config)
    shapes = {key: shape for group in get_family("baichuan2").tensors(config) for key, shape in group.hf.items()}
    torch.save({key: torch.full(shape, 0.5) for key, shape in shapes.items()}, tmp_path / "bin" / "pytorch_model.bin")
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"}
    argv = [sys.executable, "-c", MEASURE]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    used, sizes_of = int(re.findall(r"\d+", done.stdout)[-1]), [4 * np.prod(shape) for shape in shapes.values()]
    print(f"{sum(sizes_of) / 1e6:.0f} MB, largest tensor {max(sizes_of) / 1e6:.0f} MB, {used / 1e6:.0f} MB used")
    assert used <= 2 * max(sizes_of) + 200e6
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == 16000
