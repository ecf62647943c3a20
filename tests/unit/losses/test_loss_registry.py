from __future__ import annotations

import pytest

from mindrlhf.losses import bind, get_loss, loss_names, preference_loss
from mindrlhf.losses.preference import Answers, Tensor, hinge, sigmoid


def test_losses_of_this_version() -> None:
    table = {name: (sorted(get_loss(name).needs), get_loss(name).denominator) for name in loss_names()}
    assert table == {
        "hinge": (["reference"], "pairs"),
        "ipo": (["counts", "reference"], "pairs"),
        "robust": (["reference"], "pairs"),
        "sft": ([], "chosen_tokens"),
        "sigmoid": (["reference"], "pairs"),
        "sigmoid_norm": (["counts", "reference"], "pairs"),
    }


def test_parameters_are_the_keyword_arguments() -> None:
    assert {name: get_loss(name).parameters for name in loss_names()} == {
        "hinge": {"beta": 0.1},
        "ipo": {"beta": 0.1},
        "robust": {"beta": 0.1, "label_smoothing": 0.1},
        "sft": {},
        "sigmoid": {"beta": 0.1, "label_smoothing": 0.0},
        "sigmoid_norm": {"beta": 0.1},
    }
    assert get_loss("hinge").function is hinge


def test_name_clash_raises() -> None:
    def other(policy: Answers, reference: Answers, counts: Answers) -> Tensor:
        return policy[0]

    with pytest.raises(ValueError, match="two losses are called sigmoid: sigmoid and other"):
        preference_loss("sigmoid", source="none")(other)
    assert get_loss("sigmoid").function is sigmoid


def test_unknown_loss_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="no loss is called 'sigmod'; did you mean 'sigmoid'"):
        get_loss("sigmod")


def test_none_is_the_default_of_the_loss() -> None:
    assert bind("robust", beta=None, label_smoothing=None).parameters == {"beta": 0.1, "label_smoothing": 0.1}
    assert bind("sigmoid", beta=0.5, label_smoothing=None).parameters == {"beta": 0.5, "label_smoothing": 0.0}
    assert bind("hinge", beta=0.2, label_smoothing=None).parameters == {"beta": 0.2}


def test_what_a_trainer_asks_of_a_bound_loss() -> None:
    sft, ipo = bind("sft"), bind("ipo", beta=0.5)
    assert (sft.beta, sft.per_token, sft.needs_reference) == (0.1, True, False)
    assert (ipo.beta, ipo.per_token, ipo.needs_reference) == (0.5, False, True)


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("hinge", {"label_smoothing": 0.1}, r"the loss hinge has no label_smoothing \(it has beta\)"),
        ("sft", {"beta": 0.1}, r"the loss sft has no beta \(it has no parameter\)"),
        ("sigmoid", {"label_smoothing": 0.5}, "below 0.5, not 0.5"),
        ("robust", {"label_smoothing": -0.1}, "at least 0 and below 0.5, not -0.1"),
        ("sigmoid", {"label_smoothing": float("nan")}, "not nan"),
        ("ipo", {"beta": 0.0}, "beta must be above 0, not 0.0"),
    ],
)
def test_parameters_are_checked(name: str, given: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        bind(name, **given)
