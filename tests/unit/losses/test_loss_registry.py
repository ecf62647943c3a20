from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_losses import both_terms, pairs_of, slopes_of

import mindrlhf.losses
from mindrlhf.losses import bind, bind_all, get_loss, loss_names, objective, preference_loss
from mindrlhf.losses.__main__ import listing
from mindrlhf.losses.divergence import DIVERGENCES
from mindrlhf.losses.objective import SETTINGS
from mindrlhf.losses.preference import Answers, Tensor, hinge, sigmoid
from mindrlhf.losses.registry import alias

RATIOS = ("ratios",)
PAIRS, TOKENS = ("pairs",), ("chosen_tokens",)


def test_losses_of_this_version() -> None:
    assert {name: (get_loss(name).reads, get_loss(name).denominators) for name in loss_names()} == {
        "aot": (("policy", "reference", "mask"), PAIRS),
        "aot_unpaired": (("ratios", "mask"), PAIRS),
        "apo_down": (RATIOS, PAIRS),
        "apo_zero": (RATIOS, PAIRS),
        "bco_pair": (RATIOS, PAIRS),
        "cdpo": (RATIOS, PAIRS),
        "cpo": (("policy",), PAIRS + TOKENS),
        "discopop": (RATIOS, PAIRS),
        "exo_pair": (RATIOS, PAIRS),
        "hinge": (RATIOS, PAIRS),
        "ipo": (("ratios", "counts"), PAIRS),
        "kto_pair": (("ratios", "mask"), PAIRS),
        "nca_pair": (RATIOS, PAIRS),
        "orpo": (("policy", "counts"), PAIRS + TOKENS),
        "robust": (RATIOS, PAIRS),
        "sft": (("policy",), TOKENS),
        "sigmoid": (RATIOS, PAIRS),
        "sigmoid_norm": (("ratios", "counts"), PAIRS),
        "simpo": (("policy", "counts"), PAIRS),
        "sppo_hard": (RATIOS, PAIRS),
    }


def test_parameters_are_the_keyword_arguments() -> None:
    assert {name: get_loss(name).parameters for name in loss_names()} == {
        "aot": {"beta": 0.1, "label_smoothing": 0.0},
        "aot_unpaired": {"beta": 0.1, "label_smoothing": 0.0},
        "apo_down": {"beta": 0.1},
        "apo_zero": {"beta": 0.1},
        "bco_pair": {"beta": 0.1},
        "cdpo": {"beta": 0.1, "label_smoothing": 0.1},
        "cpo": {"beta": 0.1, "cpo_alpha": 1.0},
        "discopop": {"beta": 0.1, "discopop_tau": 0.05},
        "exo_pair": {"beta": 0.1, "label_smoothing": 0.001},
        "hinge": {"beta": 0.1},
        "ipo": {"beta": 0.1},
        "kto_pair": {"beta": 0.1},
        "nca_pair": {"beta": 0.1},
        "orpo": {"beta": 0.1},
        "robust": {"beta": 0.1, "label_smoothing": 0.1},
        "sft": {},
        "sigmoid": {"beta": 0.1, "label_smoothing": 0.0},
        "sigmoid_norm": {"beta": 0.1},
        "simpo": {"beta": 2.0, "simpo_gamma": 1.0, "label_smoothing": 0.0},
        "sppo_hard": {"beta": 0.1},
    }
    assert get_loss("hinge").function is hinge


def test_names_of_the_package() -> None:
    assert sorted(mindrlhf.losses.__all__) == [
        "BoundLoss",
        "LossSpec",
        "Objective",
        "bind",
        "bind_all",
        "get_loss",
        "loss_names",
        "objective",
        "preference",
        "preference_loss",
    ]


