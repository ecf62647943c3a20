"""The preference losses by name: what each needs, what its sum is divided by, and its parameters."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable

from mindspore import Tensor

Loss = Callable[..., Tensor]

# Factor of the rewards in the metrics for a loss that has no beta of its own.
DEFAULT_BETA = 0.1
NEEDS = frozenset({"reference", "counts"})
DENOMINATORS = ("pairs", "chosen_tokens")


@dataclass(frozen=True)
class LossSpec:
    """One loss.

    function: (policy, reference, counts, **parameters) -> (B,) terms, see `mindrlhf.losses.preference`.
    needs: which of "reference" and "counts" it reads; policy is read by all.
    denominator: what the sum of the terms over the global batch is divided by, "pairs" or "chosen_tokens".
    parameters: names and default values.
    source: paper and equation.
    """

    name: str
    function: Loss
    needs: frozenset[str]
    denominator: str
    parameters: dict[str, float]
    source: str


@dataclass(frozen=True)
class BoundLoss:
    """A loss with its parameters settled.

    function: (chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, chosen_counts, rejected_counts),
    six (B,) float32 vectors -> (B,) float32 terms; made for graph mode.
    """

    spec: LossSpec
    parameters: dict[str, float]
    function: Loss

    @property
    def beta(self) -> float:
        """The factor of the rewards in the metrics."""
        return self.parameters.get("beta", DEFAULT_BETA)

    @property
    def per_token(self) -> bool:
        """True where the terms are divided by the chosen tokens of the global batch, not by its pairs."""
        return self.spec.denominator == "chosen_tokens"

    @property
    def needs_reference(self) -> bool:
        """False where training goes without reference log-probs."""
        return "reference" in self.spec.needs


_LOSSES: dict[str, LossSpec] = {}


def preference_loss(
    name: str, *, source: str, needs: Sequence[str] = (), denominator: str = "pairs"
) -> Callable[[Loss], Loss]:
    """Register the decorated function, unchanged, as loss `name`; its keyword-only arguments are the parameters.

    Raises ValueError if the name is taken.
    """
    assert set(needs) <= NEEDS
    assert denominator in DENOMINATORS

    def register(function: Loss) -> Loss:
        if name in _LOSSES:
            raise ValueError(f"two losses are called {name}: {_LOSSES[name].function.__name__} and {function.__name__}")
        arguments = inspect.signature(function).parameters.values()
        parameters = {each.name: each.default for each in arguments if each.kind is each.KEYWORD_ONLY}
        _LOSSES[name] = LossSpec(name, function, frozenset(needs), denominator, parameters, source)
        return function

    return register


def loss_names() -> list[str]:
    """All registered names, sorted."""
    return sorted(_LOSSES)


def get_loss(name: str) -> LossSpec:
    """The loss called `name`. Raises ValueError that names the nearest one."""
    if name not in _LOSSES:
        nearest = difflib.get_close_matches(name, _LOSSES, n=1, cutoff=0.0)
        raise ValueError(
            f"no loss is called {name!r}; did you mean {nearest[0]!r}? Known are {', '.join(loss_names())}"
        )
    return _LOSSES[name]


def bind(name: str, **given: float | None) -> BoundLoss:
    """Loss `name` with the parameters that are given; None stands for the loss's own default.

    Raises ValueError for an unknown loss, a parameter that it does not have, or a value out of range.
    """
    spec = get_loss(name)
    chosen = {key: value for key, value in given.items() if value is not None}
    for key, value in chosen.items():
        if key not in spec.parameters:
            known = " and ".join(spec.parameters) or "no parameter"
            raise ValueError(f"the loss {name} has no {key} (it has {known}); leave {key} out or take another loss")
        _check(key, value)
    parameters = {**spec.parameters, **chosen}
    return BoundLoss(spec, parameters, _with_parameters(spec.function, parameters))


def _check(key: str, value: float) -> None:
    if key == "beta" and not value > 0:
        raise ValueError(f"beta must be above 0, not {value}")
    if key == "label_smoothing" and not 0 <= value < 0.5:
        raise ValueError(f"label_smoothing is a share of wrong labels, at least 0 and below 0.5, not {value}")


def _with_parameters(function: Loss, parameters: dict[str, Any]) -> Loss:
    # Neither functools.partial nor a NamedTuple: in graph mode gradients through either are silently 0.
    def bound(  # type: ignore[no-untyped-def]  # graph code
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, chosen_counts, rejected_counts
    ):
        policy, reference = (chosen_logps, rejected_logps), (ref_chosen_logps, ref_rejected_logps)
        return function(policy, reference, (chosen_counts, rejected_counts), **parameters)

    return bound
