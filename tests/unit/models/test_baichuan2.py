"""Baichuan2: which of the two a config.json is, W_pack, the head of normalised rows, and ALiBi by positions."""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from mindrlhf.models import BuildOptions, family_of, get_family
from mindrlhf.models.alibi import AlibiPositions, slopes
from mindrlhf.models.head import NormalisedHead
from mindrlhf.runtime.errors import UserError

FAMILY = get_family("baichuan2")
LENGTH = 8
OPTIONS = BuildOptions(seq_length=LENGTH)
SHAPES = {
    **{"architectures": ["BaichuanForCausalLM"], "vocab_size": 300, "hidden_size": 80, "intermediate_size": 96},
    **{"num_hidden_layers": 1, "num_attention_heads": 5, "model_max_length": 64, "rms_norm_eps": 1e-6},
}
SEVEN, THIRTEEN = {**SHAPES, "max_position_embeddings": 64}, SHAPES
FORBIDDEN = np.triu(np.ones((1, 1, LENGTH, LENGTH), np.uint8), 1)


def test_only_the_7b_has_max_position_embeddings() -> None:
    assert family_of(SEVEN, "config.json") is FAMILY
    assert FAMILY.from_hf_config(SEVEN, OPTIONS)["alibi"] is False
    assert FAMILY.from_hf_config(THIRTEEN, OPTIONS)["alibi"] is True
    assert FAMILY.from_hf_config(FAMILY.tiny_config(300, 64, 1), OPTIONS)["alibi"] is False


@pytest.mark.parametrize(("hidden", "heads", "positions"), [(4096, 32, 4096), (5120, 40, None)])
def test_the_published_sizes(hidden: int, heads: int, positions: int | None) -> None:
    config = {**SHAPES, "hidden_size": hidden, "num_attention_heads": heads, "vocab_size": 125696}
    if positions:
        config["max_position_embeddings"] = positions
    assert FAMILY.from_hf_config(config, OPTIONS)["alibi"] is (positions is None)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architectures": ["BaiChuanForCausalLM"]}, "Baichuan 1 .* is not supported"),
        ({"vocab_size": 64000}, "Baichuan 1 .* is not supported"),
        (
            {"hidden_size": 5120, "num_attention_heads": 40},
            "Baichuan2-13B, which has no max_position_embeddings; remov",
        ),
        ({"max_position_embeddings": 4}, "rows of 8 tokens pass the model's 4 positions"),
        ({"num_key_value_heads": 1}, "num_key_value_heads is not supported for baichuan2"),
        ({"rope_scaling": {"type": "longrope"}}, "rope scaling 'longrope' is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not supported"),
    ],
)
def test_what_would_run_wrongly_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        FAMILY.from_hf_config({**SEVEN, **change}, OPTIONS)


def test_the_first_baichuan_is_refused_by_its_architecture() -> None:
    with pytest.raises(UserError, match="architecture BaiChuanForCausalLM is not supported"):
        family_of({"architectures": ["BaiChuanForCausalLM"]}, "config.json")


def test_a_7b_without_its_positions_is_refused() -> None:
    config = {**THIRTEEN, "hidden_size": 4096, "num_attention_heads": 32}
    with pytest.raises(UserError, match="Baichuan2-7B, which has max_position_embeddings; give it"):
        FAMILY.from_hf_config(config, OPTIONS)


def test_the_13b_ends_at_its_length() -> None:
    FAMILY.from_hf_config(THIRTEEN, BuildOptions(seq_length=64))
    with pytest.raises(UserError, match="rows of 65 tokens pass the model's 64 positions"):
        FAMILY.from_hf_config(THIRTEEN, BuildOptions(seq_length=65))


def test_w_pack_is_q_k_and_v_one_below_the_other() -> None:
    packed = np.arange(3 * 80 * 80, dtype=np.float32).reshape(240, 80)
    (group,) = [group for group in FAMILY.tensors(SHAPES) if len(group.ms) == 3]
    assert group.hf == {"model.layers.0.self_attn.W_pack.weight": (240, 80)}
    assert group.ms == tuple(f"model.layers.0.attention.{name}.weight" for name in ("wq", "wk", "wv"))
    parts = group.join(packed)
    assert [part[0, 0] for part in parts] == [0, 80 * 80, 2 * 80 * 80]
    (back,) = group.split(*parts)
    assert back.tobytes() == packed.tobytes()


