"""--only_save_strategy on a machine without NPUs, as users type it: files, figures, and nothing else left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pipeline_shell import ROOT, Shell

from mindrlhf.parallel.slices import box_of, extent
from mindrlhf.parallel.strategy import read_strategies, strategy_path

pytestmark = pytest.mark.slow
HIDDEN, VOCABULARY, LAYERS = 128, 2048, 4
HEADS = ("model.config.num_attention_heads=8", "model.config.num_key_value_heads=4")


def compile_for(folder: Path, world: int, *words: str) -> str:
    config = str(ROOT / "model_configs" / "tiny" / "qwen2.yaml")
    given = ("run_dpo.py", "--config", config, "--only_save_strategy", "True", "--dry_run_world_size", str(world))
    return Shell(folder).must(*given, *HEADS, "data.seq_len=65", "output_dir=out", *words).out


def test_split_tensors(tmp_path: Path) -> None:
    said = compile_for(tmp_path, 8, "parallel.model_parallel=4", "rlhf.reference=online")
    assert "stage of ranks 0-7" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    folder = tmp_path / "out" / "strategy"
    assert len({strategy_path(folder, rank).read_bytes() for rank in range(8)}) == 1
    layouts = read_strategies(folder).stage_of(0)
    expected = {
        "model.layers.0.attention.wq.weight": ((HIDDEN, HIDDEN), (HIDDEN // 4, HIDDEN)),
        "model.layers.0.attention.wo.weight": ((HIDDEN, HIDDEN), (HIDDEN, HIDDEN // 4)),
        "model.layers.3.attention_norm.weight": ((HIDDEN,), (HIDDEN,)),
        "model.tok_embeddings.embedding_weight": ((VOCABULARY, HIDDEN), (VOCABULARY, HIDDEN)),
        "adam_m.model.layers.0.attention.wq.weight": ((HIDDEN, HIDDEN), (HIDDEN // 4, HIDDEN)),
    }
    for name, (full, local) in expected.items():
        assert extent(box_of(layouts[name], full, 5)) == local, name
    (stage,) = json.loads((tmp_path / "out" / "dry_run.json").read_text())["stages"]
    assert stage["weights"] == 4 * stage["local"] == stage["gradients"]
    assert stage["states"] >= 2 * stage["weights"]
    assert sum(row["count"] for row in stage["collectives"]) > 20
    assert not any(name.startswith("reference.") for name in layouts)
    assert "online reference, compiled in" in said
    check_reference(json.loads((tmp_path / "out" / "dry_run.json").read_text())["reference"], stage)


def check_reference(found: dict[str, Any], stage: dict[str, Any]) -> None:
    """At (dp, mp) = (2, 4): 8 rows of 64 tokens a device, 16 of all; two sums over mp in every layer, half as many as
    forward and backward have; and what all get in the end is the rows' sums, of two answers each, not their logits."""
    rows, tokens, half = 8, 64, 2
    assert (found["full"], found["local"]) == (stage["full"], stage["local"])
    norms = (2 * LAYERS + 1) * HIDDEN  # which are float32 beside matrices of 16 bits
    assert found["weights"] == half * found["local"] + half * norms
    sums = {"kind": "AllReduce", "group": 4, "count": 2 * LAYERS, "bytes": 2 * LAYERS * rows * tokens * HIDDEN * half}
    assert sums in found["collectives"]
    assert {**sums, "count": 2 * sums["count"], "bytes": 2 * sums["bytes"]} in stage["collectives"]
    (gathered,) = [row for row in found["collectives"] if row != sums]
    assert (gathered["kind"], gathered["group"]) == ("AllGather", 2)
    assert gathered["bytes"] <= gathered["count"] * 2 * rows * 2 * 4


def test_some_ranks_of_whole_models(tmp_path: Path) -> None:
    said = compile_for(tmp_path, 16, "--dry_run_ranks", "0,14-15", "train.global_batch_pairs=16")
    folder = tmp_path / "out" / "strategy"
    assert sorted(path.name for path in folder.iterdir()) == [f"ckpt_strategy_rank_{rank}.ckpt" for rank in (0, 14, 15)]
    assert "AllReduce      over   16" in said


def test_what_a_pipeline_cuts_is_joined_again(tmp_path: Path) -> None:
    """MindSpore's strategies of (dp, mp, pp) = (2, 2, 2), one for each stage, and a whole model: there and back."""
    shell = Shell(tmp_path)
    shell.must("tools/make_tiny_model.py", "--family", "qwen2", "--output_path", "model", "--hidden_size", 128)
    shell.must("tools/convert_weight.py", "--input_path", "model", "--output_path", "whole")
    config = str(ROOT / "model_configs" / "dpo" / "default.yaml")
    layout = ["parallel.model_parallel=2", "parallel.pipeline_stage=2", "parallel.micro_batch_num=2"]
    given = ["--load_checkpoint", "model", "--only_save_strategy", "True", "--dry_run_world_size", 8]
    more = [*layout, "parallel.optimizer_shard=true", "data.seq_len=65", "output_dir=out"]
    shell.must("run_dpo.py", "--config", config, *given, *more)
    transform = "tools/transform_checkpoint.py"
    shell.must(transform, "--src_checkpoint=whole", "--dst_strategy=out/strategy", "--dst_checkpoint=cut")
    first, last = (
        (tmp_path / "cut" / "checkpoint_network" / f"rank_{rank}" / "manifest.json").read_text() for rank in (0, 7)
    )
    assert "tok_embeddings" in first
    assert "tok_embeddings" not in last
    shell.must(
        transform, "--src_checkpoint=cut", "--src_strategy=cut/strategy", "--dst_checkpoint=back", "--format", "hf"
    )
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (
        tmp_path / "model" / "model.safetensors"
    ).read_bytes()
