"""What tools/plan_layout.py prints: a table and the best layout's yaml, or JSON."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from mindrlhf.commands.plan_question import GB, Question, options_of
from mindrlhf.parallel.layout import Layout

if TYPE_CHECKING:
    from mindrlhf.parallel.search import Found, Plan

COLUMNS = (
    *("dp", "cp", "mp", "pp", "micro", "shard", "vocab", "seq", "ep", "recompute"),
    *("GB", "weights", "gradients", "optimizer", "activations", "sent GB", "s/step", "of peak"),
)
LEGEND = (
    "dp, cp, mp, pp, ep: data_, context_, model_parallel, pipeline_stage, expert_parallel; micro: micro_batch_num;",
    "shard: optimizer_shard; vocab: embedding and head divided; seq: sequence_parallel. GB are a device's, of the",
    "stage that needs most; weights with their 16-bit copies and a frozen reference. Estimates, see docs/planning.md.",
)


PIPELINES = "A pipeline (pp above 1) was compiled and never run, see docs/parallel.md; it trains without evaluations."


def lines_of(question: Question, found: Found, own: Plan | str, top: int, verbose: bool) -> list[str]:
    """The report for people."""
    work = question.work
    lines = [
        f"{question.family}, {question.parameters:,} parameters: {work.pairs} pairs a step in rows of "
        f"{work.seq_length} tokens, on {question.world} devices with {question.memory / GB:.1f} GB for training",
        f"{len(found.fitting)} layouts fit, {len(found.too_large)} need more memory, "
        f"{sum(found.refused.values())} cannot be{'' if verbose else ' (--verbose says why)'}",
        "",
        *_table([_row(plan, question) for plan in found.fitting[:top]]),
        *LEGEND,
        *([PIPELINES] if any(plan.layout.pipeline_stage > 1 for plan in found.fitting[:top]) else []),
        "",
        *_own(question, found, own),
        "the first of them, as a yaml for --config:",
        "",
        f"include: [{question.source}]",
        *yaml_of(found.fitting[0]),
    ]
    if verbose:
        lines += ["", *(f"{count} x {reason}" for reason, count in found.refused.most_common())]
        lines += [f"{plan.worst.total / GB:.1f} GB: {options_of(plan)}" for plan in found.too_large]
    return lines


def _own(question: Question, found: Found, own: Plan | str) -> list[str]:
    """Where the layout of the yaml itself stands."""
    if isinstance(own, str):
        return [f"the yaml's own layout cannot be: {own}"]
    need = f"{own.worst.total / GB:.1f} GB, {own.step.seconds:.2f} s/step"
    if own.worst.total > question.memory:
        return [f"the yaml's own layout ({options_of(own)}) does not fit: {need}"]
    slower = own.step.seconds / found.fitting[0].step.seconds
    return [f"the yaml's own layout ({options_of(own)}) fits: {need}, {slower:.2f} times the first"]


def _row(plan: Plan, question: Question) -> tuple[str, ...]:
    from mindrlhf.parallel.parameters import vocabulary_parts

    layout, worst = plan.layout, plan.worst
    divided = vocabulary_parts(question.shape, layout, question.traits) > 1
    sequence = layout.sequence_parallel
    weights = worst.weights + worst.copies + worst.reference
    parts = (worst.total, weights, worst.gradients, worst.optimizer, worst.activations, plan.step.moved)
    return (
        *map(str, (layout.data_parallel, layout.context_parallel, layout.model_parallel)),
        *map(str, (layout.pipeline_stage, layout.micro_batch_num)),
        *("yes" if flag else "-" for flag in (layout.optimizer_shard, divided, sequence)),
        str(layout.expert_parallel),
        "yes" if plan.recompute else "-",
        *(f"{size / GB:.1f}" for size in parts),
        f"{plan.step.seconds:.2f}",
        f"{plan.step.share_of_peak:.0%}",
    )


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows)]
    return ["  ".join(word.rjust(width) for word, width in zip(row, widths)) for row in (COLUMNS, *rows)]


def settings_of(layout: Layout) -> dict[str, Any]:
    """The keys of `parallel` in a yaml."""
    return {field.name: getattr(layout, field.name) for field in fields(layout)}


def yaml_of(plan: Plan) -> list[str]:
    """What a run's yaml says to have this layout."""
    lines = ["parallel:"]
    lines += [f"  {name}: {str(value).lower()}" for name, value in settings_of(plan.layout).items()]
    return [*lines, "train:", f"  recompute: {str(plan.recompute).lower()}"]


def as_json(question: Question, found: Found, own: Plan | str, top: int, verbose: bool) -> dict[str, Any]:
    """The report for machines: bytes and seconds."""
    report: dict[str, Any] = {
        "family": question.family,
        "parameters": question.parameters,
        "world_size": question.world,
        "memory": int(question.memory),
        "work": asdict(question.work),
        "fitting": len(found.fitting),
        "too_large": len(found.too_large),
        "refused": sum(found.refused.values()),
        "plans": [_plan_json(plan) for plan in found.fitting[:top]],
        "own": own if isinstance(own, str) else _plan_json(own),
    }
    if verbose:
        report["refusals"] = dict(found.refused.most_common())
        report["larger"] = [_plan_json(plan) for plan in found.too_large]
    return report


def _plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "parallel": settings_of(plan.layout),
        "recompute": plan.recompute,
        "seconds": plan.step.seconds,
        "share_of_peak": plan.step.share_of_peak,
        "sent": int(plan.step.moved),
        "need": plan.worst.total,
        "stages": [{**asdict(stage), "total": stage.total} for stage in plan.stages],
    }
