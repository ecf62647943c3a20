"""Memory of a conversion: bounded by the largest tensor, however large the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from convert_folders import (
    ROOT,
    bits,
    config_of,
)

from mindrlhf.checkpoint.find import find_weights
from mindrlhf.checkpoint.hf_folder import hugging_face_folder
from mindrlhf.checkpoint.safetensors_file import SafetensorsFile
from mindrlhf.checkpoint.store import read_weights
from mindrlhf.checkpoint.tensor_file import spec_of
from mindrlhf.models import get_family
from mindrlhf.runtime.files import write_json

MEASURE = """
import json, re, sys
from pathlib import Path
import mindspore
from mindrlhf.commands import conversion, convert
from mindrlhf.checkpoint import ckpt_file, hf_folder, store
from mindrlhf.trainers import policy
from mindrlhf.models import BuildOptions, family_of
import tqdm

config = json.loads(Path("hf/config.json").read_text())
family_of(config, "hf").from_hf_config(config, BuildOptions(seq_length=1))  # which imports MindFormers for some

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

base = peak()
for words in json.loads(sys.argv[1]):
    assert convert.main(words) == 0
print(peak() - base)
"""


def large_folder(folder: Path, name: str, **sizes: int) -> int:
    """A model of about 1.5 GB, written tensor by tensor; returns the bytes of its largest tensor in either form."""
    config = {**config_of(name), **sizes}
    shapes = {key: shape for group in get_family(name).tensors(config) for key, shape in group.hf.items()}
    row = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)
    arrays = ((key, np.resize(row, shape)) for key, shape in shapes.items())
    specs = {key: spec_of(np.broadcast_to(row[:1], shape)) for key, shape in shapes.items()}
    with hugging_face_folder(folder, specs, 4 * 10**8) as put:
        for key, array in arrays:
            put(key, array)
    write_json(folder / "config.json", config)
    return max(spec.nbytes for spec in specs.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "qwen3_moe"])
def test_memory_is_bounded_by_the_largest_tensor(tmp_path: Path, name: str) -> None:
    sizes = {"vocab_size": 16000, "hidden_size": 2048, "num_hidden_layers": 6, "intermediate_size": 5504}
    if name == "qwen3_moe":
        sizes |= {"num_experts": 64, "moe_intermediate_size": 384, "num_hidden_layers": 2}
    large_folder(tmp_path / "hf", name, **sizes)
    total = sum(file.stat().st_size for file in (tmp_path / "hf").glob("*.safetensors"))
    assert total > 1.2e9
    words = [
        ["--input_path", "hf", "--output_path", "ms.ckpt"],
        ["--input_path", "hf", "--output_path", "16/ms.safetensors", "--dtype", "bf16"],
        ["--input_path", "ms.ckpt", "--output_path", "back", "--reversed", "True"],
        ["--input_path", "16", "--output_path", "wide", "--reversed", "True", "--dtype", "fp32"],
    ]
    argv = [sys.executable, "-c", MEASURE, json.dumps(words)]
    done = subprocess.run(
        argv,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    used = int(done.stdout.split()[-1])
    opened = SafetensorsFile(tmp_path / "16" / "ms.safetensors")
    opened.close()
    largest = 2 * max(spec.nbytes for spec in opened.table.values())  # of the source, which has 32 bits
    print(f"{name}: {total / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB, {used / 1e6:.0f} MB used")
    assert used <= 2 * largest + 200e6
    assert bits(read_weights(find_weights(tmp_path / "back"))) == bits(read_weights(find_weights(tmp_path / "hf")))
