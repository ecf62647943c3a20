"""What devices send and how long it takes: numbers derived by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from mindrlhf.parallel.layout import Layout, ModelShape
from mindrlhf.parallel.memory import Work
from mindrlhf.parallel.parameters import PLAIN, Traits
from mindrlhf.parallel.traffic import Profile, StageTime, Traffic, step_time

SMALL = ModelShape(layers=4, hidden=100, heads=10, kv_heads=5, head_dim=10, intermediate=200, vocab=1000)
ROUTED = replace(SMALL, experts=8, experts_per_token=2)
WORK = Work(pairs=8, seq_length=50, scored=20)
STATES = 2 * 50 * 100 * 2  # bytes of the hidden states of a pair
# Links without loss and latency, whose seconds are easily said.
PLAIN_LINKS = Profile(
    flops=1e6, efficiency=0.5, memory_bandwidth=1e6, node_devices=4, node_bandwidth=1000.0, network_bandwidth=10.0,
    link_efficiency=1.0, latency=0.0, hidden=0.0,
)  # fmt: skip
FUSED = Traits(fused=True)


def payloads(stage: StageTime) -> dict[tuple[str, str, int, int], int]:
    """Bytes by kind, what, group and stride."""
    found: Counter[tuple[str, str, int, int]] = Counter()
    for item in stage.collectives:
        found[item.kind, item.what, item.group, item.stride] += item.payload
    return dict(found)


def of_step(layout: Layout, shape: ModelShape = SMALL, work: Work = WORK, traits: Traits = PLAIN) -> list[dict]:
    return [payloads(stage) for stage in step_time(shape, layout, work, traits).stages]


def test_data_parallel_sums_the_gradients_of_all_parameters() -> None:
    assert of_step(Layout(8)) == [{("AllReduce", "gradients", 8, 1): 4 * 560_900}]
    assert of_step(Layout()) == [{}]


def test_sharded_weights_are_gathered_in_16_bits_and_their_gradients_scattered_in_32() -> None:
    """Among 10: all but 9 norms of 100. Among 4: nor k and v of 4 layers, 2 50 100 each, whose 50 rows are not 4 parts.
    The embedding is gathered in float32."""
    assert of_step(Layout(10, optimizer_shard=True), work=replace(WORK, pairs=10)) == [
        {
            ("AllReduce", "gradients", 10, 1): 4 * 900,
            ("AllGather", "weights", 10, 1): 2 * (4 * 90_000 + 100_000) + 4 * 100_000,
            ("ReduceScatter", "gradients", 10, 1): 4 * 560_000,
        }
    ]
    assert of_step(Layout(4, optimizer_shard=True)) == [
        {
            ("AllReduce", "gradients", 4, 1): 4 * (900 + 4 * 10_000),
            ("AllGather", "weights", 4, 1): 2 * (4 * 80_000 + 100_000) + 4 * 100_000,
            ("ReduceScatter", "gradients", 4, 1): 4 * (4 * 80_000 + 200_000),
        }
    ]


def test_recomputed_layers_gather_their_weights_twice() -> None:
    layout = Layout(2, optimizer_shard=True)
    once, twice = (of_step(layout, work=replace(WORK, recompute=flag))[0] for flag in (False, True))
    gathered = ("AllGather", "weights", 2, 1)
    assert twice.pop(gathered) - once.pop(gathered) == 2 * 4 * 90_000
    assert twice == once


def test_scored_tokens_meet_a_divided_vocabulary_in_chunks() -> None:
    """16 rows: 32 tokens of each at once, so that 100 are 4 chunks, each with 8 sums; a layer has 4, and 2 beside."""
    for scored, chunks in ((20, 1), (32, 1), (100, 4)):
        layout, work = Layout(1, 5, vocab_emb_dp=False), replace(WORK, seq_length=100, scored=scored)
        (stage,) = step_time(SMALL, layout, work).stages
        counts = [item.count for item in stage.collectives if item.what == "tensors"]
        assert sum(counts) == 16 + 2 + 6 * chunks


def test_model_parallel_sums_hidden_states_four_times_a_layer() -> None:
    """And k, v, q, the output and the MLP are divided; 9 norms, embedding and head are everyone's."""
    found = {
        ("AllReduce", "tensors", 5, 1): 4 * 4 * 8 * STATES // 2,
        ("AllReduce", "gradients", 2, 5): 4 * 4 * 90_000 // 5,
        ("AllReduce", "gradients", 10, 1): 4 * (900 + 200_000),
    }
    assert of_step(Layout(2, 5)) == [found]
    recomputed = of_step(Layout(2, 5), work=replace(WORK, recompute=True))
    assert recomputed == [{**found, ("AllReduce", "tensors", 5, 1): 4 * 6 * 8 * STATES // 2}]


def test_a_divided_vocabulary_sums_states_in_32_bits_and_six_numbers_a_scored_token() -> None:
    """16 rows of 20 scored tokens on each of 5 workers; 9 norms are everyone's."""
    layers, vocabulary = 4 * 4 * 8 * STATES, 2 * 2 * 8 * STATES
    (found,) = of_step(Layout(1, 5, vocab_emb_dp=False))
    assert found == {
        ("AllReduce", "tensors", 5, 1): layers + vocabulary + 6 * 4 * 16 * 20,
        ("AllReduce", "gradients", 5, 1): 4 * 900,
    }


def test_sequence_parallel_gathers_and_scatters() -> None:
    layout = Layout(1, 5, sequence_parallel=True)
    (on_gpt_model,) = of_step(layout, traits=FUSED)
    tokens = 6 * 4 * 16 * 20
    # Four of each in a layer; the embedding's in 32 bits, and the one before the head.
    each = (4 * 4 + 2 + 1) * 8 * STATES
    assert on_gpt_model == {
        ("AllGather", "tensors", 5, 1): each,
        ("ReduceScatter", "tensors", 5, 1): each,
        ("AllReduce", "tensors", 5, 1): tokens,
        ("AllReduce", "gradients", 5, 1): 4 * 900,
    }
    # Elsewhere six, and the one before the head in 32 bits.
    (elsewhere,) = of_step(layout)
    assert elsewhere[("AllGather", "tensors", 5, 1)] == (4 * 6 + 2) * 8 * STATES


def test_divided_rows_gather_keys_and_values_and_what_is_scored() -> None:
    """16 rows of 48 positions on 2 workers: 4 layers' keys and values, 2 16 48 50 bytes each; states of all positions;
    two numbers of each scored token, and one gradient."""
    keys, states, numbers = 4 * 2 * 2 * 16 * 48 * 50, 2 * 16 * 48 * 100, 4 * 16 * 20
    (found,) = of_step(Layout(context_parallel=2), work=replace(WORK, seq_length=48), traits=FUSED)
    assert found == {
        ("AllGather", "tensors", 2, 1): keys + states + 2 * numbers,
        ("ReduceScatter", "tensors", 2, 1): keys + states + numbers,
        ("AllReduce", "gradients", 2, 1): 4 * 560_900,
    }
    (again,) = of_step(Layout(context_parallel=2), work=replace(WORK, seq_length=48, recompute=True), traits=FUSED)
    assert again[("AllGather", "tensors", 2, 1)] == 2 * keys + states + 2 * numbers


def test_tokens_go_to_their_experts_and_back_both_ways() -> None:
    (found,) = of_step(Layout(8, optimizer_shard=True, expert_parallel=4), ROUTED, traits=FUSED)
    assert found[("AlltoAll", "tensors", 4, 1)] == 4 * 4 * 2 * STATES
    # The experts of a part are 2 workers', 4 ranks apart: 3 8 100 200 / 4 elements a layer.
    assert found[("ReduceScatter", "gradients", 2, 4)] == 4 * 4 * 120_000


def test_stages_send_states_and_gradients_to_their_neighbours() -> None:
    stages = of_step(Layout(2, 1, 2, 4))
    assert [stage[("Send", "tensors", 2, 2)] for stage in stages] == [4 * STATES, 4 * STATES]
    middle = of_step(Layout(2, 1, 4, 4))[1]
    assert middle[("Send", "tensors", 2, 2)] == 2 * 4 * STATES


@pytest.mark.parametrize(
    ("kind", "group", "stride", "seconds"),
    [
        ("AllGather", 4, 1, 3 / 4),  # within a node of 4: 1000 3/4 / 1000
        ("AllReduce", 4, 1, 6 / 4),
        ("AllReduce", 2, 4, 100.0),  # one rank a node: 2 1000 1/2 / 10
        ("AllGather", 8, 1, 3 / 4 + 12.5),  # 3/4 within, then 1000 / 4 1/2 / 10 between the two nodes
        ("AllGather", 4, 2, 1 / 2 + 25.0),  # two ranks a node
        ("AlltoAll", 8, 1, 3 / 8 + 50.0),  # of 8 parts 3 stay within the node and 4 leave it
        ("Send", 2, 2, 1.0),
        ("Send", 2, 4, 100.0),
    ],
)
def test_the_time_of_a_collective_by_hand(kind: str, group: int, stride: int, seconds: float) -> None:
    found = Traffic(kind, "tensors", group, stride, 1, 1000).seconds(PLAIN_LINKS)
    assert found == pytest.approx(seconds)
    late = replace(PLAIN_LINKS, latency=2.0)
    assert Traffic(kind, "tensors", group, stride, 3, 1000).seconds(late) == pytest.approx(seconds + 6)


def test_what_a_ring_moves() -> None:
    assert Traffic("AllReduce", "gradients", 4, 1, 1, 1000).moved == 1500
    assert Traffic("AllGather", "weights", 4, 1, 1, 1000).moved == 750
    assert Traffic("Send", "tensors", 2, 1, 1, 1000).moved == 1000


def test_the_products_of_a_step_by_hand() -> None:
    """t = 800. Layer: 2 90,000 products a token, 4 50 100 of attention; head: 2 1000 100 of each of 320 scored."""
    (stage,) = step_time(SMALL, Layout(), WORK, profile=PLAIN_LINKS).stages
    matrices, attention, head = 4 * 800 * 180_000, 4 * 800 * 20_000, 320 * 200_000
    assert stage.useful == 3 * matrices + 3.5 * attention + 3 * head
    assert stage.computing == pytest.approx((3 * matrices + 3.5 * attention + 4 * head) / 5e5)
    assert stage.updating == pytest.approx(560_900 * 4 * 7 / 1e6)
    (again,) = step_time(SMALL, Layout(), replace(WORK, recompute=True), profile=PLAIN_LINKS).stages
    assert again.computing - stage.computing == pytest.approx((matrices + attention) / 5e5)
    assert again.useful == stage.useful


def test_a_pipeline_waits_to_be_filled() -> None:
    """Two stages with 4 micro-batches: 5/4 of the slower one's time."""
    step = step_time(SMALL, Layout(1, 1, 2, 4), WORK, profile=PLAIN_LINKS)
    slower = max(stage.computing + stage.waiting for stage in step.stages)
    assert step.seconds == pytest.approx(1.25 * slower + max(stage.updating for stage in step.stages))
    useful = sum(stage.useful for stage in step.stages)
    assert step.share_of_peak == pytest.approx(useful / (step.seconds * 1e6 * 2))


def test_half_of_the_gradients_traffic_may_hide() -> None:
    shown, hidden = (
        step_time(SMALL, Layout(8), WORK, profile=replace(PLAIN_LINKS, hidden=share)) for share in (0.0, 0.5)
    )
    (stage,) = shown.stages
    assert stage.overlapping > 0
    assert shown.seconds - hidden.seconds == pytest.approx(stage.overlapping / 2)
