"""Rotary tables from a config.json: the base, its scaling for longer rows, and how many positions that admits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mindrlhf.runtime.errors import UserError

if TYPE_CHECKING:
    Floats = np.ndarray[Any, np.dtype[np.float32]]

KINDS = ("default", "linear", "dynamic", "yarn", "llama3")
_LONGER = ("linear", "dynamic", "yarn")  # kinds whose factor multiplies the positions


@dataclass(frozen=True)
class Rope:
    """What rotates q and k, as transformers reads it from a config.json.

    rotary_dim: entries of a head that rotate, the first ones. theta: the base. factor: of the scaling. original:
    positions before it, None where unknown. positions: those it admits, None where unknown. attention_factor: what
    cosines and sines are multiplied by (yarn). low, high: frequency factors of llama3, or betas (slow, fast) of yarn.
    truncate: whether yarn's range ends at whole dimensions.
    """

    kind: str
    rotary_dim: int
    theta: float = 10000.0
    factor: float = 1.0
    original: int | None = None
    positions: int | None = None
    attention_factor: float = 1.0
    low: float = 1.0
    high: float = 32.0
    truncate: bool = True

    def admit(self, length: int) -> None:
        """UserError where rows of `length` tokens have positions the model was not made for."""
        if self.positions is not None and length > self.positions:
            raise UserError(
                f"rows of {length} tokens pass the model's {self.positions} positions; lower --seq_len, in training "
                f"data.seq_len"
            )

    def tables(self, length: int) -> tuple[Floats, Floats]:
        """Cosines and sines of positions 0..length-1, each (length, rotary_dim) float32, the half-split form [f, f]."""
        angles = np.outer(np.arange(length, dtype=np.float32), self.inverse_frequencies(length))
        angles = np.concatenate((angles, angles), axis=1).astype(np.float64)
        factor = np.float32(self.attention_factor)
        return np.cos(angles).astype(np.float32) * factor, np.sin(angles).astype(np.float32) * factor

    def inverse_frequencies(self, length: int) -> Floats:
        """Radians per position, (rotary_dim/2,) float32; `length` of the rows matters to the kind "dynamic" alone.

        Static: that kind's base is the one for rows of `length` tokens, however many of them are padding.
        """
        plain = self._plain(self._base(length))
        if self.kind == "linear":
            return plain / np.float32(self.factor)
        if self.kind == "yarn":
            return self._yarn(plain)
        return self._llama3(plain) if self.kind == "llama3" else plain

    def _plain(self, base: float) -> Floats:
        exponents = np.arange(0, self.rotary_dim, 2, dtype=np.float32) / np.float32(self.rotary_dim)
        # float64 and back: NumPy's own float32 power is off by a unit, which position 30000 turns into 0.002 radians.
        powers = np.power(float(np.float32(base)), exponents.astype(np.float64)).astype(np.float32)
        return np.float32(1.0) / powers

    def _base(self, length: int) -> float:
        """theta; "dynamic": theta * (factor L / original - (factor - 1)) ^ (d / (d - 2)), L = max(length, original)."""
        if self.kind != "dynamic" or self.original is None:
            return self.theta
        growth = self.factor * max(length, self.original) / self.original - (self.factor - 1)
        return float(self.theta * growth ** (self.rotary_dim / (self.rotary_dim - 2)))

    def _yarn(self, plain: Floats) -> Floats:
        """Slow dimensions are interpolated (divided by factor), fast ones kept, a ramp between; arXiv 2309.00071."""
        first, last = self._turns(self.high), self._turns(self.low)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, self.rotary_dim - 1)
        width = np.float32(last - first or 0.001)
        ramp = (np.arange(self.rotary_dim // 2, dtype=np.float32) - np.float32(first)) / width
        kept = np.float32(1.0) - np.clip(ramp, 0, 1)
        slowed = np.float32(1.0) / (np.float32(self.factor) * (np.float32(1.0) / plain))
        return (slowed * (np.float32(1.0) - kept) + plain * kept).astype(np.float32)

    def _turns(self, turns: float) -> float:
        """The dimension that turns so often within the original positions."""
        assert self.original is not None
        return self.rotary_dim * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

    def _llama3(self, plain: Floats) -> Floats:
        """Wavelengths above original / low are divided by factor, those below original / high kept, a ramp between."""
        assert self.original is not None
        original, low, high = np.float32(self.original), np.float32(self.low), np.float32(self.high)
        # torch divides a number by a tensor as a product with the reciprocal.
        lengths = np.float32(1.0) / plain * np.float32(2 * math.pi)
        smooth = (np.float32(1.0) / lengths * original - low) / (high - low)
        factor = np.float32(self.factor)
        between = (np.float32(1.0) - smooth) * plain / factor + smooth * plain
        slow, fast = lengths > self.original / self.low, lengths < self.original / self.high
        return np.where(slow, plain / factor, np.where(fast, plain, between)).astype(np.float32)


def rope_settings(hf_config: Mapping[str, Any], head_dim: int, default_theta: float = 10000.0) -> Rope:
    """The Rope of a config.json, older (rope_theta, rope_scaling) or newer (rope_parameters), heads of `head_dim`.

    UserError by name for a kind not in KINDS, a missing or senseless number, and two keys that contradict each other.
    """
    given = _given(hf_config)
    kind = "mrope" if given.get("mrope_section") else given.get("rope_type") or given.get("type") or "default"
    if kind not in KINDS:
        raise UserError(f"config.json: rope scaling {kind!r} is not supported; these are: {', '.join(KINDS)}")
    theta = _number(given, "rope_theta", kind, default_theta, above=1.0)
    share = _number(given, "partial_rotary_factor", kind, 1.0)
    if share > 1:
        raise UserError(f"config.json: partial_rotary_factor is {share}; it must be 1 at most")
    plain = Rope(kind, int(head_dim * share), theta)
    original = _whole(hf_config, "max_position_embeddings")
    if kind == "default":
        if given.get("factor", 1) not in (None, 1):
            raise UserError(f"config.json: rope_scaling has factor {given['factor']} but no rope_type; name the kind")
        return Rope(kind, plain.rotary_dim, theta, original=original, positions=original)
    return _scaled(hf_config, given, plain)


def _scaled(hf_config: Mapping[str, Any], given: Mapping[str, Any], plain: Rope) -> Rope:
    kind = plain.kind
    limit = _whole(hf_config, "max_position_embeddings")
    original = limit
    if kind != "dynamic":
        own = _whole(hf_config, "original_max_position_embeddings") if kind != "linear" else None
        original = own or _whole(given, "original_max_position_embeddings") or limit
    if original is None and kind != "linear":
        raise UserError(f"config.json: rope scaling {kind!r} needs max_position_embeddings")
    default = limit / original if kind == "yarn" and limit and original else None
    factor = _number(given, "factor", kind, default, least=1.0)
    positions = limit
    if kind in _LONGER and original is not None:
        positions = max(int(original * factor), limit or 0)
    low, high, attention = 1.0, 32.0, 1.0
    if kind == "llama3":
        low, high = _number(given, "low_freq_factor", kind), _number(given, "high_freq_factor", kind)
        if high <= low:
            raise UserError(f"config.json: rope scaling 'llama3' has high_freq_factor {high}, not above low's {low}")
    if kind == "yarn":
        low, high = _number(given, "beta_slow", kind, 1.0), _number(given, "beta_fast", kind, 32.0)
        attention = _attention_factor(given, factor)
    truncate = given.get("truncate", True) is not False
    return Rope(kind, plain.rotary_dim, plain.theta, factor, original, positions, attention, low, high, truncate)


def _attention_factor(given: Mapping[str, Any], factor: float) -> float:
    """attention_factor as given, else 0.1 ln(factor) + 1, DeepSeek's as a ratio of two such with mscale's."""
    if given.get("attention_factor") is not None:
        return _number(given, "attention_factor", "yarn")
    grown = math.log(factor) if factor > 1 else 0.0
    if given.get("mscale") and given.get("mscale_all_dim"):
        above, below = _number(given, "mscale", "yarn"), _number(given, "mscale_all_dim", "yarn")
        return (0.1 * above * grown + 1) / (0.1 * below * grown + 1)
    return 0.1 * grown + 1


def _given(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """The rope keys of either form in one dict; UserError where the two forms stand there and differ."""
    newer, older = (hf_config.get(key) or {} for key in ("rope_parameters", "rope_scaling"))
    for key, value in (("rope_parameters", newer), ("rope_scaling", older)):
        if not isinstance(value, Mapping):
            raise UserError(f"config.json: {key} is {value!r}; it must be an object")
        if any(isinstance(inner, Mapping) for inner in value.values()):
            raise UserError(f"config.json: {key} by kind of layer is not supported")
    for key, value in older.items():
        if newer and newer.get(key, value) != value:
            raise UserError(f"config.json: rope_scaling and rope_parameters differ in {key}; keep one of the two")
    given = {**older, **newer}
    for key in ("rope_theta", "partial_rotary_factor"):
        flat = hf_config.get(key)
        if flat is not None and given.setdefault(key, flat) != flat:
            raise UserError(f"config.json: {key} is {flat}, and {given[key]} in rope_parameters; keep one of the two")
    return given


def _number(
    given: Mapping[str, Any],
    key: str,
    kind: str,
    default: float | None = None,
    above: float = 0.0,
    least: float | None = None,
) -> float:
    value = given.get(key)
    value = default if value is None else value
    if value is None:
        raise UserError(f"config.json: rope scaling {kind!r} needs {key}")
    finite = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not finite or value <= above or (least is not None and value < least):
        bound = f"of at least {least:g}" if least is not None else f"above {above:g}"
        raise UserError(f"config.json: {key} is {value!r}; it must be a number {bound}")
    return float(value)


def _whole(given: Mapping[str, Any], key: str) -> int | None:
    value = given.get(key)
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise UserError(f"config.json: {key} is {value!r}; it must be a whole number above 0")
    return value
