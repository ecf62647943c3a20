"""plan_layout.py: the layouts of so many devices that a model fits, by estimated time of a step; needs no weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mindrlhf.commands.flags import OVERRIDES, Parser, boolean, command, parse, read_config
from mindrlhf.commands.plan_report import GB, as_json, lines_of, options_of
from mindrlhf.config.schema import Config
from mindrlhf.models import ModelFamily
from mindrlhf.parallel.layout import Layout, ModelShape
from mindrlhf.parallel.memory import Work
from mindrlhf.parallel.parameters import Traits
from mindrlhf.parallel.search import Found, Plan, plan_of, search
from mindrlhf.parallel.traffic import Profile
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.logging import quiet
from mindrlhf.trainers.architecture import find_architecture

LONGER_THAN = 256  # tokens of rows that are not halved further to find out what would fit


def parser() -> Parser:
    """The command line."""
    flags = command("plan_layout.py", __doc__, OVERRIDES)
    run = flags.add_argument_group("run")
    run.add_argument("--config", metavar="FILE", required=True, help="yaml of the run, with the model's shapes")
    run.add_argument("--world_size", metavar="N", type=int, required=True, help="number of devices")
    device = flags.add_argument_group("device")
    peak = Profile()
    device.add_argument("--device_memory", metavar="GB", type=float, default=64.0, help="memory of a device")
    device.add_argument(
        "--reserve", metavar="GB", type=float, default=6.0, help="of it, what the runtime and communication take"
    )
    for flag, metavar, value, said in (
        ("--peak_tflops", "N", peak.flops / 1e12, "16-bit products a second of a device, in 10^12"),
        ("--efficiency", "SHARE", peak.efficiency, "share of that which training reaches"),
        ("--node_bandwidth", "GB/S", peak.node_bandwidth / 1e9, "one way, of a device to the others of its node"),
        ("--network_bandwidth", "GB/S", peak.network_bandwidth / 1e9, "one way, of a device to other nodes"),
    ):
        device.add_argument(flag, metavar=metavar, type=float, default=value, help=said)
    device.add_argument("--node_devices", metavar="N", type=int, default=peak.node_devices, help="devices of a node")
    output = flags.add_argument_group("output")
    output.add_argument("--top", metavar="N", type=int, default=10, help="layouts to list")
    output.add_argument("--format", choices=("table", "json"), default="table", help="for people or for machines")
    output.add_argument(
        "--verbose",
        type=boolean,
        nargs="?",
        const=True,
        default=False,
        metavar="True|False",
        help="also say which layouts cannot be, and why",
    )
    return flags


def main(argv: Sequence[str]) -> int:
    """Run the command; 0, or UserError, also where no layout fits."""
    quiet()
    words, overrides = parse(parser(), argv)
    memory, profile = _memory(words.device_memory, words.reserve), _profile(words)
    for flag in ("world_size", "top"):
        if getattr(words, flag) < 1:
            raise UserError(f"--{flag} is {getattr(words, flag)}; give 1 or more")
    config = read_config(words, overrides, {})
    question = Question.of(config, words.world_size, memory, profile)
    found = question.answer()
    if not found.fitting:
        if words.verbose:
            print("\n".join(f"{count} x {reason}" for reason, count in found.refused.most_common()))
        raise UserError(question.why_none(found))
    own = question.own(config)
    if words.format == "json":
        print(json.dumps(as_json(question, found, own, words.top, words.verbose), indent=1))
    else:
        print("\n".join(lines_of(question, found, own, words.top, words.verbose)))
    return 0


def _memory(device: float, reserve: float) -> float:
    if not 0 <= reserve < device < math.inf:
        raise UserError(f"--device_memory {device:g} less --reserve {reserve:g} leaves no memory to train in")
    return (device - reserve) * GB


def _profile(words: Any) -> Profile:
    for flag in ("peak_tflops", "efficiency", "node_bandwidth", "network_bandwidth", "node_devices"):
        if not 0 < getattr(words, flag) < math.inf:
            raise UserError(f"--{flag} is {getattr(words, flag):g}; give a number above 0")
    if words.efficiency > 1:
        raise UserError(f"--efficiency is {words.efficiency:g}; give a share, 1 at most")
    return Profile(
        flops=words.peak_tflops * 1e12,
        efficiency=words.efficiency,
        node_devices=words.node_devices,
        node_bandwidth=words.node_bandwidth * 1e9,
        network_bandwidth=words.network_bandwidth * 1e9,
    )


@dataclass(frozen=True)
class Question:
    """A model, its work, and the devices that are to do it. memory: bytes of a device that training may take."""

    family: str
    parameters: int
    shape: ModelShape
    traits: Traits
    work: Work
    world: int
    memory: float
    profile: Profile

    @classmethod
    def of(cls, config: Config, world: int, memory: float, profile: Profile) -> Question:
        """The question of a run; UserError where its yaml leaves something open."""
        from mindrlhf.data.rows import row_length

        if config.data.seq_len is None:
            raise UserError("data.seq_len is null, and rows have no length; set it, as in data.seq_len=4097")
        family, hf_config = find_architecture(config)
        return cls(
            family=family.name,
            parameters=count_parameters(family, hf_config),
            shape=family.shape(hf_config),
            traits=family.traits(hf_config),
            work=Work.of(config, row_length(config.data.seq_len)),
            world=world,
            memory=memory,
            profile=profile,
        )

    def answer(self) -> Found:
        """All layouts."""
        return search(self.shape, self.world, self.work, self.traits, self.profile, self.memory)

    def own(self, config: Config) -> Plan | str:
        """The plan of the yaml's own layout, or why it is not of so many devices or cannot be."""
        try:
            layout = Layout.of(config.parallel, self.world)
            return plan_of(self.shape, layout, self.work, self.traits, self.profile)
        except UserError as error:
            return str(error)

    def why_none(self, found: Found) -> str:
        """One sentence: the smallest need, and what would help."""
        given = f"of {self.world} devices with {self.memory / GB:.1f} GB for training"
        if not found.too_large:
            reasons = [reason for reason, _ in found.refused.most_common()]
            # Of layouts that fit the model the batch is what is wanting.
            reason = next((reason for reason in reasons if "global_batch_pairs" in reason), reasons[0])
            return f"no layout {given} is possible: {reason}"
        least = found.too_large[0]
        need = f"the smallest need is {least.worst.total / GB:.1f} GB ({options_of(least)})"
        helps = [f"{what} {need:.1f} GB" for what, need in self._remedies()]
        return f"no layout {given} fits: {need}; " + (
            f"it would be {', '.join(helps)}" if helps else "more devices or shorter rows may help"
        )

    def _remedies(self) -> list[tuple[str, float]]:
        """What would lower the smallest need, and to how many GB."""
        work = self.work
        changed = {f"on {2 * self.world} devices": replace(self, world=2 * self.world)}
        if work.seq_length > LONGER_THAN:
            shorter = replace(work, seq_length=work.seq_length // 2, scored=min(work.scored, work.seq_length // 2))
            changed["with rows half as long"] = replace(self, work=shorter)
        if work.reference_bytes:
            changed["with rlhf.reference=record"] = replace(self, work=replace(work, reference_bytes=0))
        needs = {what: replace(other, memory=0.0).answer().too_large for what, other in changed.items()}
        return [(what, plans[0].worst.total / GB) for what, plans in needs.items() if plans]


def count_parameters(family: ModelFamily, hf_config: Mapping[str, Any]) -> int:
    """Elements of all tensors."""
    return sum(math.prod(shape) for group in family.tensors(hf_config) for shape in group.hf.values())
