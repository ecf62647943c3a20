"""Every layout of so many devices: what it needs, how long its step takes, or why it cannot be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product

from mindrlhf.parallel.layout import SCORED_UNIT, Layout, ModelShape
from mindrlhf.parallel.memory import StageMemory, Work, estimate
from mindrlhf.parallel.parameters import FLOAT32, Traits, stage_slices
from mindrlhf.parallel.traffic import Profile, StepTime, step_time
from mindrlhf.runtime.errors import UserError


@dataclass(frozen=True)
class Plan:
    """A layout, with every layer recomputed or none, what each device of every stage holds, and its step."""

    layout: Layout
    recompute: bool
    stages: tuple[StageMemory, ...]
    step: StepTime

    @property
    def worst(self) -> StageMemory:
        """The stage that needs most."""
        return max(self.stages, key=lambda stage: stage.total)

    @property
    def rank(self) -> tuple[float, int]:
        """Quicker first; of two equally quick, the one that needs less."""
        return self.step.seconds, self.worst.total


@dataclass(frozen=True)
class Found:
    """Plans that fit, the best first; those that need more memory, the smallest first; refusals and how often."""

    fitting: list[Plan] = field(default_factory=list)
    too_large: list[Plan] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)


def plan_of(shape: ModelShape, layout: Layout, work: Work, traits: Traits, profile: Profile) -> Plan:
    """The plan of one layout; UserError where it does not fit model or batch."""
    check(shape, layout, work, traits)
    stages = estimate(shape, layout, work, traits)
    return Plan(layout, work.recompute, stages, step_time(shape, layout, work, traits, profile))


def check(shape: ModelShape, layout: Layout, work: Work, traits: Traits) -> None:
    """UserError where a model or its batch cannot be laid out so."""
    layout.check_model(shape, work.seq_length)
    work.check(layout)
    if layout.context_parallel > 1 and not traits.fused:
        raise UserError(
            f"parallel.context_parallel is {layout.context_parallel}, which families on MindFormers' older classes do "
            f"not have; divide long rows with parallel.model_parallel and parallel.sequence_parallel=true"
        )
    if layout.pipeline_stage > 1 and work.beside:
        raise UserError(
            f"parallel.pipeline_stage is {layout.pipeline_stage}, in which a model is trained alone; leave "
            f"{work.beside} out"
        )
    if layout.expert_parallel > 1 and not (shape.experts and layout.semi_auto):
        raise UserError(
            f"parallel.expert_parallel is {layout.expert_parallel}, which needs a model with experts, and "
            f"parallel.optimizer_shard, parallel.model_parallel or parallel.context_parallel"
        )


def possible(shape: ModelShape, world: int, work: Work, traits: Traits) -> bool:
    """Whether there is any layout of `world` devices, whatever it needs."""

    def passes(layout: Layout) -> bool:
        try:
            check(shape, layout, work, traits)
        except UserError:
            return False
        return True

    return any(map(passes, layouts(shape, world, work, traits)))


def search(shape: ModelShape, world: int, work: Work, traits: Traits, profile: Profile, memory: float) -> Found:
    """All layouts of `world` devices that each have `memory` bytes to use, with recomputed layers and without."""
    found = Found()
    for layout in layouts(shape, world, work, traits):
        try:
            check(shape, layout, work, traits)
        except UserError as error:
            found.refused[str(error)] += 1
            continue
        for recompute in (False, True):
            plan = plan_of(shape, layout, replace(work, recompute=recompute), traits, profile)
            (found.fitting if plan.worst.total <= memory else found.too_large).append(plan)
    found.fitting.sort(key=lambda plan: plan.rank)
    found.too_large.sort(key=lambda plan: (plan.worst.total, plan.rank))
    return found


def layouts(shape: ModelShape, world: int, work: Work, traits: Traits) -> Iterator[Layout]:
    """Layouts of `world` devices, refused ones too; no two that come to the same.

    Where matrices and layers cannot be divided, or pairs, one layout stands for all that differ in the rest.
    """
    contexts = [count for count in divisors(SCORED_UNIT) if traits.fused or count == 1]
    for mp, cp in product(divisors(world), contexts):
        for pp in divisors(world // (mp * cp)) if world % (mp * cp) == 0 else ():
            dp = world // (mp * cp * pp)
            for parts in micro_batches(work.pairs, dp, pp):
                # Rows are divided over both or over neither.
                plain = Layout(dp, mp, pp, parts, context_parallel=cp, sequence_parallel=cp > 1 and mp > 1)
                try:
                    check(shape, plain, work if plain.semi_auto else replace(work, micro_pairs=None), traits)
                except UserError:
                    yield plain
                    continue
                yield from variants(shape, plain, traits)


def variants(shape: ModelShape, plain: Layout, traits: Traits) -> Iterator[Layout]:
    """`plain` with whatever else may be chosen beside its numbers."""
    mp, ranks = plain.model_parallel, plain.per_stage
    # Between experts GPTModel divides hidden states whenever it divides matrices.
    sequence = [False] if mp == 1 else [True] if shape.experts or plain.sequence_parallel else [False, True]
    # It divides embedding and head whatever the layout says.
    whole_vocabulary = [True] if mp == 1 or traits.fused else [True, False]
    sharing = divisors(plain.data_parallel * mp)
    experts = [count for count in sharing if shape.experts % count == 0] if shape.experts else [1]
    for shard in (False, True) if ranks > 1 else (False,):
        for divided in sequence:
            for whole in whole_vocabulary:
                for count in experts:
                    layout = replace(
                        plain,
                        optimizer_shard=shard,
                        sequence_parallel=divided,
                        vocab_emb_dp=whole,
                        expert_parallel=count,
                    )
                    # Workers with whole models have whole experts.
                    if (count == 1 or layout.semi_auto) and (not shard or _divides(shape, layout, traits)):
                        yield layout


def _divides(shape: ModelShape, layout: Layout, traits: Traits) -> bool:
    """Whether there is anything that optimizer_shard divides."""
    slices = [stage_slices(shape, layout, traits, FLOAT32, stage) for stage in (0, layout.pipeline_stage - 1)]
    return any(item.shards > 1 for layer, beside in slices for item in (*layer, *beside))


def micro_batches(pairs: int, data_parallel: int, pipeline_stage: int) -> list[int]:
    """Numbers of parts that a pipeline may be fed with; one that is refused where none will do."""
    if pipeline_stage == 1:
        return [1]
    share, rest = divmod(pairs, data_parallel)
    parts = [count for count in divisors(share) if count >= pipeline_stage] if share and not rest else []
    return parts or [pipeline_stage]


def divisors(number: int) -> list[int]:
    """Those of `number`, ascending."""
    return [count for count in range(1, number + 1) if number % count == 0]
