"""Every loss with round numbers, as its docstring derives them on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
from run_losses import Given, gradients_of, pairs_of, terms_of

from mindrlhf.losses import get_loss


@pytest.mark.parametrize(
    ("name", "loss", "slope"),
    [
        ("sigmoid", np.log(2), 0.05),
        ("hinge", 1.0, 0.1),
        ("ipo", 25, 10),
        ("aot", np.log(2), 0.05),
        ("aot_unpaired", np.log(2), 0.05),
        ("apo_zero", 1.0, 0.025),
        ("discopop", 0.5 * np.log(2) + 0.5, 0.1 * (0.25 + 0.5 - 5 * (1 - np.log(2)))),
        ("kto_pair", 0.5, 0.025),
    ],
)
def test_first_step(name: str, loss: float, slope: float) -> None:
    """Policy = reference, so x_c = x_r = 0. sigmoid: -log(1/2), slope beta / 2. hinge: 1, slope beta.
    ipo: (0 - 1 / 0.2)^2 = 25, slope 2 * 5 / 1 token. aot: one pair, as sigmoid. apo_zero: 1/2 + 1/2, slope beta / 4.
    discopop: m = 1/2, so (log 2 + 1) / 2; by h -(1/4 + 1/2) + m' (1 - log 2), m' = 1 / (4 tau) = 5.
    kto_pair: (1/2 + 1/2) / 2; half of beta / 4 through each answer's own term, half through the other's mean."""
    given = pairs_of(chosen_logps=[-7.5], rejected_logps=[-9.25], ref_chosen_logps=[-7.5], ref_rejected_logps=[-9.25])
    chosen, rejected = gradients_of(name, given)
    assert terms_of(name, given) == pytest.approx([loss])
    assert chosen == pytest.approx([-slope])
    assert rejected == pytest.approx([slope])


def log_ratio_three(beta: float = 0.1) -> Given:
    """beta x_c = ln 3 and x_r = 0: sigma(h) = 3/4 and sigma(-h) = 1/4."""
    return pairs_of(chosen_logps=[math.log(3) / beta - 40], ref_chosen_logps=[-40.0])


def test_sigmoid_by_hand() -> None:
    """-log(3/4) = 0.28768; with ls 1/4: -3/4 log(3/4) - 1/4 log(1/4) = 0.21576 + 0.34657 = 0.56234."""
    assert terms_of("sigmoid", log_ratio_three()) == pytest.approx([0.287682], rel=1e-5)
    assert terms_of("sigmoid", log_ratio_three(), label_smoothing=0.25) == pytest.approx([0.562335], rel=1e-5)


def test_cdpo_by_hand() -> None:
    """ls 1/10: -0.9 log(3/4) - 0.1 log(1/4) = 0.25891 + 0.13863 = 0.39754."""
    assert terms_of("cdpo", log_ratio_three()) == pytest.approx([0.397543], rel=1e-5)


def test_robust_by_hand() -> None:
    """ls 1/4: (-3/4 log(3/4) + 1/4 log(1/4)) / (1/2) = (0.21576 - 0.34657) * 2 = -0.26162."""
    assert terms_of("robust", log_ratio_three(), label_smoothing=0.25) == pytest.approx([-0.261624], rel=1e-5)


def test_exo_pair_by_hand() -> None:
    """ls 1/4: the policy prefers as the labels do, so 0. ls 1/8: 3/4 log(6/7) + 1/4 log 2 = -0.11561 + 0.17329."""
    assert terms_of("exo_pair", log_ratio_three(), label_smoothing=0.25) == pytest.approx([0.0], abs=1e-6)
    assert terms_of("exo_pair", log_ratio_three(), label_smoothing=0.125) == pytest.approx([0.057674], rel=1e-4)


def test_nca_pair_by_hand() -> None:
    """-log(3/4) - (log(1/4) + log(1/2)) / 2 = 0.28768 + (1.38629 + 0.69315) / 2 = 1.32740."""
    assert terms_of("nca_pair", log_ratio_three()) == pytest.approx([1.327403], rel=1e-5)


def test_bco_pair_by_hand() -> None:
    """-log(3/4) - log(1/2) = 0.28768 + 0.69315 = 0.98083."""
    assert terms_of("bco_pair", log_ratio_three()) == pytest.approx([0.980829], rel=1e-5)


def test_apo_by_hand() -> None:
    """zero: 1 - 3/4 + 1/2 = 3/4. down: 3/4 + 1 - 3/4 = 1."""
    assert terms_of("apo_zero", log_ratio_three()) == pytest.approx([0.75])
    assert terms_of("apo_down", log_ratio_three()) == pytest.approx([1.0])


def test_discopop_by_hand() -> None:
    """tau 1: m = 3/4, exp(-h) = 1/3, so 1/4 * 0.28768 + 1/3 * 3/4 = 0.07192 + 0.25."""
    assert terms_of("discopop", log_ratio_three(), discopop_tau=1.0) == pytest.approx([0.321920], rel=1e-5)


THREE_LESS_ONE = pairs_of(
    chosen_logps=[-4.0], ref_chosen_logps=[-7.0], rejected_logps=[-6.0], ref_rejected_logps=[-5.0]
)


def test_hinge_by_hand() -> None:
    """x_c = 3, x_r = -1. beta 0.1: 1 - 0.4 = 0.6. beta 0.5: 1 - 2 is below 0, and so is its gradient 0."""
    assert terms_of("hinge", THREE_LESS_ONE) == pytest.approx([0.6])
    assert terms_of("hinge", THREE_LESS_ONE, beta=0.5).tolist() == [0.0]
    assert [float(each[0]) for each in gradients_of("hinge", THREE_LESS_ONE, beta=0.5)] == [0.0, 0.0]


def test_sppo_hard_by_hand() -> None:
    """beta 1/4, so 1 / (2 beta) = 2: (3 - 2)^2 + (-1 + 2)^2 = 2."""
    assert terms_of("sppo_hard", THREE_LESS_ONE, beta=0.25) == pytest.approx([2.0])


SIX_IN_THREE = pairs_of(
    chosen_logps=[-4.0],
    ref_chosen_logps=[-10.0],
    chosen_counts=[3.0],
    rejected_logps=[-9.0],
    ref_rejected_logps=[-5.0],
    rejected_counts=[4.0],
)


def test_ipo_by_hand() -> None:
    """x_c = 6 in 3 tokens, x_r = -4 in 4: (2 + 1 - 1 / 0.2)^2 = 4."""
    assert terms_of("ipo", SIX_IN_THREE) == pytest.approx([4.0])


def test_sigmoid_norm_by_hand() -> None:
    """2 + 1 = 3 as above; with beta = ln 3 / 3 h = ln 3, so -log(3/4)."""
    assert terms_of("sigmoid_norm", SIX_IN_THREE, beta=math.log(3) / 3) == pytest.approx([0.287682], rel=1e-5)


FOUR_AND_TWENTY = pairs_of(chosen_logps=[-4.0], chosen_counts=[2.0], rejected_logps=[-20.0], rejected_counts=[4.0])


def test_simpo_by_hand() -> None:
    """-2 and -5 per token: 2 * 3 - gamma; with gamma 6 - ln 3 h = ln 3, and the rest is as for sigmoid."""
    gamma = 6 - math.log(3)
    assert terms_of("simpo", FOUR_AND_TWENTY, simpo_gamma=gamma) == pytest.approx([0.287682], rel=1e-5)
    smooth = terms_of("simpo", FOUR_AND_TWENTY, simpo_gamma=gamma, label_smoothing=0.25)
    assert smooth == pytest.approx([0.562335], rel=1e-5)


def test_cpo_by_hand() -> None:
    """beta = ln 3 / 16: h = ln 3, so -log(3/4) for the pair; 1/2 * 4 for the tokens."""
    by_pairs, by_tokens = terms_of("cpo", FOUR_AND_TWENTY, beta=math.log(3) / 16, cpo_alpha=0.5)
    assert by_pairs == pytest.approx([0.287682], rel=1e-5)
    assert by_tokens.tolist() == [2.0]


def test_orpo_by_hand() -> None:
    """p_c = 3/4 and p_r = 1/2: odds 3 and 1, so -beta log(3/4); the tokens have 2 log(4/3)."""
    given = pairs_of(
        chosen_logps=[2 * math.log(3 / 4)], chosen_counts=[2.0], rejected_logps=[math.log(1 / 2)], rejected_counts=[1.0]
    )
    by_pairs, by_tokens = terms_of("orpo", given, beta=0.5)
    assert by_pairs == pytest.approx([0.143841], rel=1e-5)
    assert by_tokens == pytest.approx([0.575364], rel=1e-5)


def test_sft_by_hand() -> None:
    """-12 in 4 tokens and -8 in 6: terms 12 and 8, 20 in 10 tokens, a mean of 2."""
    terms = terms_of("sft", pairs_of(chosen_logps=[-12.0, -8.0], chosen_counts=[4.0, 6.0]))
    assert terms.tolist() == [12.0, 8.0]
    assert terms.sum() / 10 == 2.0
    assert get_loss("sft").denominators == ("chosen_tokens",)


def test_aot_unpaired_by_hand() -> None:
    """x_c = 2, 1 and x_r = -3, 1: sorted 1, 2 and -3, 1, so h = 4 beta for the second pair and 1 beta for the first."""
    given = pairs_of(chosen_logps=[2.0, 1.0], rejected_logps=[-3.0, 1.0])
    terms = terms_of("aot_unpaired", given, beta=math.log(3))
    assert terms == pytest.approx([math.log(4 / 3), math.log(82 / 81)], rel=1e-4)


def test_aot_by_hand() -> None:
    """Leads 5 and 1 of the policy, 2 and 4 of the reference: 5 - 4 for the first pair, 1 - 2 for the second."""
    given = pairs_of(chosen_logps=[5.0, 1.0], ref_chosen_logps=[2.0, 4.0])
    assert terms_of("aot", given, beta=math.log(3)) == pytest.approx([math.log(4 / 3), math.log(4)], rel=1e-5)


def test_kto_pair_by_hand() -> None:
    """x_c = 2, 4 with mean 3; x_r = -1, -3 with a mean below 0, which counts as 0. beta = ln 3:
    1 - sigma(beta 2) = 1/10, 1 - sigma(beta 4) = 1/82; 1 - sigma(beta 4) = 1/82, 1 - sigma(beta 6) = 1/730."""
    given = pairs_of(chosen_logps=[2.0, 4.0], rejected_logps=[-1.0, -3.0])
    expected = [(1 / 10 + 1 / 82) / 2, (1 / 82 + 1 / 730) / 2]
    assert terms_of("kto_pair", given, beta=math.log(3)) == pytest.approx(expected, rel=1e-5)
