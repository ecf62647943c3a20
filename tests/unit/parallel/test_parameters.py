"""Which part of each tensor a worker holds: against a sum over the families' own tensors, by other rules."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mindrlhf.config.load import load_config
from mindrlhf.models import ModelFamily, get_family
from mindrlhf.parallel.layout import Layout
from mindrlhf.parallel.parameters import stage_slices

MODEL_CONFIGS = Path(__file__).parents[3] / "model_configs"
OTHERS = {"dpo", "parallel", "tiny", "baichuan_config"}
REAL = sorted(
    f"{path.parent.name}/{path.stem}" for path in MODEL_CONFIGS.rglob("*.yaml") if path.parent.name not in OTHERS
)
LAYOUTS = [
    Layout(8),
    Layout(8, optimizer_shard=True),
    Layout(4, 2),
    Layout(4, 2, optimizer_shard=True),
    Layout(4, 2, optimizer_shard=True, vocab_emb_dp=False),
    Layout(2, 2, 2, 2),
    Layout(2, 2, 2, 2, optimizer_shard=True, vocab_emb_dp=False),
]
EXPERTS = [Layout(8, optimizer_shard=True, expert_parallel=4), Layout(4, 2, expert_parallel=8, sequence_parallel=True)]
CASES = [(name, layout) for name in REAL for layout in LAYOUTS] + [("qwen3_moe/30b_a3b", layout) for layout in EXPERTS]
ON_GPT_MODEL = {"glm4", "qwen3", "qwen3_moe"}


def model_of(name: str) -> tuple[ModelFamily, dict[str, Any]]:
    config = load_config(MODEL_CONFIGS / f"{name}.yaml").model
    return get_family(config.family), config.config


def held(name: str, layout: Layout) -> list[int]:
    """Elements of a worker of every stage, as the model of memory counts them."""
    family, hf_config = model_of(name)
    shape = family.shape(hf_config)
    totals = []
    for stage in range(layout.pipeline_stage):
        layer, beside = stage_slices(shape, layout, family.traits(hf_config), 2, stage)
        count = shape.layers // layout.pipeline_stage
        totals.append(count * sum(item.held for item in layer) + sum(item.held for item in beside))
    return totals


def published(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    family, hf_config = model_of(name)
    for group in family.tensors(hf_config):
        yield from group.hf.items()


def divided_by(tensor: str, dims: tuple[int, ...], layout: Layout, fused: bool) -> int:
    """Among how many of a stage's workers a published tensor is divided. All sizes of the real models divide."""
    ranks, mp = layout.data_parallel * layout.model_parallel, layout.model_parallel
    if ".experts." in tensor:
        parts = layout.expert_parallel
    elif "embed_tokens" in tensor or "lm_head" in tensor:
        parts = mp if fused or not layout.vocab_emb_dp else 1
    elif "norm" in tensor or tensor.endswith("mlp.gate.weight"):
        parts = 1
    else:
        parts = mp
    if not layout.optimizer_shard or (len(dims) == 1 and not fused):
        return parts
    return ranks


def stage_of(tensor: str, layers: int, stages: int) -> int:
    found = re.search(r"\.layers\.(\d+)\.", tensor)
    if found:
        return int(found[1]) * stages // layers
    return 0 if "embed_tokens" in tensor else stages - 1


@pytest.mark.parametrize(("name", "layout"), CASES, ids=str)
def test_a_worker_holds_what_a_sum_over_the_published_tensors_gives(name: str, layout: Layout) -> None:
    family, hf_config = model_of(name)
    shape = family.shape(hf_config)
    expected = [0] * layout.pipeline_stage
    for tensor, dims in published(name):
        parts = divided_by(tensor, dims, layout, family.name in ON_GPT_MODEL)
        assert math.prod(dims) % parts == 0, tensor
        expected[stage_of(tensor, shape.layers, layout.pipeline_stage)] += math.prod(dims) // parts
    assert held(name, layout) == expected


@pytest.mark.parametrize(("name", "layout"), CASES, ids=str)
def test_the_parts_of_all_workers_make_the_model_as_often_as_it_is_held(name: str, layout: Layout) -> None:
    family, hf_config = model_of(name)
    shape = family.shape(hf_config)
    ranks = layout.data_parallel * layout.model_parallel
    times: dict[int, int] = {}
    for stage in range(layout.pipeline_stage):
        layer, beside = stage_slices(shape, layout, family.traits(hf_config), 2, stage)
        for slices, count in ((layer, shape.layers // layout.pipeline_stage), (beside, 1)):
            for item in slices:
                assert item.parts * item.replicas == ranks
                copies = item.replicas // item.shards
                assert ranks * item.held == item.count * item.elements * copies
                times[copies] = times.get(copies, 0) + count * item.count * item.elements
    assert sum(times.values()) == sum(math.prod(dims) for _, dims in published(name))
    assert sum(copies * elements for copies, elements in times.items()) == ranks * sum(held(name, layout))


def test_rows_that_do_not_divide_are_held_whole() -> None:
    family = get_family("qwen2")
    tiny = {**family.tiny_config(2052, 128, 2), "num_key_value_heads": 4}
    shape, traits = family.shape(tiny), family.traits(tiny)
    _, (embedding, *_) = stage_slices(shape, Layout(8, optimizer_shard=True), traits, 2, 0)
    assert (embedding.name, embedding.shards, embedding.held) == ("embedding", 1, 2052 * 128)
    _, (embedding, *_) = stage_slices(shape, Layout(4, optimizer_shard=True), traits, 2, 0)
    assert (embedding.shards, embedding.held) == (4, 513 * 128)


def test_a_tied_head_is_held_once() -> None:
    family = get_family("qwen3")
    tied = {**family.tiny_config(2048, 128, 2), "tie_word_embeddings": True}
    traits = family.traits(tied)
    for stages in (1, 2):
        names = [
            item.name
            for stage in range(stages)
            for item in stage_slices(family.shape(tied), Layout(1, 1, stages, stages), traits, 2, stage)[1]
        ]
        assert names == ["embedding", "norms"]
