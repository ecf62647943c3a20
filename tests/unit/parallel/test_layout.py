"""The layout record: what it divides, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from mindrlhf.config.schema import Parallel
from mindrlhf.data.rows import round_up
from mindrlhf.parallel.layout import ONE_WORKER, SCORED_UNIT, Layout, ModelShape
from mindrlhf.runtime.errors import UserError

QWEN2_7B = ModelShape(layers=28, hidden=3584, heads=28, kv_heads=4, head_dim=128, intermediate=18944, vocab=152064)
QWEN3_30B = ModelShape(
    layers=48, hidden=2048, heads=32, kv_heads=4, head_dim=128, intermediate=768, vocab=151936, experts=128,
    experts_per_token=8,
)  # fmt: skip


def test_auto_is_what_the_others_leave() -> None:
    layout = Layout.of(Parallel(model_parallel=2, pipeline_stage=2, micro_batch_num=4), 16)
    assert (layout.data_parallel, layout.world) == (4, 16)
    assert Layout.of(Parallel(), 1) == ONE_WORKER
    long = Layout.of(Parallel(context_parallel=4, pipeline_stage=2, micro_batch_num=2), 16)
    assert (long.data_parallel, long.per_stage, long.world) == (2, 8, 16)


@pytest.mark.parametrize(
    ("given", "world", "numbers"),
    [
        (Parallel(data_parallel=3, model_parallel=2), 8, "data_parallel 3 x model_parallel 2 x pipeline_stage 1"),
        (Parallel(data_parallel=1, model_parallel=16), 8, "model_parallel 16"),
        (Parallel(data_parallel=2, context_parallel=2, model_parallel=4), 8, "context_parallel 2 x model_parallel 4"),
    ],
)
def test_the_product_must_be_the_number_of_workers(given: Parallel, world: int, numbers: str) -> None:
    with pytest.raises(UserError, match=rf"{numbers}.* does not make the {world} workers"):
        Layout.of(given, world)


@pytest.mark.parametrize("parts", [3, 16])
def test_what_is_left_must_be_whole(parts: int) -> None:
    with pytest.raises(UserError, match=rf"model_parallel {parts} x pipeline_stage 1 does not divide the 8 workers"):
        Layout.of(Parallel(model_parallel=parts), 8)


@pytest.mark.parametrize(
    ("settings", "split"),
    [
        ({"data_parallel": 8}, False),
        ({"model_parallel": 2}, True),
        ({"pipeline_stage": 2}, True),
        ({"optimizer_shard": True}, True),
        ({"context_parallel": 2}, True),
    ],
)
def test_who_splits_tensors(settings: dict[str, Any], split: bool) -> None:
    layout = Layout(**settings)
    assert layout.semi_auto is split
    assert layout.of_model == (layout if split else ONE_WORKER)


def test_what_cells_are_told() -> None:
    layout = Layout(data_parallel=2, model_parallel=4, vocab_emb_dp=False)
    assert layout.rows(3) == (2, 1, 1)
    assert (layout.vocabulary_parts(512), layout.vocabulary_parts(510)) == (4, 1)
    assert Layout(model_parallel=4).vocabulary_parts(512) == 1


LONG = Layout(2, 2, context_parallel=4, sequence_parallel=True)


@pytest.mark.parametrize(
    "layout", [Layout(8), Layout(4, 2), Layout(2, 4), Layout(2, 2, 2, 2), Layout(1, 4, 2, 2), LONG]
)
def test_layouts_that_fit_a_model(layout: Layout) -> None:
    layout.check_model(QWEN2_7B, 4096)


@pytest.mark.parametrize(
    ("layout", "sentence"),
    [
        (
            Layout(model_parallel=8),
            "parallel.model_parallel is 8, which must divide the model's 28 heads and 4 key-value heads",
        ),
        (
            Layout(pipeline_stage=3),
            "parallel.pipeline_stage is 3, which must divide the model's 28 layers",
        ),
        (
            Layout(sequence_parallel=True),
            "parallel.sequence_parallel divides rows of 4096 tokens over model_parallel 1, which must be more than 1 "
            "and divide them",
        ),
        (
            Layout(context_parallel=3),
            "parallel.context_parallel is 3, which must divide rows of 4096 tokens and the 16 positions in whose "
            "multiples tokens are scored",
        ),
        (
            Layout(model_parallel=2, context_parallel=2),
            "parallel.context_parallel 2 with model_parallel 2 needs parallel.sequence_parallel=true: norms divide the "
            "positions over both",
        ),
    ],
)
def test_what_cannot_be_divided(layout: Layout, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        layout.check_model(QWEN2_7B, 4096)
    assert str(refused.value) == sentence


def test_experts() -> None:
    Layout(2, 4, expert_parallel=8).check_model(QWEN3_30B, 4096)
    Layout(2, 2, context_parallel=2, expert_parallel=4).check_model(QWEN3_30B, 4096)
    with pytest.raises(UserError, match=r"expert_parallel is 8, which must divide .* the 4 workers of data_parallel 2"):
        Layout(2, 2, context_parallel=2, expert_parallel=8).check_model(QWEN3_30B, 4096)
    with pytest.raises(UserError, match=r"over context_parallel 16 x model_parallel 2, which must divide their 2064"):
        Layout(1, 2, context_parallel=16).check_model(QWEN3_30B, 16 * 129)
    with pytest.raises(UserError, match="expert_parallel is 3, which must divide the model's 128 experts and the 6"):
        Layout(data_parallel=6, expert_parallel=3).check_model(QWEN3_30B, 4096)


def test_a_scored_unit_is_that_of_the_rows() -> None:
    assert round_up(1) == SCORED_UNIT


def test_a_divided_vocabulary_must_divide() -> None:
    odd = ModelShape(layers=2, hidden=64, heads=4, kv_heads=4, head_dim=16, intermediate=128, vocab=511)
    Layout(model_parallel=2).check_model(odd, 64)
    with pytest.raises(UserError, match=r"must divide the vocabulary of 511 where parallel.vocab_emb_dp is false"):
        Layout(model_parallel=2, vocab_emb_dp=False).check_model(odd, 64)


@pytest.mark.parametrize(
    ("layout", "pairs", "sentence"),
    [
        (
            Layout(4),
            6,
            "train.global_batch_pairs is 6, which 4 workers do not share evenly; give a multiple of 4",
        ),
        (Layout(2, 1, 2, 4), 12, "is 12, which must be a multiple of data_parallel 2 x micro_batch_num 4"),
        (Layout(1, 1, 4, 2), 8, "parallel.micro_batch_num is 2; a pipeline of 4 stages needs at least 4"),
        (
            Layout(micro_batch_num=2),
            8,
            "parallel.micro_batch_num is 2, which feeds a pipeline, and pipeline_stage is 1",
        ),
    ],
)
def test_batches_that_cannot_be_divided(layout: Layout, pairs: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        layout.check_batch(pairs)
