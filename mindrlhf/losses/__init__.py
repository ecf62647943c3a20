"""Preference losses: pure functions on small tensors, found by name. Importing this package registers them all."""

from mindrlhf.losses import preference
from mindrlhf.losses.registry import BoundLoss, LossSpec, bind, get_loss, loss_names, preference_loss

__all__ = ["BoundLoss", "LossSpec", "bind", "get_loss", "loss_names", "preference", "preference_loss"]
