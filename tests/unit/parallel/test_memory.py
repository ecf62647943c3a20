"""The model of memory: numbers derived by hand, and what must not grow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mindrlhf.cells import scoring
from mindrlhf.config.load import load_config
from mindrlhf.config.schema import Config
from mindrlhf.models import get_family
from mindrlhf.parallel import memory
from mindrlhf.parallel.layout import Layout, ModelShape
from mindrlhf.parallel.memory import StageMemory, Work, estimate, layer_activations
from mindrlhf.parallel.parameters import PLAIN, Traits
from mindrlhf.runtime.errors import UserError

GB = 2**30
SMALL = ModelShape(layers=4, hidden=100, heads=10, kv_heads=5, head_dim=10, intermediate=200, vocab=1000)
WORK = Work(pairs=8, seq_length=50, scored=20)
MODEL_CONFIGS = Path(__file__).parents[3] / "model_configs"
OTHERS = {"dpo", "parallel", "tiny", "baichuan_config"}
REAL = sorted(path for path in MODEL_CONFIGS.rglob("*.yaml") if path.parent.name not in OTHERS)
QWEN2_7B = ModelShape(layers=28, hidden=3584, heads=28, kv_heads=4, head_dim=128, intermediate=18944, vocab=152064)
LONG = Work(pairs=8, seq_length=4096, scored=4096)
PARTS = ("weights", "copies", "gradients", "optimizer", "activations")


def worst(shape: ModelShape, layout: Layout, work: Work, traits: Traits = PLAIN) -> StageMemory:
    return max(estimate(shape, layout, work, traits), key=lambda stage: stage.total)


def test_a_layer_by_hand() -> None:
    """t = 10, b = 2: norms 2 (4 + 2) 10 100 = 12,000; q k v 2 10 (100 + 2 50) = 4,000; attention 2 2 10 100 = 4,000;
    softmax 64 10 10 = 6,400; MLP 4 2 10 200 = 16,000."""
    assert layer_activations(SMALL, Layout(), PLAIN, 10, 2) == 12_000 + 4_000 + 4_000 + 6_400 + 16_000
    # All but the norms is divided; and they too, but for the two gathered outputs: 2 4 10 100 / 5 + 2 2 10 100.
    assert layer_activations(SMALL, Layout(1, 5), PLAIN, 10, 2) == 12_000 + 30_400 // 5
    by_sequence = Layout(1, 5, sequence_parallel=True)
    assert layer_activations(SMALL, by_sequence, PLAIN, 10, 2) == 1_600 + 4_000 + 30_400 // 5
    # Of 10 positions a device has 5; the keys and values of all 10 come to each: 2 2 5 50 bytes more.
    assert layer_activations(SMALL, Layout(context_parallel=2), PLAIN, 5, 2) == 42_400 // 2 + 1_000
    # Norms on queries and keys keep these in float32: 4 10 (100 + 50).
    assert layer_activations(SMALL, Layout(), Traits(qk_norm=True), 10, 2) == 42_400 + 6_000


def test_a_layer_of_experts_by_hand() -> None:
    """8 E = 64 and k b (4 H + 4 I) = 2 2 (400 + 800) = 4,800 for each of 10 tokens, instead of 16,000."""
    routed = replace(SMALL, experts=8, experts_per_token=2)
    assert layer_activations(routed, Layout(), PLAIN, 10, 2) == 26_400 + 10 * (64 + 4_800)


def test_weights_and_states_by_hand() -> None:
    """A layer: 2 100 (100 + 50) + 3 100 200 + 2 100 = 90,200; beside the four: 2 1000 100 + 100 = 200,100."""
    (whole,) = estimate(SMALL, Layout(), WORK)
    assert whole.parameters == 4 * 90_200 + 200_100 == 560_900
    assert (whole.weights, whole.gradients, whole.optimizer) == (4 * 560_900, 4 * 560_900, 8 * 560_900)
    # Matrices of the layers and the head in 16 bits.
    assert whole.copies == 2 * (4 * 90_000 + 100_000)
    assert (whole.stage, whole.layers, whole.reference) == (0, 4, 0)
    (frozen,) = estimate(SMALL, Layout(), replace(WORK, reference_bytes=2))
    assert frozen.reference == 2 * 560_900
    assert frozen.total - whole.total == frozen.reference


def test_accumulated_gradients_are_kept_beside_the_new_ones() -> None:
    (one,) = estimate(SMALL, Layout(2), WORK)
    (two,) = estimate(SMALL, Layout(2), replace(WORK, micro_pairs=2))
    assert two.gradients == 2 * one.gradients
    assert two.activations < one.activations


def test_a_pipeline_sums_gradients_before_they_are_divided() -> None:
    """Stages of 2 layers; 2 ranks share each part: 280,400 elements, of which the norms' 2 2 100 stay whole."""
    layout = Layout(2, 1, 2, 2, optimizer_shard=True)
    first, last = estimate(SMALL, layout, WORK)
    whole = 2 * 90_200 + 100_000
    divided = (whole - 400) // 2 + 400
    assert (first.parameters, first.gradients) == (divided, 4 * (divided + whole))
    assert last.parameters == divided + 100
    # The first stage has two micro-batches on their way, of 2 pairs, 4 rows.
    layers = 2 * layer_activations(SMALL, layout, PLAIN, 4 * 50, 2)
    assert first.activations == 2 * (layers + 4 * 50**2)
    # The last one has one; its final norm and scored states, 6 200 100 and 6 4 20 100; 80 tokens' logits, 22 of 1000
    # bytes each; a gradient of the head in 16 bits.
    assert last.activations == layers + 4 * 50**2 + 120_000 + 48_000 + 80 * 22_000 + 200_000


