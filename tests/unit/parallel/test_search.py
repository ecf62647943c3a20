"""All layouts of so many devices: which fit, in which order, and what is said of the others."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest

from mindrlhf.parallel.layout import Layout, ModelShape
from mindrlhf.parallel.memory import Work
from mindrlhf.parallel.parameters import PLAIN, Traits
from mindrlhf.parallel.search import Found, check, divisors, layouts, search
from mindrlhf.parallel.traffic import ATLAS_A2
from mindrlhf.runtime.errors import UserError

GB = 2**30
LLAMA_70B = ModelShape(
    layers=80, hidden=8192, heads=64, kv_heads=8, head_dim=128, intermediate=28672, vocab=32000
)  # fmt: skip
QWEN2_7B = ModelShape(layers=28, hidden=3584, heads=28, kv_heads=4, head_dim=128, intermediate=18944, vocab=152064)
ROUTED = ModelShape(
    layers=48, hidden=2048, heads=32, kv_heads=4, head_dim=128, intermediate=768, vocab=151936, experts=128,
    experts_per_token=8,
)  # fmt: skip
WORK = Work(pairs=8, seq_length=4096, scored=4096)
FUSED = Traits(fused=True)


def found(shape: ModelShape, world: int, gigabytes: float, work: Work = WORK, traits: Traits = PLAIN) -> Found:
    return search(shape, world, work, traits, ATLAS_A2, gigabytes * GB)


def test_every_layout_is_listed_once_and_has_all_devices() -> None:
    for shape, traits in ((QWEN2_7B, PLAIN), (ROUTED, FUSED)):
        listed = [astuple(layout) for layout in layouts(shape, 16, replace(WORK, pairs=16), traits)]
        assert len(listed) == len(set(listed))
        assert {layout.world for layout in layouts(shape, 16, WORK, traits)} == {16}


def test_nothing_that_could_be_is_missing() -> None:
    """Against every combination of numbers, less those in which a choice has no effect."""
    shape, world = QWEN2_7B, 8
    expected = set()
    for mp in divisors(world):
        for pp in divisors(world // mp):
            for micro in (1, 2, 4, 8):
                for shard in (False, True):
                    for whole in (False, True):
                        for divided in (False, True):
                            layout = Layout(world // mp // pp, mp, pp, micro, shard, whole, 1, divided)
                            without_effect = mp == 1 and not whole
                            if layout.data_parallel == 1 and shard:
                                # One worker of each part: but a whole vocabulary is divided, where there is one.
                                without_effect |= mp == 1 or not whole
                            try:
                                check(shape, layout, WORK, PLAIN)
                            except UserError:
                                continue
                            if not without_effect:
                                expected.add(astuple(layout))
    fits = found(shape, world, 1e6).fitting
    assert {astuple(plan.layout) for plan in fits} == expected
    assert len(fits) == 2 * len(expected)  # with recomputed layers and without


def test_rows_are_divided_where_the_model_is_built_on_gptmodel() -> None:
    assert {plan.layout.context_parallel for plan in found(QWEN2_7B, 16, 1e6).fitting} == {1}
    layouts = [plan.layout for plan in found(QWEN2_7B, 16, 1e6, traits=FUSED).fitting]
    assert {layout.context_parallel for layout in layouts} == {1, 2, 4, 8, 16}
    assert all(layout.world == 16 for layout in layouts)
    for layout in layouts:
        if layout.context_parallel > 1:
            assert layout.sequence_parallel == (layout.model_parallel > 1)
    with pytest.raises(UserError, match=r"context_parallel is 2, which families on MindFormers' older classes"):
        check(QWEN2_7B, Layout(8, context_parallel=2), WORK, PLAIN)


def test_the_quickest_comes_first_and_the_smallest_of_what_is_too_large() -> None:
    plans = found(QWEN2_7B, 8, 40)
    seconds = [plan.step.seconds for plan in plans.fitting]
    needs = [plan.worst.total for plan in plans.too_large]
    assert seconds == sorted(seconds)
    assert needs == sorted(needs)
    assert len(seconds) > 5
    assert max(plan.worst.total for plan in plans.fitting) <= 40 * GB < needs[0]


def test_more_memory_never_loses_a_layout() -> None:
    small, large = found(QWEN2_7B, 8, 30), found(QWEN2_7B, 8, 60)
    assert {(plan.layout, plan.recompute) for plan in small.fitting} < {
        (plan.layout, plan.recompute) for plan in large.fitting
    }
    assert large.fitting[0].step.seconds <= small.fitting[0].step.seconds


def test_a_70b_fits_no_8_devices_of_64_gb_and_only_divided_64_of_them() -> None:
    """Weights, gradients and states are 16 bytes for each of 69 billion: 128 GiB on each of 8."""
    assert found(LLAMA_70B, 8, 58).fitting == []
    plans = found(LLAMA_70B, 64, 58, replace(WORK, pairs=64)).fitting
    assert plans
    for plan in plans:
        assert plan.layout.optimizer_shard or plan.layout.model_parallel * plan.layout.pipeline_stage >= 32
    assert all(plan.recompute for plan in plans if plan.layout.model_parallel * plan.layout.pipeline_stage == 1)


def test_refusals_are_those_of_the_layout_and_counted() -> None:
    refused = found(QWEN2_7B, 8, 58).refused
    assert refused["parallel.model_parallel is 8, which must divide the model's 28 heads and 4 key-value heads"] == 1
    assert refused["parallel.pipeline_stage is 8, which must divide the model's 28 layers"] == 1
    few = found(QWEN2_7B, 8, 58, replace(WORK, pairs=6))
    assert any("train.global_batch_pairs is 6" in reason for reason in few.refused)


def test_a_pipeline_with_too_few_pairs_is_refused() -> None:
    refused = found(QWEN2_7B, 4, 58, replace(WORK, pairs=2)).refused
    assert any(reason.startswith("train.global_batch_pairs is 2, which must be a multiple") for reason in refused)


def test_a_step_of_several_passes_leaves_data_parallel_alone() -> None:
    plans = found(QWEN2_7B, 8, 1e6, replace(WORK, pairs=16, micro_pairs=1))
    assert {plan.layout.semi_auto for plan in plans.fitting if plan.layout.data_parallel < 16} == {False}
    assert any("several passes" in reason for reason in plans.refused)


def test_experts_are_divided_and_states_between_them_always() -> None:
    plans = found(ROUTED, 16, 1e6, replace(WORK, pairs=16, seq_length=2048), FUSED).fitting
    assert {plan.layout.expert_parallel for plan in plans} == {1, 2, 4, 8, 16}
    for plan in plans:
        layout = plan.layout
        assert layout.sequence_parallel == (layout.model_parallel > 1)
        assert layout.expert_parallel == 1 or layout.semi_auto


@pytest.mark.parametrize(
    ("beside", "word"),
    [
        ({"reference_bytes": 2}, "rlhf.reference=online"),
        ({"evaluates": True}, "--eval_dataset"),
        ({"balances": True}, "model.aux_loss_coef"),
    ],
)
def test_a_run_that_does_more_than_train_is_planned_no_pipeline(beside: dict[str, int], word: str) -> None:
    work = replace(WORK, **beside)
    plans = found(QWEN2_7B, 8, 1e6, work)
    assert {plan.layout.pipeline_stage for plan in plans.fitting} == {1}
    assert any(reason.endswith(f"trained alone; leave {word} out") for reason in plans.refused)
    assert {plan.layout.pipeline_stage for plan in found(QWEN2_7B, 8, 1e6).fitting} > {1}


@pytest.mark.parametrize(
    ("shape", "layout"),
    [(QWEN2_7B, Layout(8, optimizer_shard=True, expert_parallel=2)), (ROUTED, Layout(8, 1, 1, 1, False, True, 2))],
)
def test_experts_need_some_and_parallel_passes(shape: ModelShape, layout: Layout) -> None:
    with pytest.raises(UserError, match=r"parallel\.expert_parallel is 2"):
        check(shape, layout, WORK, PLAIN)
