"""The planner's figures against those of MindSpore's own passes, for small models of every backbone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mindrlhf.config.load import load_config
from mindrlhf.data.rows import row_length
from mindrlhf.parallel.layout import Layout
from mindrlhf.parallel.memory import Work, estimate
from mindrlhf.parallel.traffic import step_time
from mindrlhf.trainers.architecture import find_architecture

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
SMALL = ["model.config.num_hidden_layers=2", "data.seq_len=129", "model.dtype=bfloat16"]
# What is sent beside: sums over pairs, the square of the gradients' norm.
BESIDE = 1024
# A name of tiny/, devices, overrides, and kinds of which the graph does not tell all sizes: GPTModel's gathered
# embedding, the exchange of tokens.
CASES = [
    ("qwen2", 8, "data_parallel=4 model_parallel=2 optimizer_shard=true vocab_emb_dp=false", ()),
    ("qwen2", 4, "data_parallel=2 model_parallel=2 sequence_parallel=true", ()),
    ("baichuan2_13b", 4, "data_parallel=4 optimizer_shard=true", ()),
    ("glm4", 4, "data_parallel=2 model_parallel=2 optimizer_shard=true", ("AllGather",)),
    (
        "qwen2",
        8,
        "data_parallel=4 model_parallel=2 optimizer_shard=true vocab_emb_dp=false rlhf.reference=online",
        (),
    ),
    ("qwen3", 4, "context_parallel=4 rlhf.reference=online", ()),
    (
        "qwen3",
        8,
        "data_parallel=2 context_parallel=2 model_parallel=2 sequence_parallel=true optimizer_shard=true",
        ("AllGather",),
    ),
    ("qwen3_moe", 8, "data_parallel=8 optimizer_shard=true expert_parallel=4", ("AllGather", "AlltoAll", "AlltoAllV")),
]


@pytest.mark.parametrize(("name", "world", "layout", "untold"), CASES)
def test_slices_and_traffic_are_those_of_the_compiled_graph(
    tmp_path: Path, name: str, world: int, layout: str, untold: tuple[str, ...]
) -> None:
    path = ROOT / f"model_configs/tiny/{name}.yaml"
    words = [*SMALL, *(word if "." in word else f"parallel.{word}" for word in layout.split())]
    dry_run = ["--only_save_strategy", "True", "--dry_run_world_size", str(world), f"output_dir={tmp_path / 'out'}"]
    argv = [sys.executable, str(ROOT / "run_dpo.py"), "--config", str(path), *dry_run, *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "out/dry_run.json").read_text(encoding="utf-8"))
    stages, reference = told["stages"], told.get("reference", {"collectives": []})

    config = load_config(path, words)
    family, hf_config = find_architecture(config)
    shape, traits = family.shape(hf_config), family.traits(hf_config)
    chosen, work = Layout.of(config.parallel, world), Work.of(config, row_length(config.data.seq_len or 0))
    step = step_time(shape, chosen, work, traits)
    assert len(stages) == chosen.pipeline_stage
    for found, memory, time in zip(stages, estimate(shape, chosen, work, traits), step.stages):
        assert found["local"] == memory.parameters
        assert (found["weights"], found["gradients"]) == (memory.weights, memory.gradients)
        assert found["states"] - memory.optimizer in range(16)  # the count of updates
        expected: Counter[tuple[str, int]] = Counter()
        for item in time.collectives:
            expected[item.kind, item.group] += item.payload
        sent: Counter[tuple[str, int]] = Counter()
        for item in (*found["collectives"], *reference["collectives"]):
            sent[item["kind"], item["group"]] += item["bytes"]
        for key in expected | sent:
            if key[0] not in untold:
                assert 0 <= sent[key] - expected[key] < BESIDE, key