def test_who_needs_a_reference_and_who_a_batch() -> None:
    assert {name for name in loss_names() if not get_loss(name).needs_reference} == {"cpo", "orpo", "sft", "simpo"}
    assert {name for name in loss_names() if get_loss(name).over_batch} == {"aot", "aot_unpaired", "kto_pair"}
    assert all("micro-batch" in (get_loss(name).function.__doc__ or "") for name in ("aot", "aot_unpaired", "kto_pair"))


def test_name_clash_raises() -> None:
    def other(policy: Answers, *, beta: float = 0.1) -> Tensor:
        return policy[0]

    with pytest.raises(ValueError, match="two losses are called sigmoid: sigmoid and other"):
        preference_loss("sigmoid", source="none")(other)
    assert get_loss("sigmoid").function is sigmoid


def test_an_alias_is_the_loss_with_other_defaults() -> None:
    assert get_loss("cdpo").function is sigmoid
    assert get_loss("cdpo").name == "cdpo"
    assert get_loss("sigmoid").parameters["label_smoothing"] == 0.0
    assert bind("cdpo", label_smoothing=0.2).parameters == {"beta": 0.1, "label_smoothing": 0.2}
    with pytest.raises(ValueError, match="two losses are called hinge"):
        alias("hinge", "sigmoid", source="none")
    with pytest.raises(ValueError, match="the loss hinge has no label_smoothing"):
        alias("soft_hinge", "hinge", source="none", label_smoothing=0.1)


def no_order(counts: Answers, ratios: Answers) -> Tensor:
    return ratios[0]


def no_input(x: Answers) -> Tensor:
    return x[0]


def nothing(*, beta: float = 0.1) -> Tensor:
    raise AssertionError


def no_default(ratios: Answers, *, beta: float) -> Tensor:
    return ratios[0]


def no_number(ratios: Answers, *, kind: str = "a") -> Tensor:
    return ratios[0]


def fine(ratios: Answers, *, beta: float = 0.1) -> Tensor:
    return ratios[0]


@pytest.mark.parametrize(
    ("function", "words", "sentence"),
    [
        (
            no_order,
            {},
            r"the loss new takes \(counts, ratios\); .* ratios, policy, reference, counts, mask, in this order",
        ),
        (no_input, {}, r"the loss new takes \(x\)"),
        (nothing, {}, r"the loss new takes \(\)"),
        (no_default, {}, "the loss new gives its parameter beta no number as default"),
        (no_number, {}, "the loss new gives its parameter kind no number"),
        (fine, {"denominator": "tokens"}, "the loss new has denominator='tokens'"),
        (fine, {"denominator": ("chosen_tokens", "pairs")}, "the loss new has denominator="),
        (fine, {"name": "new.loss"}, "a loss cannot be called 'new.loss'"),
    ],
)
def test_what_a_loss_may_look_like(function: Any, words: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        preference_loss(**{"name": "new", "source": "none", **words})(function)
    assert "new" not in loss_names()


def test_unknown_loss_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="no loss is called 'sigmod'; did you mean 'sigmoid'"):
        get_loss("sigmod")


def test_none_is_the_default_of_the_loss() -> None:
    assert bind("robust", beta=None, label_smoothing=None).parameters == {"beta": 0.1, "label_smoothing": 0.1}
    assert bind("sigmoid", beta=0.5, label_smoothing=None).parameters == {"beta": 0.5, "label_smoothing": 0.0}
    assert bind("hinge", beta=0.2, label_smoothing=None).parameters == {"beta": 0.2}


