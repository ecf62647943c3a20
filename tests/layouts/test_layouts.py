"""The DPO step of every family as MindSpore's passes divide it: parameters, gradients, what is sent, what is updated.

Compiled, not run; `compile_layouts.py` tells how.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from typing import Any, Callable

import mindspore
import pytest
from compile_layouts import LAYERS, LENGTH, PAIRS, VOCABULARY, layout_of
from demands import STATES, beside_parameters, demand, redistributions, reductions

from mindrlhf.parallel.gate import PROVEN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(mindspore.__version__ not in PROVEN, reason="the gate is not proven on this MindSpore"),
]

Processes = Callable[..., Future[Any]]
EMBEDDING = {"qwen2_tied": "model.tok_embeddings.embedding_weight", "qwen3_tied": "embedding.word_embeddings.weight"}
# data, model, stages, micro-batches: see compile_layouts. Each model in half of them, for the time it takes; each of
# MindFormers' two kinds of models in all.
ONE, OTHER = ("2,4,1,1", "2,2,2,4,opt"), ("4,2,1,1,opt,emb", "2,2,2,2")
CASES = {
    "llama": (*ONE, "1,8,1,1"),
    "qwen2": ("2,4,1,1", *OTHER),
    "qwen2_tied": ONE,
    "baichuan2_7b": ONE,
    "baichuan2_13b": ("2,4,1,1", "1,8,1,1", *OTHER),
    "glm4": (*ONE, "1,2,1,1,cp4,sp"),
    "qwen3": ("2,4,1,1,sp", "4,2,1,1,opt", "2,2,2,2,sp", "2,2,2,4,opt", "2,2,1,1,cp2,sp,opt", "2,1,1,1,cp2"),
    "qwen3_tied": (*OTHER, "1,2,2,2,cp2,sp,opt"),
    "qwen3_moe": ("2,4,1,1,ep4", "4,2,1,1,ep2,opt,aux", "2,2,2,4,ep2,opt", "2,2,1,1,cp2,ep2,opt"),
}


# The load-balance loss needs on every worker which tokens are real, (R,S).
MASKS = {"qwen3_moe 4,2,1,1,ep2,opt,aux stage 0": 1}


@pytest.fixture(scope="module")
def started(
    request: pytest.FixtureRequest, processes: Processes, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Future[Any]]:
    """Model -> layout -> stages, each from a process of its own; those that this session asks for, in its order."""
    folder = tmp_path_factory.mktemp("layouts")
    chosen = [item.callspec.params.get("compiled") for item in request.session.items if hasattr(item, "callspec")]
    names = [name for name in dict.fromkeys(chosen) if name in CASES]
    return {name: processes("compile_layouts.py", name, folder / f"{name}.json", *CASES[name]) for name in names}


@pytest.fixture(scope="module", params=sorted(CASES))
def compiled(request: pytest.FixtureRequest, started: dict[str, Future[Any]]) -> dict[str, Any]:
    """A model, and its layout -> stages."""
    found = {"name": request.param, "layouts": started[request.param].result()}
    failed = {word: stages for word, stages in found["layouts"].items() if isinstance(stages, str)}
    assert not failed
    return found


def each(compiled: dict[str, Any]) -> Any:
    """(what a stage is called, layout, stage)."""
    for word, stages in compiled["layouts"].items():
        for stage in stages:
            yield f"{compiled['name']} {word} stage {stage['stage']}", layout_of(word), stage


def is_tied(compiled: dict[str, Any]) -> bool:
    return compiled["name"] in EMBEDDING


def weights(stage: dict[str, Any]) -> list[str]:
    return [name for name in stage["layouts"] if not name.startswith(STATES)]


def test_every_parameter_is_divided_as_its_kind_demands(compiled: dict[str, Any]) -> None:
    for where, layout, stage in each(compiled):
        for name in stage["layouts"]:
            weight = name.split(".", 1)[1] if name.startswith(STATES) else name
            shape = stage["full"][weight]
            wanted = demand(weight, shape, layout, stage["rank"])
            found = stage["layouts"][name]
            # What a stage's parts add up in is shared with nobody.
            assert stage["local"][name] == wanted.local(shape, not name.startswith(STATES[2])), (where, name)
            # Worker k of a stage holds part k modulo the parts: the same as the product that the weight goes into.
            for axis, over in enumerate(found["axes"]):
                parts = 1
                for place in sorted(over):
                    parts *= found["grid"][-1 - place]
                if parts > 1:
                    assert (axis, parts, over) == (wanted.axis, wanted.parts, [0]), (where, name)


def test_strategies_have_the_names_of_the_checkpoint(compiled: dict[str, Any]) -> None:
    for word, stages in compiled["layouts"].items():
        named = [set(weights(stage)) for stage in stages]
        assert set.union(*named) == set(stages[0]["full"]), word
        assert sum(map(len, named)) == len(stages[0]["full"]), f"{word}: a parameter of two stages"
        for stage, names in zip(stages, named):
            prefixes = STATES if len(stages) > 1 else STATES[:2]
            states = {name for name in stage["layouts"] if name.startswith(STATES)}
            assert states == {prefix + name for prefix in prefixes for name in names}, word


def test_one_gradient_reduction_for_each_parameter(compiled: dict[str, Any]) -> None:
    for where, layout, stage in each(compiled):
        wanted = reductions(weights(stage), stage["full"], layout, stage["rank"])
        found = stage["reductions"]
        if is_tied(compiled) and stage["stage"] and layout.optimizer_shard:
            # Of the head's gradient, which then goes to the first stage; what is sent there are the worker's rows.
            found = [one for one in found if one[0] != EMBEDDING[compiled["name"]]]
            assert len(found) == len(stage["reductions"]) - 1, where
        assert {name: [kind, ranks] for name, kind, ranks in found} == wanted, where
        assert len(found) == len(wanted), f"{where}: a gradient is reduced twice"


def test_the_norm_counts_each_element_once(compiled: dict[str, Any]) -> None:
    for where, layout, stage in each(compiled):
        rules = [demand(name, stage["full"][name], layout, stage["rank"]) for name in weights(stage)]
        wanted = Counter(rule.copies for rule in rules if rule.copies > 1)
        assert Counter(stage["norm_divided_by"]) == wanted, where
        workers = layout.world // layout.pipeline_stage
        first = stage["rank"] // workers * workers
        groups = [list(range(first, first + workers))]
        if layout.pipeline_stage > 1:
            groups.append(list(range(stage["rank"] % workers, layout.world, workers)))
        assert sorted(stage["norm_joined_over"]) == sorted(groups), where


def test_a_stage_updates_its_parameters_and_no_others(compiled: dict[str, Any]) -> None:
    """But for a head that is the embedding: the last stage, which is sent it in every step, keeps an unused one too."""
    for where, _, stage in each(compiled):
        names = weights(stage)
        if is_tied(compiled) and stage["stage"]:
            names.append(EMBEDDING[compiled["name"]])
        wanted = [prefix + name for name in names for prefix in ("", *STATES[:2])]
        assert sorted(stage["assigned"]) == sorted(wanted), where


def test_a_tied_head_is_sent_between_the_stages(compiled: dict[str, Any]) -> None:
    """The weight to the last stage and its gradient back, whole or the worker's part of it; else nothing but states."""
    for where, layout, stage in each(compiled):
        if layout.pipeline_stage > 1:
            sent = [one for one in stage["collectives"] if one["kind"] in ("Send", "Receive")]
            heads = [one["kind"] for one in sent if len(one["received"]) == 2]
            assert sorted(heads) == (["Receive", "Send"] if is_tied(compiled) else []), where
            assert len(sent) - len(heads) == 2 * layout.micro_batch_num, where


