"""Figures computed by PyTorch 2.13 and TRL 1.16 in float32, of log-probs of some answers: golden_losses.json.

`make_golden_losses.py` says how they lie there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A list of losses with settings of `objective`, and who computed the figures beside plain PyTorch."""

    losses: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    source: str = "TRL 1.16 DPOTrainer"


def one(name: str, source: str = "TRL 1.16 DPOTrainer", **parameters: float) -> Variant:
    return Variant([{"type": name, **parameters}], {}, source)


def sigmoid_with(**settings: Any) -> Variant:
    return Variant([{"type": "sigmoid"}], settings)


CPO, ORPO = "TRL 1.16 CPOTrainer", "PyTorch; TRL 1.16 ORPOTrainer scores the prompt too"
VARIANTS: dict[str, Variant] = {
    "sigmoid": one("sigmoid"),
    "sigmoid_beta0.5": one("sigmoid", beta=0.5),
    "sft": one("sft"),
    "rpo_alpha1.0": Variant([{"type": "sigmoid"}, {"type": "sft"}]),
    "rpo_alpha0.1": Variant([{"type": "sigmoid"}, {"type": "sft", "weight": 0.1}]),
    "cdpo_ls0.1": one("cdpo", "TRL 0.24 dpo_loss"),
    "robust_ls0.1": one("robust"),
    "hinge": one("hinge"),
    "ipo": one("ipo"),
    "exo_pair_ls1e-3": one("exo_pair"),
    "nca_pair": one("nca_pair"),
    "bco_pair": one("bco_pair"),
    "sppo_hard": one("sppo_hard"),
    "aot": one("aot"),
    "aot_ls0.1": one("aot", label_smoothing=0.1),
    "aot_unpaired": one("aot_unpaired"),
    "apo_zero": one("apo_zero"),
    "apo_down": one("apo_down"),
    "discopop": one("discopop"),
    "sigmoid_norm": one("sigmoid_norm"),
    "wpo_sigmoid": sigmoid_with(use_weighting=True),
    "ld_dpo_alpha0.5": sigmoid_with(ld_alpha=0.5),
    "fdpo_forward_kl": sigmoid_with(f_divergence_type="forward_kl"),
    "fdpo_js": sigmoid_with(f_divergence_type="js_divergence"),
    "fdpo_alpha0.5": sigmoid_with(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.5),
    "kto_pair": one("kto_pair", "TRL 0.8.6 dpo_loss"),
    "simpo_b2_g1": one("simpo", CPO),
    "simpo_b0.1_g0.5": one("simpo", CPO, beta=0.1, simpo_gamma=0.5),
    "cpo_b0.1_a1": one("cpo", CPO),
    "orpo_b0.1_respnll": one("orpo", ORPO),
}


@cache
def cases() -> dict[str, dict[str, Any]]:
    """By name: two of given log-probs, ordinary and extreme ones, and one of each small model."""
    return json.loads(Path(__file__).with_name("golden_losses.json").read_text(encoding="utf-8"))
