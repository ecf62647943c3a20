"""Rotary tables against figures of PyTorch and by hand, both forms of config.json, and what is refused."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from mindrlhf.models.rope import KINDS, Rope, rope_settings
from mindrlhf.runtime.errors import UserError

HEAD = 16
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 64,
}
# The first six of eight frequencies, and cosines and sines of position 50, of transformers 5.23's LlamaRotaryEmbedding;
# heads of 16, theta 10000, 64 positions. Each for rows of so many tokens.
FIGURES: dict[str, tuple[dict[str, Any], int, list[float], list[float], list[float]]] = {
    "default": (
        {"rope_type": "default"},
        64,
        [1.0, 0.316227764, 0.100000001, 0.0316227786, 0.00999999978, 0.00316227786],
        [0.964966059, -0.994656444, 0.2836622, -0.0103424573, 0.87758255, 0.987526],
        [-0.262374848, -0.10324046, -0.958924294, 0.999946535, 0.47942555, 0.157455906],
    ),
    "linear": (
        {"rope_type": "linear", "factor": 4.0},
        64,
        [0.25, 0.079056941, 0.0250000004, 0.00790569466, 0.00249999994, 0.000790569466],
        [0.997798264, -0.688589394, 0.315322369, 0.922886968, 0.992197692, 0.999218822],
        [-0.0663218945, -0.725151479, 0.948984623, 0.38507098, 0.12467473, 0.0395181812],
    ),
    "dynamic": (
        {"rope_type": "dynamic", "factor": 3.0},
        100,
        [1.0, 0.27457723, 0.0753926486, 0.0207011048, 0.00568405166, 0.00156071107],
        [0.964966059, 0.397054374, -0.809180856, 0.510478377, 0.959885538, 0.996956766],
        [-0.262374848, 0.917795122, -0.58755964, 0.85989058, 0.28039211, 0.0779563785],
    ),
    "yarn": (
        YARN,
        100,
        [1.0, 0.237170815, 0.049999997, 0.00790569466, 0.00249999994, 0.000790569466],
        [1.09873879, 0.865101635, -0.912205517, 1.05082631, 1.12974548, 1.13774002],
        [-0.298747718, -0.740321696, 0.681438267, 0.438453138, 0.141958311, 0.0449965633],
    ),
    "yarn with mscale": (
        {**YARN, "factor": 8.0, "beta_fast": 16, "beta_slow": 2, "mscale": 0.7, "mscale_all_dim": 1.0},
        100,
        [1.0, 0.177878112, 0.0125000002, 0.00395284733, 0.00124999997, 0.000395284733],
        [0.915131211, -0.817829609, 0.769081593, 0.929893494, 0.946504235, 0.948170602],
        [-0.248824716, 0.480139077, 0.554880381, 0.186217397, 0.059233658, 0.0187423099],
    ),
    "yarn without truncation": (
        {**YARN, "factor": 8.0, "attention_factor": 1.25, "truncate": False},
        100,
        [1.0, 0.178976148, 0.0131944576, 0.00395284733, 0.00124999997, 0.000395284733],
        [1.20620751, -1.11106062, 0.987702608, 1.22566533, 1.24755943, 1.24975586],
        [-0.327968568, 0.572751343, 0.766122341, 0.24544768, 0.0780741423, 0.0247036871],
    ),
    "llama3": (
        LLAMA3,
        64,
        [1.0, 0.244384587, 0.0130422562, 0.00395284733, 0.00124999997, 0.000395284733],
        [0.964966059, 0.940349221, 0.794803381, 0.980532229, 0.998047531, 0.999804676],
        [-0.262374848, -0.340210676, 0.606867075, 0.196358144, 0.0624593161, 0.01976295],
    ),
}


def older(scaling: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {"max_position_embeddings": 64, "rope_theta": 10000.0, "rope_scaling": scaling, **more}


def newer(scaling: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    plain = {"rope_type": "default"}
    return {"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 10000.0, **(scaling or plain)}, **more}


@pytest.mark.parametrize("name", FIGURES)
def test_tables_are_those_of_pytorch(name: str) -> None:
    scaling, length, frequencies, cosines, sines = FIGURES[name]
    rope = rope_settings(older(scaling), HEAD)
    np.testing.assert_allclose(rope.inverse_frequencies(length)[:6], frequencies, rtol=2e-7)
    ours = rope.tables(length)
    for table, figures in zip(ours, (cosines, sines)):
        assert table.shape == (length, HEAD)
        assert table.dtype == np.float32
        np.testing.assert_allclose(table[50, :6], figures, atol=2e-6)
        assert (table[:, :8] == table[:, 8:]).all()
    assert {scaling["rope_type"] for scaling, *_ in FIGURES.values()} == set(KINDS)


@pytest.mark.parametrize("name", FIGURES)
def test_both_forms_of_config_and_the_older_word_for_the_kind_are_the_same(name: str) -> None:
    scaling = dict(FIGURES[name][0])
    expected = rope_settings(older(scaling), HEAD)
    assert rope_settings(newer(scaling), HEAD) == expected
    scaling["type"] = scaling.pop("rope_type")
    assert rope_settings(older(scaling), HEAD) == expected
    assert Rope(**asdict(expected)) == expected


def test_by_hand() -> None:
    """theta 10000 and heads of 4: frequencies 10000^0 and 10000^(-2/4) = 0.01; scaled by 4, a quarter of them."""
    plain = rope_settings({"rope_theta": 10000.0}, 4)
    np.testing.assert_allclose(plain.inverse_frequencies(8), [1.0, 0.01], rtol=1e-7)
    linear = rope_settings({"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}, 4)
    np.testing.assert_allclose(linear.inverse_frequencies(8), [0.25, 0.0025], rtol=1e-7)
    cosines, sines = plain.tables(3)
    np.testing.assert_allclose(cosines[2], [math.cos(2), math.cos(0.02)] * 2, atol=1e-7)
    np.testing.assert_allclose(sines[2], [math.sin(2), math.sin(0.02)] * 2, atol=1e-7)


def test_the_base_of_the_dynamic_kind_by_hand() -> None:
    """Heads of 4, factor 2, twice the positions: base 100 * (2 * 2 - 1)^(4/2) = 900, frequencies 1 and 900^(-1/2)."""
    config = {
        **{"max_position_embeddings": 8, "rope_theta": 100.0},
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    rope = rope_settings(config, 4)
    np.testing.assert_allclose(rope.inverse_frequencies(16), [1.0, 1 / 30], rtol=1e-6)
    np.testing.assert_allclose(rope.inverse_frequencies(5), [1.0, 0.1], rtol=1e-6)


def test_yarn_takes_its_factor_from_the_positions_where_it_has_none() -> None:
    scaling = {"type": "yarn", "original_max_position_embeddings": 16}
    rope = rope_settings({"max_position_embeddings": 64, "rope_scaling": scaling}, HEAD)
    assert rope.factor == 4.0
    assert rope.attention_factor == pytest.approx(1 + 0.1 * math.log(4))


@pytest.mark.parametrize("flat", [True, False])
def test_a_part_of_the_head_rotates(flat: bool) -> None:
    config = newer(None, partial_rotary_factor=0.5)
    if not flat:
        config["rope_parameters"]["partial_rotary_factor"] = config.pop("partial_rotary_factor")
    rope = rope_settings(config, HEAD)
    assert rope.rotary_dim == 8
    assert rope.tables(5)[0].shape == (5, 8)
    np.testing.assert_allclose(rope.inverse_frequencies(5), [1, 0.1, 0.01, 0.001], rtol=1e-6)


def test_the_family_gives_the_base_that_config_leaves_out() -> None:
    assert rope_settings({}, HEAD).theta == 10000.0
    assert rope_settings({"rope_theta": None}, HEAD, default_theta=1e6).theta == 1e6


@pytest.mark.parametrize(
    ("scaling", "positions"),
    [
        (None, 64),
        ({"type": "linear", "factor": 4.0}, 256),
        ({"type": "dynamic", "factor": 3.0}, 192),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}, 64),
        ({**LLAMA3, "original_max_position_embeddings": 16}, 64),
    ],
)
def test_longer_rows_than_the_model_was_made_for_are_refused(scaling: dict[str, Any] | None, positions: int) -> None:
    rope = rope_settings(older(scaling), HEAD)
    rope.admit(positions)
    with pytest.raises(UserError, match=f"rows of {positions + 1} tokens pass the model's {positions} positions"):
        rope.admit(positions + 1)


def test_without_a_number_of_positions_every_length_is_admitted() -> None:
    rope_settings({}, HEAD).admit(10**6)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            older({"type": "longrope", "short_factor": [1.0]}),
            "rope scaling 'longrope' is not supported; these are: def",
        ),
        (older({"type": "su", "factor": 2.0}), "rope scaling 'su' is not supported"),
        (older({"type": "mrope", "mrope_section": [1, 2]}), "rope scaling 'mrope' is not supported"),
        (older({"rope_type": "default", "mrope_section": [1, 2]}), "rope scaling 'mrope' is not supported"),
        (newer({"rope_type": "proportional"}), "rope scaling 'proportional' is not supported"),
        (older({"factor": 2.0}), "rope_scaling has factor 2.0 but no rope_type; name the kind"),
        (older({"type": "linear"}), "rope scaling 'linear' needs factor"),
        (older({"type": "linear", "factor": 0.5}), "factor is 0.5; it must be a number of at least 1"),
        (older({"type": "linear", "factor": "2"}), "factor is '2'; it must be a number of at least 1"),
        (older({"type": "linear", "factor": True}), "factor is True; it must be a number"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' needs max_position_embeddings"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "'yarn' needs max_position_embeddings"),
        (older({"type": "llama3", "factor": 8.0}), "rope scaling 'llama3' needs low_freq_factor"),
        (older({**LLAMA3, "high_freq_factor": 1.0}), "high_freq_factor 1.0, not above low's 1.0"),
        (older({**YARN, "original_max_position_embeddings": 0}), "original_max_position_embeddings is 0; it must be"),
        (older({**YARN, "beta_fast": -1}), "beta_fast is -1; it must be a number above 0"),
        (older("linear"), "rope_scaling is 'linear'; it must be an object"),  # type: ignore[arg-type]
        ({"rope_parameters": {"full_attention": {}}}, "rope_parameters by kind of layer is not supported"),
        ({"rope_theta": 1.0}, "rope_theta is 1.0; it must be a number above 1"),
        ({"rope_theta": math.inf}, "rope_theta is inf; it must be a number above 1"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5; it must be 1 at most"),
        ({"max_position_embeddings": "64"}, "max_position_embeddings is '64'; it must be a whole number above 0"),
        ({**newer(None), "rope_theta": 5.0}, "rope_theta is 5.0, and 10000.0 in rope_parameters; keep one"),
        ({**newer(YARN), "rope_scaling": {**YARN, "factor": 2.0}}, "rope_scaling and rope_parameters differ in factor"),
    ],
)
def test_what_would_rotate_wrongly_is_refused(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        rope_settings(config, HEAD)
