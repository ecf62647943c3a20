"""The preference cell on a model small enough for NumPy: its sums, its denominators, filler, and packed rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mindspore import ops
from toy import SEMI_AUTO, VOCABULARY, batch, cell_of, logps, packed, pairs, values

from mindrlhf.cells.preference import SUMS, PreferenceCell
from mindrlhf.data.records import Pair
from mindrlhf.losses import bind_all, objective
from mindrlhf.parallel.layout import ONE_WORKER, Layout

BETA = 0.25
PAIRS = pairs(5)
CHOSEN_TOKENS = sum(len(pair.chosen_ids) for pair in PAIRS)

pytestmark = pytest.mark.usefixtures("cpu")


def cell(*losses: str, layout: Layout = ONE_WORKER, rows_per_unit: int = 2, **settings: Any) -> PreferenceCell:
    entries = [{"type": loss, **({"beta": BETA} if loss == "sigmoid" else {})} for loss in losses or ("sigmoid",)]
    return cell_of(objective(bind_all(entries), **settings), layout, rows_per_unit=rows_per_unit)


def confidence(prompt: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """log p - log sum over the vocabulary of p^2, of each token of the answer."""
    by_token = [
        [logps(prompt, [*answer[:place], token])[0][-1] for token in range(VOCABULARY)] for place in range(len(answer))
    ]
    return logps(prompt, answer)[0] - np.log(np.exp(2 * np.array(by_token)).sum(-1))


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
        np.zeros(len(some)),
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


@pytest.mark.parametrize("layout", [ONE_WORKER, SEMI_AUTO], ids=["whole", "semi-auto"])
def test_sums_and_log_probs(layout: Layout) -> None:
    expected, theirs = by_hand(PAIRS)
    assert 0 < expected["rewards/accuracies"] < 5
    assert 0 < expected["logps/accuracies_per_token"] < 5
    expected["loss/pairs"] /= 20
    loss, sums, ours, figures = cell(layout=layout)(*batch([*PAIRS, None], 20, 1))
    assert by_name(sums) == pytest.approx(expected, rel=1e-5)
    assert float(loss) == pytest.approx(expected["loss/pairs"], rel=1e-5)
    added = dict(zip(SUMS, figures.asnumpy().sum(0, dtype=np.float64)))
    assert added == pytest.approx({**expected, "loss/pairs": 20 * expected["loss/pairs"]}, rel=1e-5)
    np.testing.assert_allclose(ours.asnumpy()[:-1], theirs, rtol=1e-5)


def test_parts_of_a_batch_add_up_to_it() -> None:
    model = cell()
    whole = model(*batch(PAIRS, 5, CHOSEN_TOKENS))[1].asnumpy()
    parts = [[*PAIRS[start : start + 2], None][:2] for start in (0, 2, 4)]
    added = sum(model(*batch(part, 5, CHOSEN_TOKENS))[1].asnumpy() for part in parts)
    np.testing.assert_allclose(added, whole, rtol=1e-6)


def test_a_loss_per_token_is_divided_by_the_chosen_tokens() -> None:
    loss, sums, *_ = cell("sft")(*batch([*PAIRS, None], 5, CHOSEN_TOKENS))
    expected, _ = by_hand(PAIRS)
    assert float(loss) == pytest.approx(-expected["logps/chosen"] / CHOSEN_TOKENS, rel=1e-5)
    assert by_name(sums)["loss/chosen_tokens"] == float(loss)


def test_two_losses_have_two_denominators() -> None:
    loss, *_ = cell("sigmoid", "sft")(*batch([*PAIRS, None], 5, CHOSEN_TOKENS))
    expected, _ = by_hand(PAIRS)
    both = expected["loss/pairs"] / 5 - expected["logps/chosen"] / CHOSEN_TOKENS
    assert float(loss) == pytest.approx(both, rel=1e-5)


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_rewards_of_a_loss_per_token_are_per_token(name: str) -> None:
    """As TRL logs them; sums would measure the length, and the reference has no part in the loss."""
    model = cell(name)
    _, sums, *_ = model(*batch(PAIRS, 5, CHOSEN_TOKENS))
    means = [[logps(pair.prompt_ids, ids)[0].mean() for ids in (pair.chosen_ids, pair.rejected_ids)] for pair in PAIRS]
    chosen, rejected = np.array(means).sum(0) * model.beta
    assert by_name(sums)["rewards/chosen"] == pytest.approx(chosen, rel=1e-5)
    assert by_name(sums)["rewards/rejected"] == pytest.approx(rejected, rel=1e-5)


@pytest.mark.parametrize("layout", [ONE_WORKER, SEMI_AUTO], ids=["whole", "semi-auto"])
def test_tokens_beyond_the_shorter_answer_count_less(layout: Layout) -> None:
    """LD-DPO: a log-prob is that of the shared length and ld_alpha times the rest, of policy and reference."""
    alpha = 0.25
    shared = [min(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in PAIRS]
    sums = np.array(
        [
            [
                scored[:length].sum() + alpha * scored[length:].sum()
                for scored in (logps(pair.prompt_ids, ids)[0] for ids in (pair.chosen_ids, pair.rejected_ids))
            ]
            for pair, length in zip(PAIRS, shared)
        ]
    )
    reference = np.array(
        [
            [
                part + alpha * (whole - part)
                for whole, part in (
                    (pair.ref_chosen_logps, pair.ref_chosen_shared_logps),
                    (pair.ref_rejected_logps, pair.ref_rejected_shared_logps),
                )
            ]
            for pair in PAIRS
        ]
    )
    rewards = BETA * (sums - reference)
    loss, found, raw, _ = cell(layout=layout, ld_alpha=alpha)(*batch([*PAIRS, None], 5, 1))
    assert float(loss) == pytest.approx(np.log1p(np.exp(rewards[:, 1] - rewards[:, 0])).mean(), rel=1e-5)
    assert by_name(found)["logps/chosen"] == pytest.approx(sums[:, 0].sum(), rel=1e-5)
    assert by_name(found)["rewards/rejected"] == pytest.approx(rewards[:, 1].sum(), rel=1e-5)
    np.testing.assert_allclose(raw.asnumpy()[:-1], by_hand(PAIRS)[1], rtol=1e-5)


@pytest.mark.parametrize("layout", [ONE_WORKER, SEMI_AUTO], ids=["whole", "semi-auto"])
def test_pairs_weigh_what_the_policy_thinks_of_them(layout: Layout) -> None:
    """WPO: exp of the mean over tokens of log p - log sum p^2, of both answers, and no gradient through it."""
    model = cell(layout=layout, use_weighting=True)
    terms = np.array(
        [
            np.prod([np.exp(confidence(pair.prompt_ids, ids).mean()) for ids in (pair.chosen_ids, pair.rejected_ids)])
            for pair in PAIRS
        ]
    )
    plain = cell(layout=layout)
    fields = batch(PAIRS, 5, 1)
    unweighted = plain(*fields)[3].asnumpy()[:, 0]
    np.testing.assert_allclose(model(*fields)[3].asnumpy()[:, 0], unweighted * terms, rtol=3e-5)
    one = batch(PAIRS[:1], 1, 1)
    (_, ours), (_, theirs) = run(model, one), run(plain, one)
    assert_equal(ours, {name: gradient * terms[0] for name, gradient in theirs.items()}, 3e-5)


def run(model: PreferenceCell, fields: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The sums, and the gradient of every parameter."""
    parameters = model.trainable_params()
    (_, sums, *_), found = ops.value_and_grad(model, None, parameters, has_aux=True)(*fields)
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


