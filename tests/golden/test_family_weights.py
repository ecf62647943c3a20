"""Every registered family's tensors: their names and shapes, both ways, and the two forms of config.json."""

from __future__ import annotations

import mindspore  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
import pytest
from contract import EVERY_VARIANT, OPTIONS, variant_of
from micro_models import NO_NEWER_FORM, newer_form

from mindrlhf.checkpoint.store import fingerprint
from mindrlhf.runtime.errors import IncompleteCheckpoint

BFLOAT16 = np.dtype("bfloat16")  # which MindSpore gives to NumPy

pytestmark = [pytest.mark.usefixtures("cpu"), EVERY_VARIANT]


def test_tensors_are_those_of_the_published_checkpoint(variant: tuple[str, str]) -> None:
    found = variant_of(*variant)
    ours = {name: list(shape) for group in found.family.tensors(found.config) for name, shape in group.hf.items()}
    assert ours == found.figures["shapes"]


def test_tensors_are_those_of_the_built_model(variant: tuple[str, str]) -> None:
    found = variant_of(*variant)
    model = found.family.build(found.family.from_hf_config(found.config, OPTIONS))
    names = [name for group in found.family.tensors(found.config) for name in group.ms]
    parameters = {parameter.name: tuple(parameter.shape) for parameter in model.get_parameters()}
    assert sorted(names) == sorted(parameters)
    arrays = found.family.hf_to_ms(found.weights, found.config)
    assert {name: array.shape for name, array in arrays.items()} == parameters
    leaves = {name.rsplit(".", 1)[-1] for name, cell in model.cells_and_names() if "weight" in dict(cell._params)}
    assert set(found.family.lora_targets) <= leaves


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BFLOAT16], ids=str)
def test_there_and_back_is_bit_equal(variant: tuple[str, str], dtype: np.dtype) -> None:
    found = variant_of(*variant)
    weights = {name: array.astype(dtype) for name, array in found.weights.items()}
    there = found.family.hf_to_ms(weights, found.config)
    assert {array.dtype for array in there.values()} == {dtype}
    assert sum(array.size for array in there.values()) == sum(array.size for array in weights.values())
    again = found.family.hf_to_ms(there, found.config)
    assert all(again[name] is array for name, array in there.items())
    back = found.family.ms_to_hf(there, found.config)
    assert {name: list(array.shape) for name, array in back.items()} == found.figures["shapes"]
    for name, array in back.items():
        assert array.dtype == dtype
        assert array.tobytes() == weights[name].tobytes(), name


def test_fingerprint_does_not_tell_where_weights_lay(variant: tuple[str, str]) -> None:
    found = variant_of(*variant)
    weights = found.weights
    there = found.family.hf_to_ms(weights, found.config)
    assert fingerprint(found.family.ms_to_hf(there, found.config)) == fingerprint(weights)
    name = next(iter(weights))
    assert fingerprint({**weights, name: weights[name] + 1.0}) != fingerprint(weights)


def test_a_missing_a_foreign_and_a_misshaped_tensor_are_named(variant: tuple[str, str]) -> None:
    found = variant_of(*variant)
    weights = found.weights
    first, *_, last = weights
    broken = {**weights, "lm_haed.weight": weights[first], last: np.concatenate([weights[last], weights[last]])}
    del broken[first]
    with pytest.raises(IncompleteCheckpoint) as refusal:
        found.family.hf_to_ms(broken, found.config)
    for name in (first, last, "lm_haed.weight"):
        assert name in str(refusal.value)


def test_the_newer_form_of_config_is_the_same_model(variant: tuple[str, str]) -> None:
    found = variant_of(*variant)
    if found.config["model_type"] in NO_NEWER_FORM:
        pytest.skip("transformers has no class of this form")
    older = found.family.from_hf_config(found.config, OPTIONS)
    assert found.family.from_hf_config(newer_form(found.config), OPTIONS) == older
