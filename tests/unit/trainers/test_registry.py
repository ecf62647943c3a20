"""The preference cell of a family as MindFormers builds it, by our names and by the historical ones."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
import pytest

from mindrlhf.cells.preference import PreferenceCell
from mindrlhf.config.load import load_config
from mindrlhf.losses import bind
from mindrlhf.models import BuildOptions, families, get_family
from mindrlhf.runtime.errors import UserError
from mindrlhf.trainers.registry import (
    LossSettings,
    arch_name,
    build_preference_cell,
    family_of_arch,
    loss_settings,
    register_all,
)

OURS = {"Qwen2DPO": "qwen2", "LlamaDPO": "llama"}
HISTORICAL = {"Qwen7BDPO": "qwen2", "Qwen2_5_7BDPO": "qwen2"}
SHAPES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
# Summed log-probs of two pairs, those of the reference, and tokens; x_c - x_r is 4 and -6, per token 0.75 and -2.
VECTORS = [np.array(row, np.float32) for row in ([-8, -9], [-20, -5], [-9, -7], [-17, -9], [4, 2], [6, 4])]


def model_config(family: str) -> dict[str, Any]:
    return get_family(family).from_hf_config(SHAPES, BuildOptions(seq_length=16))


def network(arch: str, **more: Any) -> Any:
    """What MindFormers builds from the `model` section of one of its own yaml files."""
    from mindformers.models.build_model import build_network
    from mindformers.tools.register import MindFormerConfig

    register_all()
    return build_network(
        MindFormerConfig(arch={"type": arch}, model_config={**model_config(family_of_arch(arch)), **more})
    )


def terms(cell: Any) -> list[float]:
    return cell.loss(*map(ms.Tensor, VECTORS)).asnumpy().tolist()


def test_every_family_has_a_name() -> None:
    assert {arch_name(family): name for name, family in families().items()} == OURS


@pytest.mark.parametrize(("arch", "family"), [*OURS.items(), *HISTORICAL.items()])
def test_build_network(arch: str, family: str, cpu: object) -> None:
    cell = network(arch)
    assert isinstance(cell, PreferenceCell)
    assert family_of_arch(arch) == family
    model = get_family(family).build(model_config(family))
    ours, theirs = ([each.name for each in part.get_parameters()] for part in (cell, model))
    assert sorted(ours) == sorted(theirs)


def test_our_names_mean_dpo(cpu: object) -> None:
    cell = network("Qwen2DPO")
    assert (cell.beta, cell.per_token) == (0.1, False)
    np.testing.assert_allclose(terms(cell), np.log1p(np.exp([-0.4, 0.6])), rtol=1e-5)


@pytest.mark.parametrize("arch", sorted(HISTORICAL))
def test_historical_names_mean_the_length_normalised_loss(arch: str, cpu: object) -> None:
    cell = network(arch)
    assert (cell.beta, cell.per_token) == (1.0, False)
    np.testing.assert_allclose(terms(cell), np.log1p(np.exp([-0.75, 2.0])), rtol=1e-5)


def test_the_config_names_the_loss(cpu: object) -> None:
    cell = network("LlamaDPO", rlhf={"loss": "sft"})
    assert cell.per_token
    assert terms(cell) == [8.0, 9.0]


@pytest.mark.parametrize("name", sorted(families()))
def test_our_own_build(name: str, cpu: object) -> None:
    cell = build_preference_cell(get_family(name), model_config(name), LossSettings(bind("hinge"), "record"), True)
    assert type(cell).__name__ == arch_name(get_family(name))
    np.testing.assert_allclose(terms(cell), [0.6, 1.6], rtol=1e-6)


def test_other_names_of_a_family() -> None:
    assert family_of_arch("LlamaForCausalLM") == "auto"  # several families; config.json tells
    assert family_of_arch("qwen2") == "qwen2"


def test_a_run_may_go_by_a_historical_name(capsys: pytest.CaptureFixture[str]) -> None:
    settings = loss_settings(load_config(None, ["model.family=Qwen2_5_7BDPO"]))
    assert (settings.name, settings.loss.beta) == ("sigmoid_norm", 1.0)
    assert "Qwen2_5_7BDPO: the length-normalised loss sigmoid_norm with beta 1.0" in capsys.readouterr().out
    asked = loss_settings(load_config(None, ["model.family=Qwen7BDPO", "rlhf.loss=ipo", "rlhf.beta=0.5"]))
    assert (asked.name, asked.loss.beta) == ("ipo", 0.5)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["rlhf.loss=sigmod"], "did you mean 'sigmoid'"),
        (["rlhf.loss=ipo", "rlhf.label_smoothing=0.1"], "the loss ipo has no label_smoothing"),
        (["rlhf.reference=none"], "rlhf.reference is none, and rlhf.loss=sigmoid needs a reference"),
    ],
)
def test_a_loss_that_cannot_be(overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        loss_settings(load_config(None, overrides))


def test_a_loss_without_reference() -> None:
    assert loss_settings(load_config(None, ["rlhf.loss=sft", "rlhf.reference=none"])).reference == "none"
