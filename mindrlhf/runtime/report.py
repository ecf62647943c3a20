"""The picture of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindrlhf.runtime.files import PathLike, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PREFIX = "eval_"
# What a panel shows, of training as lines and of evaluations, in the same colour, as points.
PANELS = (
    ("loss", ("loss",)),
    ("reward accuracy", ("rewards/accuracies",)),
    ("rewards", ("rewards/margins", "rewards/chosen", "rewards/rejected")),
    ("log-probs", ("logps/chosen", "logps/rejected")),
    ("learning rate", ("learning_rate",)),
    ("gradient norm", ("grad_norm",)),
)
COLOURS = {"chosen": "tab:green", "rejected": "tab:red"}  # by the last word of a name; tab:blue for all others


def draw_curves(
    rows: list[dict[str, Any]], path: PathLike, title: str = "", best: tuple[str, int] | None = None
) -> Path:
    """Draw the rows of a metrics.jsonl as a PNG of panels over the steps; returns its path.

    best: the name, with eval_, and the step of the best evaluation, to be marked.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, axes = pyplot.subplots(2, 3, figsize=(16, 8), sharex=True, constrained_layout=True)
    for axis, (name, keys) in zip(axes.flat, PANELS):
        for key in keys:
            _draw(axis, rows, key, best)
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.tick_params(labelbottom=True)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
        if best and axis.lines:
            axis.axvline(best[1], color="gray", linestyle=":")
    figure.suptitle(title, fontsize=11)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)
    return Path(path)


def _draw(axis: Axes, rows: list[dict[str, Any]], key: str, best: tuple[str, int] | None) -> None:
    colour = COLOURS.get(key.rpartition("/")[2], "tab:blue")
    points = _points(rows, key)
    if points:
        axis.plot(*zip(*points), color=colour, alpha=0.6, label=key)
    points = _points(rows, PREFIX + key)
    if points:
        axis.plot(*zip(*points), color=colour, linestyle="--", marker="o", markersize=5, label=PREFIX + key)
    marked = [point for point in points if best == (PREFIX + key, point[0])]
    if marked:
        label = f"the best, step {marked[0][0]}"
        axis.plot(*zip(*marked), color=colour, linestyle="", marker="*", markersize=14, label=label)


def _points(rows: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]