def test_recomputed_layers_keep_their_input() -> None:
    """t = 2 8 50 = 800: 4 inputs of 2 800 100, the mask 16 50^2, one layer, and the head as it was."""
    (plain,), (recomputed,) = (estimate(SMALL, Layout(), replace(WORK, recompute=flag)) for flag in (False, True))
    layer = layer_activations(SMALL, Layout(), PLAIN, 800, 2)
    assert plain.activations - recomputed.activations == 4 * (layer - 2 * 800 * 100) - layer
    assert plain.copies - recomputed.copies == 3 * 2 * 90_000


def test_the_bias_of_alibi_counts() -> None:
    """b R N S^2 = 2 16 10 50^2, over model_parallel."""
    (without,), (with_bias,) = (estimate(SMALL, Layout(), WORK, Traits(alibi=flag)) for flag in (False, True))
    assert with_bias.activations - without.activations == 2 * 16 * 10 * 50**2


def test_a_normalised_head_is_there_in_both_precisions() -> None:
    """Beside its 16 bits 1000 100 in float32, once more where it was gathered."""
    for shard, times in ((False, 1), (True, 2)):
        layout = Layout(2, optimizer_shard=shard)
        (plain,), (normalised,) = (
            estimate(SMALL, layout, WORK, Traits(normalised_head=flag)) for flag in (False, True)
        )
        assert normalised.copies - plain.copies == times * 4 * 100_000


def test_chunks_are_those_of_the_cells() -> None:
    assert memory.CHUNK == scoring.CHUNK


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("traits", [Traits(qkv_bias=True), Traits(fused=True, qk_norm=True)])
def test_more_model_parallel_never_needs_more(recompute: bool, shard: bool, traits: Traits) -> None:
    work = replace(LONG, recompute=recompute)
    needs = [
        worst(QWEN2_7B, Layout(2, mp, optimizer_shard=shard, vocab_emb_dp=False), work, traits) for mp in (1, 2, 4)
    ]
    for fewer, more in zip(needs, needs[1:]):
        assert all(getattr(more, part) <= getattr(fewer, part) for part in PARTS)
        assert more.total < fewer.total


@pytest.mark.parametrize("layout", [Layout(8), Layout(4, 2), Layout(2, 4), Layout(2, 2, 2, 2)])
def test_sharding_and_recomputing_never_need_more(layout: Layout) -> None:
    sharded = estimate(QWEN2_7B, replace(layout, optimizer_shard=True), LONG)
    recomputed = estimate(QWEN2_7B, layout, replace(LONG, recompute=True))
    for plain, divided, again in zip(estimate(QWEN2_7B, layout, LONG), sharded, recomputed):
        for part in ("weights", "gradients", "optimizer"):
            assert getattr(divided, part) < getattr(plain, part)
            assert getattr(again, part) == getattr(plain, part)
        assert divided.total < plain.total
        assert again.activations < plain.activations
        assert again.copies < plain.copies


@pytest.mark.parametrize("path", REAL, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_layouts_of_published_models_fit_64_gb_when_layers_are_recomputed(path: Path) -> None:
    config = load_config(path)
    parallel = config.parallel
    layout = Layout.of(parallel, int(parallel.data_parallel) * parallel.model_parallel * parallel.pipeline_stage)
    family = get_family(config.model.family)
    shape, traits = family.shape(config.model.config), family.traits(config.model.config)
    work = Work.of(config, -(-(config.data.seq_len - 1) // 16) * 16)
    assert worst(shape, layout, replace(work, recompute=True), traits).total < 58 * GB
    assert worst(shape, layout, replace(work, recompute=False), traits).total > 58 * GB


def test_the_work_of_a_config() -> None:
    work = Work.of(Config(), 4096)
    assert work == Work(pairs=8, seq_length=4096, scored=4096)
    base = Config()
    follows = replace(base, rlhf=replace(base.rlhf, reference="online", sync_ref_model=True))
    assert Work.of(follows, 64, 32) == Work(pairs=8, seq_length=64, scored=32, reference_bytes=4)
    assert Work.of(replace(base, model=replace(base.model, dtype="float32")), 64).compute_bytes == 4
    assert Work.of(replace(base, data=replace(base.data, eval="held_out.mindrecord")), 64).evaluates
    assert Work.of(replace(base, model=replace(base.model, aux_loss_coef=0.1)), 64).balances


@pytest.mark.parametrize(
    ("layout", "micro", "sentence"),
    [
        (Layout(3), None, "train.global_batch_pairs is 8, which 3 workers do not share evenly"),
        (Layout(2), 3, "train.micro_batch_pairs is 3, which must divide the 4 pairs of each of 2 workers"),
        (Layout(2, 2), 2, "train.micro_batch_pairs is 2, and a step of several passes is not supported"),
    ],
)
def test_steps_that_cannot_be_cut(layout: Layout, micro: int | None, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        replace(WORK, micro_pairs=micro).check(layout)
