"""Write micro_figures.json: what PyTorch and transformers compute on the models of micro_models.py.

Made with torch 2.13 and transformers 5.23, which no test needs. Run from the root of the repository:

    pip install torch==2.13.0 transformers==5.23.0
    python tests/golden/make_figures.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from micro_models import BETA, MODELS, PAIRS, REFERENCE, TRAINING, WARMUP_STEPS, newer_form, probes, sequences, weights
from transformers import AutoConfig, AutoModelForCausalLM, get_linear_schedule_with_warmup

PLACE = Path(__file__).with_name("micro_figures.json")
LOGIT_ROWS = (0, 3)  # of `sequences()`: a chosen and a rejected answer


def load(config: dict[str, Any]) -> torch.nn.Module:
    """The transformers model with the formula's weights."""
    words = newer_form(config)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(words.pop("model_type"), **words), attn_implementation="eager", dtype=torch.float32
    )
    missing, foreign = model.load_state_dict(
        {name: torch.from_numpy(array) for name, array in weights(config).items()}, strict=False
    )
    assert not foreign
    assert missing == (["lm_head.weight"] if config["tie_word_embeddings"] else [])
    return model


def logits(model: torch.nn.Module, ids: list[int], left: int = 0) -> torch.Tensor:
    """(S,V) of one sequence; `left` tokens of padding in front must not change it."""
    mask = torch.tensor([[0] * left + [1] * len(ids)])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(input_ids=torch.tensor([[0] * left + ids]), attention_mask=mask, position_ids=positions)
    return output.logits[0, left:]


def figures(config: dict[str, Any]) -> dict[str, Any]:
    """Logits, log-probs, the loss and its gradients."""
    model = load(config)
    trajectory = train(load(config))
    recorded = [logits(model, sequences()[row]) for row in LOGIT_ROWS]
    for row, plain in zip(LOGIT_ROWS, recorded):
        assert (logits(model, sequences()[row], left=5) - plain).abs().max() < 1e-5
    logps = log_probs(model)
    loss, _ = dpo(logps)
    loss.backward()
    gradients = {name: parameter.grad.reshape(-1) for name, parameter in model.named_parameters()}
    return {
        "logits": {str(row): rounded(table.detach()) for row, table in zip(LOGIT_ROWS, recorded)},
        "logps": rounded(logps.detach()),
        "trajectory": trajectory,
        "loss": rounded(loss.detach()),
        "grad_norms": {name: rounded(gradient.norm()) for name, gradient in gradients.items()},
        "grad_entries": {name: rounded(gradient[probes(gradient.numel())]) for name, gradient in gradients.items()},
    }


def log_probs(model: torch.nn.Module) -> torch.Tensor:
    """(B,2): sums over the tokens of the chosen and the rejected answer."""
    sums = []
    for ids, prompt in zip(sequences(), [len(prompt) for prompt, *_ in PAIRS for _ in range(2)]):
        scores = logits(model, ids)[prompt - 1 : -1].log_softmax(-1)
        sums.append(scores[torch.arange(len(ids) - prompt), torch.tensor(ids[prompt:])].sum())
    return torch.stack(sums).reshape(-1, 2)


def dpo(logps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and the margin of the rewards."""
    rewards = BETA * (logps - torch.tensor(REFERENCE))
    margins = rewards[:, 0] - rewards[:, 1]
    return -torch.nn.functional.logsigmoid(margins).mean(), margins.mean()


def train(model: torch.nn.Module) -> dict[str, list[float]]:
    """Figures of each step before its update, with torch's AdamW and clipping and transformers' linear schedule."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": decayed, "weight_decay": TRAINING["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=TRAINING["learning_rate"], eps=TRAINING["eps"])
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP_STEPS, TRAINING["steps"])
    rows: dict[str, list[float]] = {"loss": [], "margins": [], "grad_norm": []}
    for _ in range(TRAINING["steps"]):
        loss, margins = dpo(log_probs(model))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), TRAINING["max_grad_norm"])
        optimizer.step()
        schedule.step()
        for name, value in (("loss", loss), ("margins", margins), ("grad_norm", norm)):
            rows[name].append(rounded(value.detach()))
    return rows


def rounded(tensor: torch.Tensor) -> Any:
    """Plain numbers of eight significant digits, which is what float32 carries."""
    if tensor.ndim:
        return [rounded(each) for each in tensor]
    return float(f"{tensor.item():.8g}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = {name: figures(config) for variants in MODELS.values() for name, config in variants.items()}
    PLACE.write_text(json.dumps(made, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{PLACE}: {PLACE.stat().st_size} bytes")
