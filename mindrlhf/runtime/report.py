"""The picture of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mindrlhf.runtime.files import PathLike, replacing

PANELS = (
    ("loss", ("loss", "eval_loss")),
    ("reward accuracy", ("rewards/accuracies", "eval_rewards/accuracies")),
    ("rewards", ("rewards/chosen", "rewards/rejected", "rewards/margins", "eval_rewards/margins")),
    ("gradient norm", ("grad_norm",)),
)


def draw_curves(rows: list[dict[str, Any]], path: PathLike, title: str = "") -> Path:
    """Draw the rows of a metrics.jsonl as a PNG of four panels over the steps; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    for axis, (name, keys) in zip(axes.flat, PANELS):
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                evaluated = key.startswith("eval_")
                axis.plot(
                    *zip(*points), marker="o" if evaluated else None, linestyle="--" if evaluated else "-", label=key
                )
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)
    return Path(path)
