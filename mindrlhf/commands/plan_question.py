"""What tools/plan_layout.py is asked: a model, its work, the devices; and its answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mindrlhf.config.schema import Config
from mindrlhf.models import BuildOptions, ModelFamily
from mindrlhf.parallel.layout import Layout, ModelShape
from mindrlhf.parallel.memory import Work
from mindrlhf.parallel.parameters import Traits
from mindrlhf.parallel.search import Found, Plan, plan_of, possible, search
from mindrlhf.parallel.traffic import Profile
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import PathLike
from mindrlhf.trainers.architecture import find_architecture

LARGER_THAN = 2  # pairs of a batch for each device; more are not tried to find out what would be possible
COMPUTES = {"auto": "bfloat16", "bfloat16": "bfloat16", "float16": "float16", "float32": "float32"}
GB = 2**30  # as MindSpore's max_device_memory counts
LONGER_THAN = 256  # tokens of rows that are not halved further to find out what would fit


def options_of(plan: Plan) -> str:
    """A layout in words."""
    return f"{plan.layout}{', recompute' if plan.recompute else ''}"


@dataclass(frozen=True)
class Question:
    """A model, its work, and the devices that are to do it. source: the run's yaml. memory: bytes of a device that
    training may take."""

    source: Path
    family: str
    parameters: int
    shape: ModelShape
    traits: Traits
    work: Work
    world: int
    memory: float
    profile: Profile

    @classmethod
    def of(cls, source: PathLike, config: Config, world: int, memory: float, profile: Profile) -> Question:
        """The question of a run, whose yaml is `source`; UserError where it leaves something open or cannot be."""
        from mindrlhf.data.rows import row_length

        if config.data.seq_len is None:
            raise UserError("data.seq_len is null, and rows have no length; set it, as in data.seq_len=4097")
        family, hf_config = find_architecture(config)
        length = row_length(config.data.seq_len)
        options = BuildOptions(
            length, COMPUTES[config.model.dtype], fused=True, aux_loss_coef=config.model.aux_loss_coef
        )
        # Refuses rows that the model cannot hold.
        settings = family.from_hf_config(hf_config, options)
        work = replace(Work.of(config, length), balances=bool(settings.get("aux_loss_coef")))
        return cls(
            source=Path(source).resolve(),
            family=family.name,
            parameters=count_parameters(family, hf_config),
            shape=family.shape(hf_config),
            traits=family.traits(hf_config),
            work=work,
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
            pairs = self._smallest_batch()
            more = f"; the smallest batch for which there is one: train.global_batch_pairs={pairs}" if pairs else ""
            return f"no layout {given} is possible: {reason}{more}"
        least = found.too_large[0]
        need = f"the smallest need is {least.worst.total / GB:.1f} GB ({options_of(least)})"
        helps = [f"{what} {need:.1f} GB" for what, need in self._remedies()]
        return f"no layout {given} fits: {need}; " + (
            f"it would be {', '.join(helps)}" if helps else "more devices or shorter rows may help"
        )

    def _smallest_batch(self) -> int | None:
        """The fewest pairs, above those asked for, for which some layout is possible."""
        for pairs in range(self.work.pairs + 1, LARGER_THAN * self.world + 1):
            if possible(self.shape, self.world, replace(self.work, pairs=pairs), self.traits):
                return pairs
        return None

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
