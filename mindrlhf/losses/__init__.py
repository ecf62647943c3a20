"""Preference losses: pure functions on small tensors, found by name. Importing this package registers them all."""

from mindrlhf.losses import preference
from mindrlhf.losses.objective import Objective, objective
from mindrlhf.losses.registry import BoundLoss, LossSpec, bind, bind_all, get_loss, loss_names, preference_loss

__all__ = [
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