@pytest.mark.parametrize("layout", [ONE_WORKER, SEMI_AUTO], ids=["whole", "semi-auto"])
def test_a_load_balance_loss_is_minimised_and_is_no_part_of_the_loss(layout: Layout) -> None:
    coefficient = 0.5
    found = objective(bind_all([{"type": "sigmoid", "beta": BETA}]))
    plain, routed = cell_of(found, layout), cell_of(found, layout, aux_loss_coef=coefficient)
    fields = batch([*PAIRS[:3], None], 5, 1)
    real = float((fields[2].asnumpy() > 0).mean())
    norm = values()["norm.weight"].astype(np.float64)
    balance = real * (norm**2).sum()
    loss, sums, *_ = routed(*fields)
    # Three of the batch's five pairs are in this cell.
    assert float(loss) == pytest.approx(float(plain(*fields)[0]) + coefficient * balance * 3 / 5, rel=1e-5)
    assert sums.shape == (routed.num_sums,) == (len(SUMS) + 1,)
    assert float(sums[-1]) == pytest.approx(balance * 3, rel=1e-5)
    np.testing.assert_allclose(sums.asnumpy()[:-1], plain(*fields)[1].asnumpy(), rtol=1e-5)
    (_, ours), (_, theirs) = run(routed, fields), run(plain, fields)
    theirs["norm.weight"] = theirs["norm.weight"] + coefficient * real * 2 * norm * 3 / 5
    assert_equal(ours, theirs, 1e-5)