def test_no_logits_are_sent(compiled: dict[str, Any]) -> None:
    """Of what is no parameter and no gradient of one, nothing is as large as a worker's part of the logits."""
    for where, layout, stage in each(compiled):
        parts = layout.model_parallel if layout.vocabulary_parts(VOCABULARY) > 1 else 1
        logits = 2 * PAIRS // layout.data_parallel * LENGTH // layout.context_parallel * VOCABULARY // parts
        rules = {name: demand(name, stage["full"][name], layout, stage["rank"]) for name in weights(stage)}
        shapes = [rule.local(stage["full"][name], False) for name, rule in rules.items()]
        sent = beside_parameters(stage["collectives"], shapes)
        assert sent
        largest = max(sent, key=lambda one: one["elements"])
        assert largest["elements"] < logits, (where, largest)


def test_no_cell_brings_its_own_backward_pass(compiled: dict[str, Any]) -> None:
    """The parallel passes put no reduction of gradients into one."""
    for where, _, stage in each(compiled):
        assert not stage["own_backward"], where


def test_redistributions_are_those_that_are_wanted(compiled: dict[str, Any]) -> None:
    """What the passes insert between operators: one more is an operator without a strategy, or with a wrong one."""
    for where, layout, stage in each(compiled):
        layers = LAYERS // layout.pipeline_stage
        outputs, sequences, tokens = redistributions(layout, stage["stage"], layers, compiled["name"] == "qwen3_moe")
        found = [one for one in stage["collectives"] if one["cause"] == "redistribution"]
        forward = [one for one in found if one["role"] == "forward"]
        small = [one for one in forward if len(one["received"]) == 2]
        few = outputs + tokens + MASKS.get(where, 0)
        assert [one["kind"] for one in forward] == ["AllGather"] * (few + sequences), where
        assert len(small) == few, where
        backward = [one["kind"] for one in found if one["role"] == "gradient"]
        assert backward == ["ReduceScatter"] * (sequences + tokens // 2), where
