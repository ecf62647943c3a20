"""Write figures/<family>.json: what PyTorch and transformers compute on the models of micro_models.py.

Made with torch 2.13 and transformers 5.23, which no test needs. Run from the root of the repository, for all families
or for those that are named:

    pip install torch==2.13.0 transformers==5.23.0
    python tests/golden/make_figures.py [family ...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import torch
from micro_models import (
    BETA,
    FIGURES,
    LENGTH,
    MODELS,
    PAIRS,
    REFERENCE,
    TRAINING,
    WARMUP_STEPS,
    probes,
    sequences,
    weights,
)
from torch import Tensor
from torch_models import build, loaded, published
from transformers import get_linear_schedule_with_warmup

LOGIT_ROWS = (0, 3)  # of `sequences()`: a chosen and a rejected answer
NO_TIE = 2e-4  # least difference of two experts' logits where the one is taken and the other is not


def figures(config: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes, logits, log-probs, the loss and its gradients."""
    named = published(config, dict(build(config).named_parameters()))
    shapes = {name: list(tensor.shape) for name, tensor in named.items()}
    model = loaded(config, weights(shapes))
    trajectory = train(loaded(config, weights(shapes)), config)
    recorded = [logits(model, sequences()[row]) for row in LOGIT_ROWS]
    for row, plain in zip(LOGIT_ROWS, recorded):
        # Dynamic tables depend on the last position of a call; those of the plain rows are what a row of LENGTH has.
        if "dynamic" not in str(config.get("rope_scaling")):
            assert (logits(model, sequences()[row], left=5) - plain).abs().max() < 1e-5 * plain.abs().max()
    logps, balance = log_probs(model, config)
    loss, _ = dpo(logps)
    (loss + weight(config) * balance).backward()
    parameters = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients = {name: tensor.reshape(-1) for name, tensor in published(config, parameters).items()}
    return {
        "shapes": shapes,
        "logits": {str(row): rounded(table.detach()) for row, table in zip(LOGIT_ROWS, recorded)},
        "logps": rounded(logps.detach()),
        "trajectory": trajectory,
        "loss": rounded(loss.detach()),
        "aux_loss": rounded(balance.detach()),
        "grad_norms": {name: rounded(gradient.norm()) for name, gradient in gradients.items()},
        "grad_entries": {name: rounded(gradient[probes(gradient.numel())]) for name, gradient in gradients.items()},
    }


def logits(model: torch.nn.Module, ids: list[int], left: int = 0) -> Tensor:
    """(len(ids),V) of one sequence in a row of LENGTH with `left` tokens of padding in front."""
    return forward(model, [ids], left).logits[0, left : left + len(ids)]


def forward(model: torch.nn.Module, rows: list[list[int]], left: int = 0, **more: Any) -> Any:
    """The model's output on rows padded to LENGTH, the positions of padding on the right running on."""
    ids = torch.zeros(len(rows), LENGTH, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, left : left + len(row)] = torch.tensor(row)
        mask[number, left : left + len(row)] = 1
    positions = (torch.arange(LENGTH) - left).clamp(min=0).expand(len(rows), -1)
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, **more)


def log_probs(model: torch.nn.Module, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(B,2): sums over the tokens of the chosen and the rejected answer; () the routers' loss, or 0.

    The last token of a sequence is only predicted, so the router does not meet it.
    """
    rows = [ids[:-1] for ids in sequences()]
    balance = torch.zeros(())
    if "num_experts" in config:
        output = forward(model, rows, output_router_logits=True)
        met = torch.cat([torch.arange(LENGTH) < len(ids) for ids in rows])
        for layer in output.router_logits:
            best = layer[met].topk(config["num_experts_per_tok"] + 1).values
            assert (best[:, -2] - best[:, -1]).min() > NO_TIE
        balance = output.aux_loss
    else:
        output = forward(model, rows)
    sums = []
    for row, ids, prompt in zip(output.logits, sequences(), [len(prompt) for prompt, *_ in PAIRS for _ in range(2)]):
        scores = row[prompt - 1 : len(ids) - 1].log_softmax(-1)
        sums.append(scores[torch.arange(len(ids) - prompt), torch.tensor(ids[prompt:])].sum())
    return torch.stack(sums).reshape(-1, 2), balance


def dpo(logps: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and the margin of the rewards."""
    rewards = BETA * (logps - torch.tensor(REFERENCE))
    margins = rewards[:, 0] - rewards[:, 1]
    return -torch.nn.functional.logsigmoid(margins).mean(), margins.mean()


def train(model: torch.nn.Module, config: Mapping[str, Any]) -> dict[str, list[float]]:
    """Figures of each step before its update, with torch's AdamW and clipping and transformers' linear schedule."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": decayed, "weight_decay": TRAINING["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=TRAINING["learning_rate"], eps=TRAINING["eps"])
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP_STEPS, TRAINING["steps"])
    rows: dict[str, list[float]] = {"loss": [], "margins": [], "grad_norm": []}
    for _ in range(int(TRAINING["steps"])):
        logps, balance = log_probs(model, config)
        loss, margins = dpo(logps)
        optimizer.zero_grad()
        (loss + weight(config) * balance).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), TRAINING["max_grad_norm"])
        optimizer.step()
        schedule.step()
        for name, value in (("loss", loss), ("margins", margins), ("grad_norm", norm)):
            rows[name].append(rounded(value.detach()))
    return rows


def weight(config: Mapping[str, Any]) -> float:
    """That of the routers' loss: 0 unless config.json asks for their logits."""
    return config["router_aux_loss_coef"] if config.get("output_router_logits") else 0.0


def rounded(tensor: Tensor) -> Any:
    """Plain numbers of eight significant digits, which is what float32 carries."""
    if tensor.ndim:
        return [rounded(each) for each in tensor]
    return float(f"{tensor.item():.8g}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for family in sys.argv[1:] or MODELS:
        place = FIGURES / f"{family}.json"
        made = {name: figures(config) for name, config in MODELS[family].items()}
        place.write_text(json.dumps(made, separators=(",", ":")) + "\n", encoding="utf-8")
        print(f"{place}: {place.stat().st_size} bytes")
