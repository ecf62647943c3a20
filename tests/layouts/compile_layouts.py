"""Compile the DPO step of one small model under layouts, and write down what MindSpore's passes made of it, as JSON.

    python compile_layouts.py qwen3 out.json 2,4,1,1 4,2,1,1,opt 2,2,2,2,opt,emb

A layout is dp,mp,pp,micro batches and words: opt (optimizer shard), emb (vocab_emb_dp), sp (sequence parallel), ep2
(expert parallel), cp2 (context parallel), aux (a router's load-balance loss), recompute. One process for all: the first
compilation is the slow one.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

VOCABULARY, WIDTH, LENGTH, LAYERS, HEADS = 4096, 256, 64, 2, 8
PAIRS = 8  # of a micro-batch
# Name of a case -> family, variant of its tiny config, whether the head is the embedding.
MODELS = {
    "llama": ("llama", None, False),
    "qwen2": ("qwen2", None, False),
    "qwen2_tied": ("qwen2", None, True),
    "baichuan2_7b": ("baichuan2", None, False),
    "baichuan2_13b": ("baichuan2", "13b", False),
    "glm4": ("glm4", None, False),
    "qwen3": ("qwen3", None, False),
    "qwen3_tied": ("qwen3", None, True),
    "qwen3_moe": ("qwen3_moe", None, False),
}
WORDS = {"opt": "optimizer_shard", "sp": "sequence_parallel"}

_MIRROR = re.compile(
    r"= (?P<kind>AllReduce|ReduceScatter)\(.*instance name: grad_.*group_rank_ids: \((?P<ranks>[\d, ]*)\).*"
    r'mirror_user_id: "(?P<name>[^"]+)"'
)
_ASSIGNED = re.compile(r"= (?:PrimFunc_)?Assign\(%para\d+_(?P<name>[\w.]+)")
_NORM = re.compile(r"RealDiv\(.*value=(?P<by>\d+)\).*PARALLEL_GLOBALNORM_DIV")
_JOINED = re.compile(r"PARALLEL_GLOBALNORM_(IN_STAGES|BETWEEN_STAGES).*group_rank_ids: \((?P<ranks>[\d, ]*)\)")


def layout_of(word: str) -> Any:
    """2,4,1,1,opt -> Layout."""
    from mindrlhf.parallel.layout import Layout

    numbers, words = word.split(",")[:4], word.split(",")[4:]
    data, model, stages, parts = map(int, numbers)
    experts, contexts = (next((int(word[2:]) for word in words if word.startswith(kind)), 1) for kind in ("ep", "cp"))
    flags = {field: word in words for word, field in WORDS.items()}
    return Layout(
        data,
        model,
        stages,
        parts,
        expert_parallel=experts,
        context_parallel=contexts,
        vocab_emb_dp="emb" in words,
        **flags,
    )


def hf_config(name: str, model_parallel: int) -> tuple[Any, dict[str, Any]]:
    """The family and its config.json; fewer key-value heads than heads where they divide."""
    from mindrlhf.models import get_family

    family, variant, tied = MODELS[name]
    found = get_family(family)
    config = found.tiny_config(VOCABULARY, WIDTH, LAYERS)
    config["num_attention_heads"] = HEADS
    if "num_key_value_heads" in config:
        config["num_key_value_heads"] = max(4, model_parallel)
    config["tie_word_embeddings"] = tied
    return found, found.tiny_variants[variant](config) if variant else config


def build(name: str, word: str) -> tuple[Any, Any, Sequence[Any]]:
    """(step, preference cell, inputs), within a simulated world."""
    import numpy as np
    from mindspore import Tensor

    from mindrlhf.cells.pipeline import MicroBatches, PipelineStep
    from mindrlhf.cells.train_step import TrainStep
    from mindrlhf.config.load import load_config
    from mindrlhf.config.schema import Optimizer
    from mindrlhf.data.rows import padded
    from mindrlhf.models import BuildOptions
    from mindrlhf.trainers.graph import by_part
    from mindrlhf.trainers.optimizer import build_optimizer
    from mindrlhf.trainers.registry import build_preference_cell, loss_settings

    layout = layout_of(word)
    family, config = hf_config(name, layout.model_parallel)
    options = BuildOptions(
        seq_length=LENGTH,
        compute_dtype="bfloat16",
        fused=True,
        recompute="recompute" in word.split(","),
        aux_loss_coef=0.01 if "aux" in word.split(",") else 0.0,
        layout=layout,
    )
    loss = loss_settings(load_config(None, ["rlhf.loss=sigmoid"]))
    cell = build_preference_cell(family, family.from_hf_config(config, options), loss, layout)
    optimizer = build_optimizer(cell, Optimizer(), np.full(3, 1e-4))
    rows = padded([None] * (PAIRS * layout.micro_batch_num), LENGTH, LENGTH, 1, 1)
    if layout.pipeline_stage > 1:
        rows = by_part(rows, layout.micro_batch_num)
        step: Any = PipelineStep(MicroBatches(cell, layout.micro_batch_num), optimizer, 1.0, layout)
    else:
        step = TrainStep(cell, optimizer, 1.0, 1, 1, layout.world)
    return step.set_train(), cell, (True, *map(Tensor, rows))


def forget_layouts() -> None:
    """Let MindFormers take another layout: it keeps the first of a process, and its groups."""
    from mindformers.parallel_core.training_graph import communication, device_matrix
    from mindformers.parallel_core.training_graph.tensor_parallel import utils

    for kept in (device_matrix.layout, device_matrix.layout_moe):
        kept._layout = kept._layout_type = kept._config = None
    names = communication.OP_GROUP_NAME, communication.CP_GROUP_NAME, communication.DP_GROUP_NAME, utils._TP_GROUP_NAME
    for groups in names:
        groups.clear()


def compile_stage(name: str, word: str, stage: int, folder: Path) -> dict[str, Any]:
    """What came of one stage, compiled as its last rank."""
    from mindrlhf.parallel import dry_run
    from mindrlhf.parallel.collectives import last_graph, read_collectives
    from mindrlhf.parallel.strategy import read_strategy

    layout = layout_of(word)
    rank = (stage + 1) * layout.per_stage - 1
    began = time.perf_counter()
    strategy = folder / "strategy.ckpt"
    with dry_run.simulate(layout, rank, strategy, folder):
        forget_layouts()
        step, cell, inputs = build(name, word)
        full = {weight.name: list(weight.shape) for weight in cell.get_parameters()}
        own_backward = [type(inner).__name__ for _, inner in step.cells_and_names() if hasattr(inner, "bprop")]
        step.compile(*inputs)
        local = {weight.name: list(weight.shape) for weight in step.get_parameters()}
        graph = last_graph(folder)
        collectives = read_collectives(graph, dry_run._made, layout.world)
    lines = graph.read_text(encoding="utf-8", errors="replace").split("\n")
    layouts = read_strategy(strategy)
    return {
        "stage": stage,
        "rank": rank,
        "seconds": round(time.perf_counter() - began, 1),
        "full": full,
        "local": {weight: local[weight] for weight in layouts if weight in local},
        "layouts": {
            weight: {
                "grid": found.dev_matrix,
                "axes": found.tensor_map,
                "shared": [found.opt_weight_shard_step, found.opt_weight_shard_size],
            }
            for weight, found in layouts.items()
        },
        "own_backward": own_backward,
        "collectives": [
            {
                "kind": one.kind,
                "role": one.role,
                "cause": one.cause,
                "ranks": one.ranks,
                "elements": one.elements,
                "where": one.where,
                "sent": one.sent,
                "received": one.received,
            }
            for one in collectives
        ],
        "reductions": reductions(graph),
        "assigned": [found["name"] for line in lines if (found := _ASSIGNED.search(line))],
        "norm_divided_by": [int(found["by"]) for line in lines if (found := _NORM.search(line))],
        "norm_joined_over": [_numbers(found["ranks"]) for line in lines if (found := _JOINED.search(line))],
    }


def reductions(graph: Path) -> list[list[Any]]:
    """(parameter, kind, ranks) of every sum of a gradient over workers."""
    lines = graph.read_text(encoding="utf-8", errors="replace").split("\n")
    found = [match for line in lines if (match := _MIRROR.search(line))]
    return [[match["name"], match["kind"], _numbers(match["ranks"])] for match in found]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number.strip()]


def failure(error: Exception) -> str:
    """Of what was just caught: its first line and where it came from; MindSpore's are hundreds of lines long."""
    site = re.findall(r"\S+\.cc:\d+ \w+", str(error))[:1] or traceback.format_exc().strip().split("\n")[-3:-1]
    return f"{type(error).__name__}: {[*str(error).strip().splitlines(), ''][0]} {site}"


def compile_all(name: str, words: Sequence[str]) -> Mapping[str, Any]:
    """Layout -> its stages, first and last, or the error."""
    found: dict[str, Any] = {}
    for word in words:
        try:
            last = layout_of(word).pipeline_stage - 1
            stages = []
            for stage in sorted({0, last}):
                with tempfile.TemporaryDirectory(prefix="layouts-") as folder:
                    stages.append(compile_stage(name, word, stage, Path(folder)))
            found[word] = stages
        except Exception as error:  # noqa: BLE001  (whatever it was, the other layouts are compiled)
            found[word] = failure(error)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        verdict = found[word] if isinstance(found[word], str) else [stage["seconds"] for stage in found[word]]
        print(f"{name:<14} {word:<24} {verdict}  {peak:.1f} GB", flush=True)
    return found


def main() -> None:
    """See the module."""
    from mindrlhf.runtime.logging import quiet

    quiet()
    name, out, *words = sys.argv[1:]
    Path(out).write_text(json.dumps(compile_all(name, words)), encoding="utf-8")


if __name__ == "__main__":
    main()
