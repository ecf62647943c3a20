"""The preference cell on a model small enough for NumPy: its sums, its denominators, filler, and packed rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mindspore import ops
from toy import LENGTH, Backbone, batch, head, logps, packed, pairs, units

from mindrlhf.cells.preference import SUMS, PreferenceCell
from mindrlhf.data.records import Pair
from mindrlhf.losses import bind

BETA = 0.25
PAIRS = pairs(5)
CHOSEN_TOKENS = sum(len(pair.chosen_ids) for pair in PAIRS)

pytestmark = pytest.mark.usefixtures("cpu")


def cell(loss: str = "sigmoid", explicit: bool = True, **layout: int) -> PreferenceCell:
    bound = bind(loss, beta=BETA if loss == "sigmoid" else None)
    return PreferenceCell(
        Backbone(),
        head(),
        bound.function,
        per_token=bound.per_token,
        beta=BETA,
        seq_length=LENGTH,
        explicit_reduction=explicit,
        **{**units(), **layout},
    )


def by_hand(some: list[Pair]) -> tuple[dict[str, float], np.ndarray]:
    """The sums over pairs, the loss not yet divided, and the log-probs (B,2), in float64."""
    scored = [[logps(pair.prompt_ids, answer) for answer in (pair.chosen_ids, pair.rejected_ids)] for pair in some]
    sums = np.array([[each.sum() for each, _ in answers] for answers in scored])
    means = np.array([[each.mean() for each, _ in answers] for answers in scored])
    logits = np.array([[logit.sum() for _, logit in answers] for answers in scored])
    reference = np.array([[pair.ref_chosen_logps, pair.ref_rejected_logps] for pair in some])
    rewards = BETA * (sums - reference)
    figures = [
        np.log1p(np.exp(rewards[:, 1] - rewards[:, 0])),
        rewards[:, 0],
        rewards[:, 1],
        rewards[:, 0] > rewards[:, 1],
        sums[:, 0],
        sums[:, 1],
        means[:, 0] > means[:, 1],
        logits[:, 0],
        logits[:, 1],
    ]
    return {name: float(figure.sum()) for name, figure in zip(SUMS, figures)}, sums


def by_name(sums: Any) -> dict[str, float]:
    return dict(zip(SUMS, sums.asnumpy().tolist()))


@pytest.mark.parametrize("explicit", [True, False])
def test_sums_and_log_probs(explicit: bool) -> None:
    expected, theirs = by_hand(PAIRS)
    assert 0 < expected["rewards/accuracies"] < 5
    assert 0 < expected["logps/accuracies_per_token"] < 5
    expected["loss"] /= 20
    loss, sums, ours = cell(explicit=explicit)(*batch([*PAIRS, None], 20, 1))
    assert by_name(sums) == pytest.approx(expected, rel=1e-5)
    assert float(loss) == pytest.approx(expected["loss"], rel=1e-5)
    np.testing.assert_allclose(ours.asnumpy()[:-1], theirs, rtol=1e-5)


def test_parts_of_a_batch_add_up_to_it() -> None:
    model = cell()
    whole = model(*batch(PAIRS, 5, CHOSEN_TOKENS))[1].asnumpy()
    parts = [[*PAIRS[start : start + 2], None][:2] for start in (0, 2, 4)]
    added = sum(model(*batch(part, 5, CHOSEN_TOKENS))[1].asnumpy() for part in parts)
    np.testing.assert_allclose(added, whole, rtol=1e-6)


def test_a_loss_per_token_is_divided_by_the_chosen_tokens() -> None:
    loss, sums, _ = cell("sft")(*batch([*PAIRS, None], 5, CHOSEN_TOKENS))
    expected, _ = by_hand(PAIRS)
    assert float(loss) == pytest.approx(-expected["logps/chosen"] / CHOSEN_TOKENS, rel=1e-5)
    assert by_name(sums)["rewards/chosen"] == pytest.approx(expected["rewards/chosen"], rel=1e-5)


def run(model: PreferenceCell, fields: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The sums, and the gradient of every parameter."""
    parameters = model.trainable_params()
    (_, sums, _), found = ops.value_and_grad(model, None, parameters, has_aux=True)(*fields)
    return by_name(sums), {parameter.name: each.asnumpy() for parameter, each in zip(parameters, found)}


def assert_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], bound: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        np.testing.assert_allclose(ours[name], gradient, rtol=0, atol=bound * np.abs(gradient).max(), err_msg=name)


def test_filler_changes_no_gradient() -> None:
    model = cell()
    (_, filled), (_, plain) = (run(model, batch(some, 2, 1)) for some in ([PAIRS[0], None, PAIRS[1]], PAIRS[:2]))
    assert_equal(filled, plain, 1e-6)


def test_a_packed_row_is_the_padded_ones() -> None:
    """The prompt stands once, and the cell neither knows nor cares."""
    padded_sums, theirs = run(cell(), batch(PAIRS[:1], 1, 1))
    packed_sums, ours = run(cell(rows_per_unit=1), packed(PAIRS[0], 1, 1))
    assert packed_sums == pytest.approx(padded_sums, rel=1e-5)
    assert_equal(ours, theirs, 1e-5)