def test_what_a_trainer_asks_of_a_bound_loss() -> None:
    sft, ipo = bind("sft"), bind("ipo", beta=0.5)
    assert (sft.beta, sft.needs_reference) == (0.1, False)
    assert (ipo.beta, ipo.needs_reference) == (0.5, True)


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("hinge", {"label_smoothing": 0.1}, r"the loss hinge has no label_smoothing \(it has beta\)"),
        ("sft", {"beta": 0.1}, r"the loss sft has no beta \(it has no parameter\)"),
        ("sigmoid", {"label_smoothing": 0.5}, "below 0.5, not 0.5"),
        ("robust", {"label_smoothing": -0.1}, "at least 0 and below 0.5, not -0.1"),
        ("sigmoid", {"label_smoothing": float("nan")}, "not nan"),
        ("ipo", {"beta": 0.0}, "beta must be above 0, not 0.0"),
        ("ipo", {"beta": float("inf")}, "beta must be finite, not inf"),
        ("ipo", {"beta": "0.1"}, "beta must be above 0, not 0.1"),
        ("ipo", {"beta": True}, "beta must be above 0, not True"),
        ("simpo", {"simpo_gamma": -1.0}, "simpo_gamma is a margin, at least 0, not -1.0"),
        ("cpo", {"cpo_alpha": -0.5}, "cpo_alpha is a weight, at least 0, not -0.5"),
        ("discopop", {"discopop_tau": 0.0}, "discopop_tau is a temperature, above 0, not 0.0"),
        ("exo_pair", {"label_smoothing": 0.0}, "exo_pair needs a label_smoothing above 0, not 0.0; its own is 0.001"),
    ],
)
def test_parameters_are_checked(name: str, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        bind(name, **given)


def test_wide_values_go_to_losses_that_have_them() -> None:
    entries = [{"type": "sigmoid", "beta": 0.3}, {"type": "sft", "weight": 0.1}, {"type": "simpo", "beta": None}]
    bound = bind_all(entries, beta=0.5, label_smoothing=0.2, simpo_gamma=None)
    assert [(loss.spec.name, weight) for loss, weight in bound] == [("sigmoid", 1.0), ("sft", 0.1), ("simpo", 1.0)]
    assert [loss.parameters for loss, _ in bound] == [
        {"beta": 0.3, "label_smoothing": 0.2},
        {},
        {"beta": 0.5, "simpo_gamma": 1.0, "label_smoothing": 0.2},
    ]


@pytest.mark.parametrize(
    ("entries", "wide", "sentence"),
    [
        ([], {}, "the list of losses is empty"),
        ([{"weight": 1.0}], {}, r"has no type: \{'weight': 1.0\}; write \{type: sigmoid\}"),
        ([{"type": "sigmoid", "weight": 0}], {}, "the weight of the loss sigmoid is 0; give a number other than 0"),
        ([{"type": "sigmoid", "weight": float("nan")}], {}, "the weight of the loss sigmoid is nan"),
        ([{"type": "sigmoid", "weight": None}], {}, "the weight of the loss sigmoid is None"),
        ([{"type": "sigmoid", "weight": True}], {}, "the weight of the loss sigmoid is True"),
        ([{"type": "sigmoid", "gamma": 1}], {}, r"the loss sigmoid has no gamma \(it has beta and label_smoothing\)"),
        ([{"type": "sft", "beta": 1}], {}, "the loss sft has no beta"),
        ([{"type": "sigmoid"}, {"type": "sft"}], {"simpo_gamma": 0.5}, "simpo_gamma is 0.5, and sigmoid and sft has"),
        ([{"type": "sigmoid"}], {"beta": -1.0}, "beta must be above 0, not -1.0"),
        ([{"type": "sigmod"}], {}, "did you mean 'sigmoid'"),
    ],
)
def test_a_list_is_checked(entries: list[dict[str, Any]], wide: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        bind_all(entries, **wide)


OWN = '''
from mindspore import ops
from mindrlhf.losses import preference_loss

@preference_loss("{name}", source="this file")
def {name}(ratios, mask, *, beta=0.1, scale=2.0):
    """scale |x_c - x_r| beta"""
    return scale * ops.abs(beta * (ratios[0] - ratios[1]))
'''


def test_a_loss_in_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    module = f"own_losses_{mode}"
    (tmp_path / f"{module}.py").write_text(OWN.format(name=f"mine_{mode}"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(loss_names())
    try:
        bound = bind_all([{"type": f"{module}.mine_{mode}", "scale": 3.0}])
        what = objective(bound)
        assert (what.name, what.over_batch, what.needs_reference) == (f"mine_{mode}", True, True)
        given = pairs_of(chosen_logps=[5.0], rejected_logps=[-5.0])
        assert both_terms(what, given)[0] == pytest.approx([3.0])
        assert slopes_of(what, given)[0] == pytest.approx(np.array([[0.3, -0.3]]))
        assert get_loss(f"{module}.mine_{mode}") is get_loss(f"mine_{mode}")
    finally:
        for name in set(loss_names()) - before:
            del mindrlhf.losses.registry._LOSSES[name]


def test_the_example_of_the_page_on_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """x_c = 5, x_r = 0, beta 0.1 and |y_c| = 3, |y_r| = 2: -log sigma(0.5) + 0.02 / 4."""
    page = (Path(mindrlhf.__file__).parents[1] / "docs" / "losses.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0].replace('"my_loss"', f'"my_loss_{mode}"')
    (tmp_path / f"my_losses_{mode}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        what = objective(bind_all([{"type": f"my_losses_{mode}.my_loss_{mode}", "slope": 0.02}], beta=0.1))
        given = pairs_of(chosen_logps=[5.0], chosen_counts=[3.0], rejected_counts=[2.0])
        assert both_terms(what, given)[0] == pytest.approx([np.log1p(np.exp(-0.5)) + 0.005])
        assert slopes_of(what, given)[0] == pytest.approx(np.array([[-0.1, 0.1]]) / (1 + np.exp(0.5)))
    finally:
        mindrlhf.losses.registry._LOSSES.pop(f"my_loss_{mode}", None)


def test_the_page_on_losses_has_every_loss_and_divergence() -> None:
    page = (Path(mindrlhf.__file__).parents[1] / "docs" / "losses.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    table = {row[0][2:]: row for row in rows if len(row) == 6}
    for name in loss_names():
        assert table[f"`{name}`"][1] == get_loss(name).source
    assert {f"`f_divergence_type: {name}`" for name in DIVERGENCES if name != "reverse_kl"} <= set(table)


@pytest.mark.parametrize(
    ("text", "path", "sentence"),
    [
        (
            "",
            "no_such_file.mine",
            "the loss no_such_file.mine cannot be imported: .* put the folder of no_such_file.py on",
        ),
        ("", "empty_losses.mine", "empty_losses registers no loss called 'mine'; put @preference_loss"),
        ("x = (", "broken_losses.mine", "the loss broken_losses.mine cannot be imported: SyntaxError: .*line 1"),
        ("import no_such_package", "needy_losses.mine", "ModuleNotFoundError: No module named 'no_such_package'$"),
        (OWN.format(name="sigmoid"), "twice_losses.sigmoid", "two losses are called sigmoid"),
        (OWN.format(name="theirs"), "other_losses.mine", "other_losses registers no loss called 'mine'; it has theirs"),
        ("", ".mine", "the loss .mine cannot be imported"),
    ],
)
def test_what_is_said_of_a_file_of_ones_own(
    text: str, path: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "no_such_file" not in path:
        (tmp_path / f"{path.split('.', maxsplit=1)[0]}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=sentence):
        get_loss(path)
    mindrlhf.losses.registry._LOSSES.pop("theirs", None)


def test_the_list_shows_everything() -> None:
    lines = listing()
    for name in (*loss_names(), *DIVERGENCES, *(set(SETTINGS) - {"f_divergence_type"})):
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        if name in loss_names():
            spec = get_loss(name)
            assert spec.source in line
            assert all(f"{key} {value:g}" in line for key, value in spec.parameters.items())
            assert ("needed" in line) == spec.needs_reference


@pytest.mark.slow
def test_the_command_that_lists_losses() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mindrlhf.losses"], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines() == listing()
    assert done.stderr == ""
