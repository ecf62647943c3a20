"""Memory of a transform: bounded by the largest tensor, all processes together, however large the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindrlhf.checkpoint.merge import transform
from mindrlhf.checkpoint.safetensors_file import SafetensorsWriter
from mindrlhf.checkpoint.store import network_file
from mindrlhf.checkpoint.tensor_file import Spec
from mindrlhf.commands.conversion import in_ms
from mindrlhf.models import get_family
from mindrlhf.parallel.strategy import TensorLayout, write_stages
from mindrlhf.runtime.files import write_json

ROOT = Path(__file__).resolve().parents[3]
MEASURE = """
import json, sys, threading
from pathlib import Path
import mindspore, tqdm
from mindrlhf.commands import convert, conversion, transform
from mindrlhf.checkpoint import hf_folder, merge
from mindrlhf.models import BuildOptions, family_of
from mindrlhf.trainers import policy

config = json.loads(Path("out/checkpoint_network/config.json").read_text())
family_of(config, "out").from_hf_config(config, BuildOptions(seq_length=1))

def family(pid):
    children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [pid] + [each for child in children.split() for each in family(child)]

def held():
    total = 0
    for pid in family("self"):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total

base, done, peak = held(), threading.Event(), 0

def watch():
    global peak
    while not done.wait(0.02):
        try:
            peak = max(peak, held())
        except OSError:
            pass

thread = threading.Thread(target=watch)
thread.start()
for words in json.loads(sys.argv[1]):
    assert transform.main(words) == 0
done.set()
thread.join()
print(peak - base)
"""


@pytest.mark.slow
def test_memory_is_bounded_by_the_largest_tensor(tmp_path: Path) -> None:
    family = get_family("qwen2")
    config = {**family.tiny_config(vocab_size=16000, hidden_size=2048, layers=3), "intermediate_size": 2048}
    specs = {
        name: Spec("float32", tuple(shape))
        for group in in_ms(list(family.tensors(config)))
        for name, shape in group.hf.items()
    }
    total, largest = sum(spec.nbytes for spec in specs.values()), max(spec.nbytes for spec in specs.values())
    assert total > 5e8
    row = np.random.default_rng(0).normal(size=1_000_003).astype(np.float32)
    writer = SafetensorsWriter(tmp_path / "one.safetensors", specs)
    for name, spec in specs.items():
        writer.put(name, np.resize(row, spec.shape))
    writer.close()
    for folder, (dp, mp) in {"before": (1, 4), "after": (2, 2)}.items():
        layouts = {}
        for name, spec in specs.items():
            axis = int("wo." in name or "w2." in name) if len(spec.shape) == 2 else None
            layouts[name] = TensorLayout((dp, mp), tuple((0,) if k == axis else () for k in range(len(spec.shape))))
        write_stages(tmp_path / folder, [layouts])
    transform(tmp_path / "one.safetensors", tmp_path / "out", dst_strategy=tmp_path / "before")
    write_json(network_file(tmp_path / "out", 0).parents[1] / "config.json", config)
    source = ["--src_checkpoint=out", "--src_strategy=before", "--processes=2"]
    words = [
        [*source, "--dst_checkpoint=merged", "--format=ckpt"],
        [*source, "--dst_checkpoint=resharded", "--dst_strategy=after"],
        [*source, "--dst_checkpoint=hf", "--format=hf"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(words)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    used = int(done.stdout.split()[-1])
    print(f"{total / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB, {used / 1e6:.0f} MB used")
    assert used <= 2 * largest + 200e6
