"""Print the table of docs/losses.md: each loss and setting, and how far it is from PyTorch's figures.

    PYTHONPATH=. python tests/unit/losses/losses_table.py

Differences are the largest over all pairs, over the cases of golden_losses.json and over graph and pynative mode,
divided by the largest value, or slope, of the case. Slopes are those of the two cases that have them.
"""

from __future__ import annotations

import inspect

import mindspore as ms
import numpy as np
from golden_losses import VARIANTS, cases
from run_losses import ANSWERS, MODES, slopes_of
from test_golden_losses import CLAMPED, built, given_of, of_a_pair, of_torch

from mindrlhf.losses import get_loss, loss_names
from mindrlhf.losses.divergence import DIVERGENCES

SHAPED = {
    "fdpo_forward_kl": ("f_divergence_type: forward_kl", *DIVERGENCES["forward_kl"][::-1]),
    "fdpo_js": ("f_divergence_type: js_divergence", *DIVERGENCES["js_divergence"][::-1]),
    "fdpo_alpha0.5": ("f_divergence_type: alpha_divergence", *DIVERGENCES["alpha_divergence"][::-1]),
    "ld_dpo_alpha0.5": ("ld_alpha: 0.5", "arXiv 2409.06411", "shared + ld_alpha (all - shared)"),
    "wpo_sigmoid": (
        "use_weighting: true",
        "arXiv 2406.11827, eq. 2",
        "w_c w_r, w = exp(mean of log pi - log sum pi^2)",
    ),
    "rpo_alpha1.0": ("sigmoid + sft", "arXiv 2404.19733", "the sum"),
    "rpo_alpha0.1": ("sigmoid + 0.1 sft", "arXiv 2404.19733", "the sum, sft times 0.1"),
}


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def differences(variant: str) -> tuple[float, float]:
    """Of values, and of slopes."""
    values, slopes = [], []
    what = built(variant)
    for case, figures in cases().items():
        # One exponent is above 80 there.
        if (case, variant) == CLAMPED or variant not in figures["loss"]:
            continue
        given = given_of(case)
        found, expected = of_a_pair(variant, what, given), of_torch(variant, figures)
        values.append(apart(found, expected) if variant in figures["terms"] else apart(found.mean(), expected))
        if "gradients" not in figures:
            continue
        num_pairs, num_tokens = float(len(given["mask"])), float(given["chosen_counts"].sum())
        by_logps, by_shared = slopes_of(what, given, num_pairs, num_tokens)
        exact = np.stack([figures["gradients"][variant][answer] for answer in ANSWERS], 1)
        slopes.append(apart(by_logps + by_shared, exact))
    return max(values), max(slopes)


def formula(name: str) -> str:
    """The second paragraph of the loss's docstring."""
    return " ".join((inspect.getdoc(get_loss(name).function) or "").split("\n\n")[1].split())


def rows() -> list[list[str]]:
    of_loss = {name: [] for name in loss_names()}
    for variant, made in VARIANTS.items():
        if variant not in SHAPED:
            of_loss[made.losses[0]["type"]].append(variant)
    words = {name: [f"`{name}`", get_loss(name).source, f"`{formula(name)}`"] for name in of_loss}
    words |= {variant: [f"`{name}`", paper, f"`{form}`"] for variant, (name, paper, form) in SHAPED.items()}
    of_loss |= {variant: [variant] for variant in SHAPED}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in of_loss}
    for mode in MODES.values():
        ms.set_context(mode=mode)
        for name, variants in of_loss.items():
            found[name] += [differences(variant) for variant in variants]
    return [
        [*words[name], VARIANTS[of_loss[name][0]].source, *(f"{max(each):.1e}" for each in zip(*found[name]))]
        for name in of_loss
    ]


def main() -> None:
    print("| `rlhf.loss` or setting | Paper | Formula | Reference number | Value | Gradient |")
    print("|---|---|---|---|---|---|")
    for row in rows():
        print("| " + " | ".join(each.replace("|", "\\|") for each in row) + " |")


if __name__ == "__main__":
    main()
