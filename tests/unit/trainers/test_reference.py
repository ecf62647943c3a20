"""Reference log-probs: the record's, those computed while training goes on, and a reference that follows the policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindrlhf.config.load import load_config
from mindrlhf.config.schema import Config
from mindrlhf.data.records import Pair
from mindrlhf.data.rows import padded
from mindrlhf.parallel.layout import ONE_WORKER
from mindrlhf.runtime.device import Device
from mindrlhf.runtime.errors import UserError
from mindrlhf.trainers.policy import Source, build_options, find_source
from mindrlhf.trainers.reference import OnlineReference, ReferenceScorer, row_lengths

SEQ_LEN, LENGTH = 129, 128
VOCABULARY = 300


def pairs(count: int = 5) -> list[Pair]:
    generator = np.random.default_rng(4)

    def tokens(most: int) -> np.ndarray:
        return generator.integers(0, VOCABULARY, generator.integers(1, most), dtype=np.int32)

    return [Pair(number, tokens(20), tokens(100), tokens(40)) for number in range(count)]


@pytest.fixture
def config(tiny_folder: Callable[[str], Path]) -> Config:
    return load_config(None, [f"model.load_checkpoint={tiny_folder('qwen2')}"])


def online(config: Config, cpu: Device, shared: bool = True) -> tuple[OnlineReference, Source]:
    source = find_source(config)
    model_config = source.family.from_hf_config(source.hf_config, build_options(config, cpu, LENGTH))
    reference = OnlineReference(source, model_config, collation="padded", device=cpu, layout=ONE_WORKER, shared=shared)
    return reference, source


def test_online_equals_the_record(config: Config, cpu: Device) -> None:
    recorded = ReferenceScorer(config, cpu, find_source(config), SEQ_LEN).score(pairs())
    reference, _ = online(config, cpu)
    rows = padded([*recorded, None], LENGTH, LENGTH, 5, 1)
    bare = rows._replace(ref_logps=np.zeros_like(rows.ref_logps), ref_shared_logps=np.zeros_like(rows.ref_shared_logps))
    found = reference.fill(bare)
    assert np.abs(rows.ref_logps[:5]).min() > 1.0
    np.testing.assert_allclose(found.ref_logps, rows.ref_logps, rtol=1e-6)
    np.testing.assert_allclose(found.ref_shared_logps, rows.ref_shared_logps, rtol=1e-6)
    assert (found.ref_shared_logps[:5] > found.ref_logps[:5]).any()
    assert not found.ref_logps[5].any()


def test_the_shared_length_is_the_shorter_answers(config: Config, cpu: Device) -> None:
    """Cut to the length of the other, an answer has the log-prob that the longer one has on its shared length."""
    (pair,) = pairs(1)
    shared = min(len(pair.chosen_ids), len(pair.rejected_ids))
    cut = Pair(0, pair.prompt_ids, pair.chosen_ids[:shared], pair.rejected_ids[:shared])
    whole, short = ReferenceScorer(config, cpu, find_source(config), SEQ_LEN).score([pair, cut])
    assert whole.ref_chosen_shared_logps == pytest.approx(short.ref_chosen_logps, rel=1e-6)
    assert whole.ref_rejected_shared_logps == pytest.approx(short.ref_rejected_logps, rel=1e-6)
    assert short.ref_chosen_shared_logps == short.ref_chosen_logps


def test_a_reference_that_follows_the_policy(config: Config, cpu: Device) -> None:
    """TR-DPO: after a share of 0.25 of a policy at w + 4, the reference is at w + 1; a share of 1 makes them equal."""
    reference, source = online(config, cpu)
    before = {name: array.copy() for name, array in reference.state().items()}
    assert all(name.startswith("reference.") for name in before)
    policy: Any = source.family.build(
        source.family.from_hf_config(source.hf_config, build_options(config, cpu, LENGTH))
    )
    for parameter in policy.get_parameters():
        parameter.set_data(reference.parameters[parameter.name] + 4.0)
    rows = padded(pairs(), LENGTH, LENGTH, 5, 1)
    logps = reference.fill(rows).ref_logps
    reference.follow(policy, 0.25)
    for name, array in reference.state().items():
        np.testing.assert_allclose(array, before[name] + 1.0, rtol=1e-6, atol=1e-6, err_msg=name)
    assert np.abs(reference.fill(rows).ref_logps - logps).max() > 1.0, "the compiled cell does not see the change"
    reference.follow(policy, 1.0)
    for parameter in policy.get_parameters():
        np.testing.assert_array_equal(reference.parameters[parameter.name].asnumpy(), parameter.asnumpy())
    reference.restore(before)
    np.testing.assert_array_equal(reference.fill(rows).ref_logps, logps)
    del before[next(iter(before))]
    with pytest.raises(UserError, match="parameters missing"):
        reference.restore(before)


def test_row_lengths() -> None:
    assert row_lengths(4096) == [128, 256, 512, 1024, 2048, 4096]
    assert row_lengths(272) == [144, 272]
    assert row_lengths(96) == [96]
