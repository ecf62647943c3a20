"""plan_layout.py: the layouts of so many devices that a model fits, by estimated time of a step; needs no weights."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from mindrlhf.commands.flags import OVERRIDES, Parser, boolean, command, parse, read_config
from mindrlhf.commands.plan_question import GB, Question
from mindrlhf.commands.plan_report import as_json, lines_of
from mindrlhf.parallel.traffic import Profile
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.logging import quiet


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
    question = Question.of(words.config, config, words.world_size, memory, profile)
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