def test_the_tensors_are_those_of_the_model(cpu: object) -> None:
    for config in (SEVEN, THIRTEEN):
        groups = list(FAMILY.tensors(config))
        arrays = {name: np.zeros(shape, np.float32) for group in groups for name, shape in group.hf.items()}
        model = FAMILY.build(FAMILY.from_hf_config(config, OPTIONS))
        ours = FAMILY.hf_to_ms(arrays, config)
        assert {parameter.name: parameter.shape for parameter in model.get_parameters()} == {
            name: array.shape for name, array in ours.items()
        }
        assert not any(name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")) for name in arrays)
        assert len(arrays) == 3 + 7


def test_slopes_by_hand() -> None:
    """2^-2, 2^-4, 2^-6, 2^-8 of four heads; a fifth takes the first of eight, 2^-1."""
    np.testing.assert_allclose(slopes(4), [1 / 4, 1 / 16, 1 / 64, 1 / 256], rtol=1e-7)
    np.testing.assert_allclose(slopes(5), [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2], rtol=1e-7)
    forty = slopes(40)
    assert forty.shape == (40,)
    np.testing.assert_allclose(
        forty[[0, 31, 32, 33, 39]], 2.0 ** -np.array([1 / 4, 8, 1 / 8, 3 / 8, 15 / 8]), rtol=1e-7
    )


def test_the_bias_is_by_positions_and_never_lifts_a_masked_key(cpu: object) -> None:
    """A prompt of two tokens, then two answers of two tokens, both right behind the prompt."""
    positions = AlibiPositions(FAMILY.build(FAMILY.from_hf_config(THIRTEEN, OPTIONS)))
    forbidden = FORBIDDEN[:, :, :6, :6].copy()
    forbidden[0, 0, 4:, 2:4] = 1
    _, bias = positions(Tensor(np.array([[0, 1, 2, 3, 2, 3]], np.int32)), Tensor(forbidden))
    found = bias.asnumpy()
    assert found.shape == (1, 5, 6, 6)
    np.testing.assert_allclose(found[0, 0, 5, [0, 1, 4, 5]], [-0.75, -0.5, -0.25, 0])
    np.testing.assert_allclose(found[0, 4, 3, :4], [-1.5, -1.0, -0.5, 0])
    assert (found[np.broadcast_to(forbidden == 1, found.shape)] <= -10000).all()


class Kernel(nn.Cell):
    """FlashAttentionScore as MindSpore documents it: Softmax(Mask(scale * (bias + q k^T), forbidden)) v."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def construct(self, query, key, value, bias, drop_mask, padding, forbidden, prefix, query_lengths, key_lengths):  # type: ignore[no-untyped-def]
        scores = self.scale * (bias + ops.matmul(query, key.swapaxes(-1, -2)))
        scores = ops.masked_fill(scores, forbidden.astype(ms.bool_), -1e9)
        return None, None, None, ops.matmul(ops.softmax(scores, -1), value)


@pytest.mark.slow
def test_the_kernel_is_given_what_the_eager_path_adds(cpu: object) -> None:
    eager = FAMILY.build(FAMILY.from_hf_config(THIRTEEN, OPTIONS))
    fused_options = BuildOptions(seq_length=LENGTH, fused=True)
    fused = FAMILY.build({**FAMILY.from_hf_config(THIRTEEN, fused_options), "fused_rms_norm": False})
    random = np.random.default_rng(0)
    for ours, theirs in zip(eager.get_parameters(), fused.get_parameters()):
        assert ours.name == theirs.name
        values = Tensor(random.normal(0, 0.5, ours.shape).astype(np.float32))
        ours.set_data(values)
        theirs.set_data(values)
    for layer in fused.model.layers:
        layer.attention.flash_attention.flash_attention = Kernel(1 / math.sqrt(16))
    rows = (Tensor(np.arange(LENGTH, dtype=np.int32)[None]), Tensor(np.arange(LENGTH, dtype=np.int32)[None]))
    expected = FAMILY.backbone(eager)(*rows, Tensor(FORBIDDEN)).asnumpy()
    np.testing.assert_allclose(FAMILY.backbone(fused)(*rows, Tensor(FORBIDDEN)).asnumpy(), expected, atol=2e-5)
    still = (rows[0], Tensor(np.zeros((1, LENGTH), np.int32)))
    assert np.abs(FAMILY.backbone(eager)(*still, Tensor(FORBIDDEN)).asnumpy() - expected).max() > 1e-2


def test_rows_of_the_head_have_length_1_and_so_have_their_gradients(cpu: object) -> None:
    """Of (3,4): (0.6,0.8). The derivative of its first entry: (1 - 0.36, -0.48) / 5. A row of zeros stays."""
    weight = Parameter(Tensor(np.array([[3, 4], [0, 0]], np.float32)), name="weight")
    head = NormalisedHead(weight, None)

    def first() -> Tensor:
        return head()[0, 0]

    np.testing.assert_allclose(head().asnumpy(), [[0.6, 0.8], [0, 0]], atol=1e-7)
    _, (gradient,) = ops.value_and_grad(first, None, [weight])()
    np.testing.assert_allclose(gradient.asnumpy(), [[0.128, -0.096], [0, 0]], atol=1e-7)
