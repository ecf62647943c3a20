"""python -m mindrlhf.losses: what `rlhf.loss` can be, with parameters and papers, and what shapes it."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence

from mindrlhf.losses.divergence import DIVERGENCES
from mindrlhf.losses.objective import SETTINGS
from mindrlhf.losses.registry import LossSpec, get_loss, loss_names


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _loss(spec: LossSpec) -> list[str]:
    parameters = ", ".join(f"{key} {value:g}" for key, value in spec.parameters.items())
    reference = "needed" if spec.needs_reference else "-"
    over = "micro-batch" if spec.over_batch else "pair"
    return [spec.name, parameters or "-", ", ".join(spec.reads), reference, over, spec.source]


def listing() -> list[str]:
    """The lines to print."""
    head = ["name", "parameters", "reads", "reference", "over a", "source"]
    return [
        "rlhf.loss, a name or a list such as [{type: sigmoid}, {type: sft, weight: 0.1}]:",
        *_table([head, *(_loss(get_loss(name)) for name in loss_names())]),
        "",
        "rlhf.f_divergence_type, of the log-ratio x, for every loss that reads ratios:",
        *_table([["name", "formula", "source"], *([name, *words] for name, words in DIVERGENCES.items())]),
        "",
        "Other settings of rlhf for these losses:",
        *_table([[name, words] for name, words in SETTINGS.items() if name != "f_divergence_type"]),
        "",
        "A loss of your own: docs/losses.md.",
    ]


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no failure
    argparse.ArgumentParser(prog="python -m mindrlhf.losses", description=__doc__).parse_args()
    print("\n".join(listing()))
