"""The preference cell of a family as MindFormers builds it, by our names and by the historical ones."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
import pytest

from mindrlhf.cells.preference import PreferenceCell
from mindrlhf.config.load import load_config
from mindrlhf.models import BuildOptions, families, get_family
from mindrlhf.runtime.errors import UserError
from mindrlhf.trainers.architecture import arch_name, family_of_arch
from mindrlhf.trainers.registry import (
    build_preference_cell,
    loss_settings,
    register_all,
)

OURS = {
    "Baichuan2DPO": "baichuan2",
    "Glm4DPO": "glm4",
    "LlamaDPO": "llama",
    "Qwen2DPO": "qwen2",
    "Qwen3DPO": "qwen3",
    "Qwen3MoeDPO": "qwen3_moe",
}
# Earlier yaml files had Glm4DPO too.
HISTORICAL = {"Qwen7BDPO": "qwen2", "Qwen2_5_7BDPO": "qwen2", "Glm4DPO": "glm4", "Baichuan13BDPO": "baichuan2"}
# Summed log-probs of two pairs, those of the reference, and tokens; x_c - x_r is 4 and -6, per token 0.75 and -2.
PAIR_VECTORS = [[[-8, -20], [-9, -5]], [[-9, -17], [-7, -9]], [[4, 6], [2, 4]], [[0, 0], [0, 0]]]
LOGPS, REFERENCE, COUNTS, SQUARES = (np.array(rows, np.float32) for rows in PAIR_VECTORS)


def model_config(family: str) -> dict[str, Any]:
    return get_family(family).from_hf_config(get_family(family).tiny_config(32, 64, 1), BuildOptions(seq_length=16))


def network(arch: str, **more: Any) -> Any:
    """What MindFormers builds from the `model` section of one of its own yaml files."""
    from mindformers.models.build_model import build_network
    from mindformers.tools.register import MindFormerConfig

    register_all()
    return build_network(
        MindFormerConfig(arch={"type": arch}, model_config={**model_config(family_of_arch(arch)), **more})
    )


def terms(cell: Any) -> list[list[float]]:
    """Of each pair what is divided by the pairs, and what is divided by the chosen tokens."""
    vectors = (LOGPS, LOGPS, REFERENCE, COUNTS, SQUARES, np.ones(2, np.float32))
    return [part.asnumpy().tolist() for part in cell.terms(*map(ms.Tensor, vectors))]


def test_every_family_has_a_name() -> None:
    assert {arch_name(family): name for name, family in families().items()} == OURS


@pytest.mark.parametrize(("arch", "family"), sorted({**OURS, **HISTORICAL}.items()))
def test_build_network(arch: str, family: str, cpu: object) -> None:
    cell = network(arch)
    assert isinstance(cell, PreferenceCell)
    assert family_of_arch(arch) == family
    model = get_family(family).build(model_config(family))
    ours, theirs = ([each.name for each in part.get_parameters()] for part in (cell, model))
    assert sorted(ours) == sorted(theirs)


def test_our_names_mean_dpo(cpu: object) -> None:
    cell = network("Qwen2DPO")
    assert cell.beta == 0.1
    np.testing.assert_allclose(terms(cell), [np.log1p(np.exp([-0.4, 0.6])), [0, 0]], rtol=1e-5)


@pytest.mark.parametrize("arch", sorted(HISTORICAL))
def test_historical_names_mean_the_length_normalised_loss(arch: str, cpu: object) -> None:
    cell = network(arch)
    assert cell.beta == 1.0
    np.testing.assert_allclose(terms(cell), [np.log1p(np.exp([-0.75, 2.0])), [0, 0]], rtol=1e-5)


def test_the_config_names_the_loss(cpu: object) -> None:
    cell = network("LlamaDPO", rlhf={"loss": "sft"})
    assert terms(cell) == [[0.0, 0.0], [8.0, 9.0]]


def test_the_config_names_several_losses(cpu: object) -> None:
    losses = [{"type": "hinge", "weight": 2.0}, {"type": "sft", "weight": 0.5}]
    cell = network("LlamaDPO", rlhf={"loss": losses, "beta": 0.1})
    np.testing.assert_allclose(terms(cell), [[1.2, 3.2], [4.0, 4.5]], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(families()))
def test_our_own_build(name: str, cpu: object) -> None:
    loss = loss_settings(load_config(None, ["rlhf.loss=hinge"]))
    cell = build_preference_cell(get_family(name), model_config(name), loss)
    assert type(cell).__name__ == arch_name(get_family(name))
    np.testing.assert_allclose(terms(cell), [[0.6, 1.6], [0, 0]], rtol=1e-6)


def test_other_names_of_a_family() -> None:
    assert family_of_arch("LlamaForCausalLM") == "auto"  # several families; config.json tells
    assert family_of_arch("ChatGLM2ForConditionalGeneration") == "glm4"
    assert family_of_arch("qwen2") == "qwen2"


def test_a_run_may_go_by_a_historical_name(capsys: pytest.CaptureFixture[str]) -> None:
    settings = loss_settings(load_config(None, ["model.family=Qwen2_5_7BDPO"]))
    assert (settings.objective.name, settings.objective.beta) == ("sigmoid_norm", 1.0)
    assert "Qwen2_5_7BDPO: the length-normalised loss sigmoid_norm with beta 1.0" in capsys.readouterr().out
    asked = loss_settings(load_config(None, ["model.family=Qwen7BDPO", "rlhf.loss=ipo", "rlhf.beta=0.5"]))
    assert (asked.objective.name, asked.objective.beta) == ("ipo", 0.5)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["rlhf.loss=sigmod"], "did you mean 'sigmoid'"),
        (["rlhf.loss=ipo", "rlhf.label_smoothing=0.1"], "label_smoothing is 0.1, and ipo has no such parameter"),
        (["rlhf.reference=none"], "rlhf.reference is none, and rlhf.loss=sigmoid needs a reference"),
        (["rlhf.sync_ref_model=true"], "rlhf.sync_ref_model is set, which needs rlhf.reference=online"),
        (["rlhf.reference_checkpoint=x"], "rlhf.reference_checkpoint is set, which needs rlhf.reference=online"),
        (["rlhf.loss=simpo", "rlhf.ld_alpha=0.5"], "ld_alpha"),
        (["rlhf.loss=[{type: sigmoid}, {type: stf}]"], "did you mean 'sft'"),
    ],
)
def test_a_loss_that_cannot_be(overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        loss_settings(load_config(None, overrides))


def test_a_loss_without_reference() -> None:
    for words in (["rlhf.loss=sft"], ["rlhf.loss=[simpo, sft]"], ["rlhf.reference_free=true"]):
        assert loss_settings(load_config(None, [*words, "rlhf.reference=none"])).reference == "none"
