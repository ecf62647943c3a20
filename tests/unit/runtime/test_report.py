"""The picture of a run: what is drawn, and that it is a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import image, pyplot
from matplotlib.figure import Figure

from mindrlhf.runtime.report import PANELS, draw_curves

matplotlib.use("Agg")

ROWS: list[dict[str, Any]] = [
    {"step": 0, "eval_loss": 0.69, "eval_rewards/accuracies": 0.0, "eval_rewards/margins": 0.0},
    {"step": 1, "loss": 0.69, "grad_norm": 3.0, "rewards/accuracies": 0.0, "rewards/chosen": 0.0},
    {"step": 2, "loss": None, "grad_norm": 2.0, "rewards/accuracies": 0.5, "rewards/chosen": 0.1},
    {"step": 3, "loss": 0.5, "grad_norm": 1.0, "rewards/accuracies": 1.0, "rewards/chosen": 0.3},
    {"step": 3, "eval_loss": 0.55, "eval_rewards/accuracies": 1.0, "eval_rewards/margins": 0.4},
]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, which are closed behind them."""
    drawn: list[Figure] = []
    subplots = pyplot.subplots

    def keep(*arguments: Any, **settings: Any) -> Any:
        figure, axes = subplots(*arguments, **settings)
        drawn.append(figure)
        return figure, axes

    monkeypatch.setattr(pyplot, "subplots", keep)
    return drawn


def points(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    lines = [line for axis in figure.axes for line in axis.lines if not str(line.get_label()).startswith("_")]
    return {str(line.get_label()): list(zip(line.get_xdata(), line.get_ydata())) for line in lines}  # type: ignore[arg-type]


def test_curves_are_the_figures_of_the_rows(tmp_path: Path, figures: list[Figure]) -> None:
    path = tmp_path / "curves.png"
    assert draw_curves(ROWS, path, "a run") == path
    assert points(figures[0]) == {
        "loss": [(1, 0.69), (3, 0.5)],
        "eval_loss": [(0, 0.69), (3, 0.55)],
        "rewards/accuracies": [(1, 0.0), (2, 0.5), (3, 1.0)],
        "eval_rewards/accuracies": [(0, 0.0), (3, 1.0)],
        "rewards/chosen": [(1, 0.0), (2, 0.1), (3, 0.3)],
        "eval_rewards/margins": [(0, 0.0), (3, 0.4)],
        "grad_norm": [(1, 3.0), (2, 2.0), (3, 1.0)],
    }
    assert [axis.get_title() for axis in figures[0].axes] == [name for name, _ in PANELS]


def test_the_best_evaluation_is_marked(tmp_path: Path, figures: list[Figure]) -> None:
    draw_curves(ROWS, tmp_path / "curves.png", best=("eval_rewards/margins", 3))
    assert points(figures[0])["the best, step 3"] == [(3, 0.4)]
    across = [line for axis in figures[0].axes for line in axis.lines if list(line.get_xdata()) == [3, 3]]
    assert len(across) == sum(len(axis.lines) > 0 for axis in figures[0].axes) == 4
    draw_curves(ROWS, tmp_path / "curves.png")
    assert "the best, step 3" not in points(figures[1])


def test_chosen_is_green_and_rejected_red_in_every_panel(tmp_path: Path, figures: list[Figure]) -> None:
    names = ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
    draw_curves([{"step": 1, **{f"{prefix}{name}": 1.0 for name in names for prefix in ("", "eval_")}}], tmp_path / "c")
    colours = {str(line.get_label()): line.get_color() for axis in figures[0].axes for line in axis.lines}
    assert len(colours) == 8
    assert all(colour == ("tab:green" if "chosen" in name else "tab:red") for name, colour in colours.items())


def test_it_is_a_picture_and_nothing_else_is_left(tmp_path: Path) -> None:
    open_before = pyplot.get_fignums()
    picture = image.imread(draw_curves(ROWS, tmp_path / "curves.png"))
    assert min(picture.shape[:2]) > 500
    assert len(np.unique(picture)) > 10, "more than one colour"
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    assert pyplot.get_fignums() == open_before


def test_rows_without_any_curve(tmp_path: Path, figures: list[Figure]) -> None:
    """One step of SFT, say, has no reward; an empty panel is no mistake."""
    assert draw_curves([{"step": 1}], tmp_path / "curves.png").stat().st_size > 0
    assert points(figures[0]) == {}


def test_an_earlier_picture_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    before = draw_curves(ROWS, path).read_bytes()
    assert draw_curves(ROWS[:2], path).read_bytes() != before
