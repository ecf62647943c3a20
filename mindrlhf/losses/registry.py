"""The preference losses by name: what each reads, what its sums are divided by, its parameters; and a user's own."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable

from mindspore import Tensor, ops

Answers = tuple[Tensor, Tensor]
Terms = tuple[Tensor, Tensor]
Loss = Callable[..., Any]

# What a loss may read, by the names of its positional arguments, in this order.
INPUTS = ("ratios", "policy", "reference", "counts", "mask")
DENOMINATORS = ("pairs", "chosen_tokens")
# Factor of the rewards in the metrics for a loss that has no beta of its own.
DEFAULT_BETA = 0.1
# Parameter -> (is it in range?, what is said where it is not).
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "beta": (lambda x: x > 0, "beta must be above 0"),
    "label_smoothing": (
        lambda x: 0 <= x < 0.5,
        "label_smoothing is a share of wrong labels, at least 0 and below 0.5",
    ),
    "simpo_gamma": (lambda x: x >= 0, "simpo_gamma is a margin, at least 0"),
    "cpo_alpha": (lambda x: x >= 0, "cpo_alpha is a weight, at least 0"),
    "discopop_tau": (lambda x: x > 0, "discopop_tau is a temperature, above 0"),
}


@dataclass(frozen=True)
class LossSpec:
    """One loss.

    function: its inputs, then **parameters -> (B,) terms; with two denominators a tuple of two (B,) terms.
    reads: the inputs it takes, among INPUTS and in that order, see `mindrlhf.losses.preference`.
    denominators: what each sum of terms over the global batch is divided by, "pairs" or "chosen_tokens".
    parameters: names and default values.
    positive: parameters that must not be 0.
    source: paper and equation.
    """

    name: str
    function: Loss
    reads: tuple[str, ...]
    denominators: tuple[str, ...]
    parameters: dict[str, float]
    positive: frozenset[str]
    source: str

    @property
    def needs_reference(self) -> bool:
        """False where training goes without reference log-probs."""
        return "ratios" in self.reads or "reference" in self.reads

    @property
    def over_batch(self) -> bool:
        """True where the term of a pair depends on the other pairs, those of one micro-batch of one worker."""
        return "mask" in self.reads


@dataclass(frozen=True)
class BoundLoss:
    """A loss with its parameters settled.

    function: (ratios, policy, reference, counts, mask), as a loss reads them -> (terms to be divided by the pairs,
    terms to be divided by the chosen tokens), two (B,) float32 vectors, zeros where the loss has none; for graph mode.
    """

    spec: LossSpec
    parameters: dict[str, float]
    function: Callable[[Answers, Answers, Answers, Answers, Tensor], Terms]

    @property
    def beta(self) -> float:
        """The factor of the rewards in the metrics."""
        return self.parameters.get("beta", DEFAULT_BETA)

    @property
    def needs_reference(self) -> bool:
        """False where training goes without reference log-probs."""
        return self.spec.needs_reference


_LOSSES: dict[str, LossSpec] = {}


def preference_loss(
    name: str, *, source: str, denominator: str | tuple[str, ...] = "pairs", positive: Sequence[str] = ()
) -> Callable[[Loss], Loss]:
    """Register the decorated function, unchanged, as loss `name`.

    Its positional arguments say what it reads (INPUTS); its keyword-only ones are the parameters, each a number.
    Raises ValueError if the name is taken, or the arguments are not such.
    """
    denominators = (denominator,) if isinstance(denominator, str) else tuple(denominator)

    def register(function: Loss) -> Loss:
        arguments = inspect.signature(function).parameters.values()
        reads = tuple(each.name for each in arguments if each.kind is not each.KEYWORD_ONLY)
        parameters = {each.name: each.default for each in arguments if each.kind is each.KEYWORD_ONLY}
        if not reads or reads != tuple(each for each in INPUTS if each in reads):
            raise ValueError(
                f"the loss {name} takes ({', '.join(reads)}); its positional arguments must be some of "
                f"{', '.join(INPUTS)}, in this order, and its parameters keyword-only, after a *"
            )
        for key, value in parameters.items():
            if not _finite(value):
                raise ValueError(f"the loss {name} gives its parameter {key} no number as default; write {key}=0.1")
        if denominators not in (("pairs",), ("chosen_tokens",), DENOMINATORS):
            raise ValueError(
                f'the loss {name} has denominator={denominator!r}; give "pairs", "chosen_tokens" or {DENOMINATORS}'
            )
        _add(LossSpec(name, function, reads, denominators, parameters, frozenset(positive), source))
        return function

    return register


def alias(name: str, of: str, *, source: str, **defaults: float) -> None:
    """Register `name` as the loss `of` with other default values. Raises ValueError as `preference_loss` and `bind`."""
    bound = bind(of, **defaults)
    _add(replace(bound.spec, name=name, parameters=bound.parameters, source=source))


def _add(spec: LossSpec) -> None:
    if spec.name in _LOSSES:
        other = _LOSSES[spec.name].function.__name__
        raise ValueError(f"two losses are called {spec.name}: {other} and {spec.function.__name__}")
    if not spec.name.isidentifier():
        raise ValueError(f"a loss cannot be called {spec.name!r}; take letters, digits and _, such as my_loss")
    _LOSSES[spec.name] = spec


def loss_names() -> list[str]:
    """All registered names, sorted."""
    return sorted(_LOSSES)


def get_loss(name: str) -> LossSpec:
    """The loss called `name`; "my_losses.my_loss" is the loss `my_loss` that my_losses.py registers.

    Raises ValueError that names the nearest loss, or says why the file is of no use.
    """
    if "." in name:
        return _own_loss(name)
    if name not in _LOSSES:
        nearest = difflib.get_close_matches(name, _LOSSES, n=1, cutoff=0.0)
        raise ValueError(
            f"no loss is called {name!r}; did you mean {nearest[0]!r}? Known are {', '.join(loss_names())}"
        )
    return _LOSSES[name]


def _own_loss(path: str) -> LossSpec:
    module, _, name = path.rpartition(".")
    try:
        importlib.import_module(module)
    except (ImportError, SyntaxError, TypeError, ValueError) as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        advice = f"; put the folder of {module.partition('.')[0]}.py on PYTHONPATH" if missing else ""
        raise ValueError(f"the loss {path} cannot be imported: {type(error).__name__}: {error}{advice}") from error
    theirs = [each for each, spec in _LOSSES.items() if spec.function.__module__ == module]
    if name not in theirs:
        known = f"it has {', '.join(theirs)}" if theirs else 'put @preference_loss("...", source="...") on a function'
        raise ValueError(f"{module} registers no loss called {name!r}; {known}")
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
        _check(spec, key, value)
    parameters = {**spec.parameters, **chosen}
    return BoundLoss(spec, parameters, _with_parameters(spec, parameters))


def bind_all(entries: Sequence[Mapping[str, Any]], **wide: float | None) -> list[tuple[BoundLoss, float]]:
    """Bind a list of {"type": name, "weight": 1.0, **parameters}, each entry with its weight.

    A value of `wide` goes to every loss that has such a parameter; one inside an entry wins over it, None is none.
    Raises ValueError as `bind` does, for an empty list, a weight that is 0 or no number, a wide value that no loss has.
    """
    if not entries:
        raise ValueError("the list of losses is empty; give one loss at least, such as [{type: sigmoid}]")
    bound, taken = [], set()
    for entry in entries:
        own = {key: value for key, value in entry.items() if key not in ("type", "weight")}
        if "type" not in entry:
            raise ValueError(f"an entry of the list of losses has no type: {dict(entry)}; write {{type: sigmoid}}")
        name, weight = entry["type"], entry.get("weight", 1.0)
        if not _finite(weight) or weight == 0:
            raise ValueError(f"the weight of the loss {name} is {weight!r}; give a number other than 0")
        fitting = {key: value for key, value in wide.items() if key in get_loss(name).parameters}
        taken |= set(fitting)
        own = {key: value for key, value in own.items() if value is not None}
        bound.append((bind(name, **{**fitting, **own}), float(weight)))
    for key, value in wide.items():
        if value is not None and key not in taken:
            names = " and ".join(dict.fromkeys(str(entry["type"]) for entry in entries))
            raise ValueError(f"{key} is {value!r}, and {names} has no such parameter; leave {key} out")
    return bound


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check(spec: LossSpec, key: str, value: float) -> None:
    fits, sentence = RANGES.get(key, (_finite, f"{key} must be a number"))
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not fits(value):
        raise ValueError(f"{sentence}, not {value}")
    if not math.isfinite(value):
        raise ValueError(f"{key} must be finite, not {value}")
    if key in spec.positive and value == 0:
        raise ValueError(f"the loss {spec.name} needs a {key} above 0, not {value}; its own is {spec.parameters[key]}")


def _with_parameters(spec: LossSpec, parameters: dict[str, float]) -> Callable[..., Terms]:
    # Neither functools.partial nor a NamedTuple: in graph mode gradients through either are silently 0.
    function, both = spec.function, len(spec.denominators) > 1
    by_tokens = spec.denominators[0] == "chosen_tokens"
    takes_ratios, takes_policy, takes_reference, takes_counts, takes_mask = (each in spec.reads for each in INPUTS)

    def bound(ratios: Answers, policy: Answers, reference: Answers, counts: Answers, mask: Tensor) -> Terms:
        given: tuple[Any, ...] = ()
        if takes_ratios:
            given = (*given, ratios)
        if takes_policy:
            given = (*given, policy)
        if takes_reference:
            given = (*given, reference)
        if takes_counts:
            given = (*given, counts)
        if takes_mask:
            given = (*given, mask)
        terms = function(*given, **parameters)
        if both:
            return terms[0], terms[1]
        if by_tokens:
            return ops.zeros_like(terms), terms
        return terms, ops.zeros_like(terms)

    return bound
