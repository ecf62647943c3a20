"""Write golden_losses.json: figures of PyTorch 2.13 and TRL 1.16, taken from a folder of npz files.

    python tests/unit/losses/make_golden_losses.py FOLDER

Per case: `given`, vectors of B pairs; by variant `loss`, of the whole batch, `terms`, of each pair, and, where the
folder has them, `chosen` and `rejected`: derivatives of the loss by the log-prob of a first scored token, and with the
ending _last of a last one. Chosen and rejected tokens of one answer differ in these only with LD-DPO.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from golden_losses import VARIANTS

PLACE = Path(__file__).with_name("golden_losses.json")
CASES = {"losses_only": "moderate", "losses_only_extreme": "extreme"}
MODELS = ("micro-qwen2", "micro-qwen2-tied", "micro-llama", "micro-glm", "micro-qwen3", "micro-qwen3-moe")

Npz = dict[str, np.ndarray]


def halves(name: str, rows: np.ndarray) -> dict[str, list[float]]:
    """(2B,) -> the chosen and the rejected answers', shortest decimals of float32."""
    chosen, rejected = np.split(np.asarray(rows, np.float32), 2)
    return {name.format("chosen"): plain(chosen), name.format("rejected"): plain(rejected)}


def plain(values: np.ndarray) -> list[float]:
    return [float(str(value)) for value in np.asarray(values, np.float32).reshape(-1)]


def given(mask: np.ndarray, tokens: np.ndarray, reference: np.ndarray) -> dict[str, list[float]]:
    """Three (2B,L): which tokens are scored, their log-probs by policy and reference."""
    counts = mask.sum(1)
    place, shortest = mask.cumsum(1), np.tile(np.minimum(*np.split(counts, 2)), 2)
    shared = mask.astype(np.float64) * (place <= shortest[:, None])
    return {
        **halves("{}_counts", counts),
        **halves("{}_shared_logps", (tokens * shared).sum(1)),
        **halves("ref_{}_shared_logps", (reference * shared).sum(1)),
    }


def of_tokens(npz: Npz) -> dict[str, Any]:
    """A case without a model, with gradients by each token."""
    mask = npz["mask"]
    case: dict[str, Any] = {
        "given": {
            **halves("{}_logps", npz["logps"]),
            **halves("ref_{}_logps", npz["ref_logps"]),
            **given(mask, npz["all_token_logps"] * mask, npz["ref_token_logps"] * mask),
            **halves("{}_log_sum_sq", (npz["lse2"] * mask).sum(1)),
        },
        **losses(npz),
        "gradients": {},
    }
    rows, first, last = np.arange(len(mask)), mask.argmax(1), mask.shape[1] - 1 - mask[:, ::-1].argmax(1)
    for variant in VARIANTS:
        gradient = npz[f"grad/{variant}"]
        case["gradients"][variant] = halves("{}", gradient[rows, first])
        if "ld" in variant:
            case["gradients"][variant] |= halves("{}_last", gradient[rows, last])
    return case


def of_model(npz: Npz) -> dict[str, Any]:
    """A case of a model's log-probs, without gradients and without what WPO needs."""
    sums = np.concatenate([npz["chosen_logps"], npz["rejected_logps"]])
    reference = np.concatenate([npz["ref_chosen_logps"], npz["ref_rejected_logps"]])
    mask = npz["completion_mask"][:, 1:]
    vectors = given(mask, npz["per_token_logps"], npz["ref_per_token_logps"])
    return {
        "given": {**halves("{}_logps", sums), **halves("ref_{}_logps", reference), **vectors},
        **losses(npz, without="wpo_sigmoid"),
    }


def losses(npz: Npz, without: str = "") -> dict[str, Any]:
    names = [variant for variant in VARIANTS if variant != without]
    return {
        "loss": {name: plain(npz[f"loss/{name}"])[0] for name in names},
        "terms": {name: plain(npz[f"loss_per_pair/{name}"]) for name in names if f"loss_per_pair/{name}" in npz},
    }


def main() -> None:
    folder = Path(sys.argv[1])
    cases = {name: of_tokens(dict(np.load(folder / f"{file}.npz"))) for file, name in CASES.items()}
    cases |= {name: of_model(dict(np.load(folder / f"{name}.npz"))) for name in MODELS}
    text = json.dumps(cases, indent=0).replace(",\n", ", ").replace("[\n", "[").replace("\n]", "]")
    PLACE.write_text(text.replace("}, ", "},\n").replace("], ", "],\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
