"""--only_save_strategy: the layout of a run, compiled and written down without a step being trained."""

from __future__ import annotations

import re
import resource
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mindrlhf.config.schema import Config
from mindrlhf.parallel.layout import Layout
from mindrlhf.runtime import logging
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.logging import log

if TYPE_CHECKING:
    from mindrlhf.parallel.dry_run import Stage
    from mindrlhf.parallel.memory import StageMemory, Work
    from mindrlhf.trainers.architecture import Architecture

RECORD = "dry_run.json"
_RANKS = re.compile(r"(\d+)(?:-(\d+))?")


def only_save_strategy(config: Config, world: int | None, ranks: str | None) -> None:
    """Write the strategy of every rank (or of `ranks`, as in 0,4-7) under output_dir and show what the layout costs.

    On Ascend the workers that run compile, as MindSpore does it; elsewhere one process pretends to be `world`. Raises
    `UserError` where neither can be done.
    """
    from mindrlhf.checkpoint.store import NETWORK
    from mindrlhf.runtime.device import find_target

    output = Path(config.output_dir)
    if (output / NETWORK).exists():
        raise UserError(
            f"{output} holds the checkpoint of a run, whose strategy this would replace; set another output_dir"
        )
    if find_target(config.device.target) == "Ascend":
        if world is not None or ranks is not None:
            raise UserError("--dry_run_world_size and --dry_run_ranks are for a machine without NPUs; leave them out")
        _on_devices(config)
        return
    if logging.world() > 1:
        raise UserError("without NPUs a layout is compiled in one process; run it without the launcher")
    if world is not None and world < 1:
        raise UserError(f"--dry_run_world_size is {world}; give a number of workers, such as 8")
    layout = Layout.of(config.parallel, world or _own_world(config))
    layout.check_batch(config.train.global_batch_pairs)
    _pretend(config, layout, _chosen(ranks, layout.world))


def _own_world(config: Config) -> int:
    """The number of workers that the yaml itself says."""
    parallel = config.parallel
    if parallel.data_parallel == "auto":
        raise UserError("for how many workers? parallel.data_parallel is auto; give --dry_run_world_size, such as 8")
    inner = parallel.context_parallel * parallel.model_parallel * parallel.pipeline_stage
    return int(parallel.data_parallel) * inner


def _chosen(words: str | None, world: int) -> list[int]:
    """The ranks that `words` such as 0,4-7 name, ascending; all where it is None."""
    if words is None:
        return list(range(world))
    found: set[int] = set()
    for word in words.split(","):
        match = _RANKS.fullmatch(word.strip())
        if not match:
            raise UserError(f"--dry_run_ranks: '{word}' is no rank; give numbers and ranges, such as 0,4-7")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise UserError(f"--dry_run_ranks: {word} runs backwards; give the lower rank first")
        if last >= world:
            raise UserError(f"--dry_run_ranks: {word} does not lie in 0-{world - 1}, the ranks of {world} workers")
        found.update(range(first, last + 1))
    return sorted(found)


def _on_devices(config: Config) -> None:
    from mindrlhf.parallel.context import recorded_strategy
    from mindrlhf.parallel.strategy import STRATEGY, remove_beyond, strategy_path, write_strategy
    from mindrlhf.trainers.architecture import find_architecture
    from mindrlhf.trainers.graph import training_graph
    from mindrlhf.trainers.setup import setup_training

    device, layout = setup_training(config)
    graph = training_graph(config, device, layout, find_architecture(config))
    shapes = {parameter.name: parameter.shape for parameter in graph.model.get_parameters()}
    path = strategy_path(Path(config.output_dir) / STRATEGY, device.rank)
    if layout.semi_auto:
        with recorded_strategy(path):
            graph.step.compile(*graph.inputs)
    else:
        write_strategy(path, shapes, layout.world)
    if device.rank == 0:
        remove_beyond(path.parent, layout.world)
    log(f"strategy: {path.parent}")
    device.leave()


def _pretend(config: Config, layout: Layout, ranks: Sequence[int]) -> None:
    from mindrlhf.parallel.dry_run import dry_run
    from mindrlhf.parallel.memory import estimate
    from mindrlhf.parallel.strategy import STRATEGY, remove_beyond
    from mindrlhf.runtime.device import Device
    from mindrlhf.runtime.files import require_writable, write_json
    from mindrlhf.trainers.architecture import find_architecture
    from mindrlhf.trainers.frozen import reference_architecture
    from mindrlhf.trainers.graph import check_layout, row_length_of, training_graph
    from mindrlhf.trainers.policy import check_routing
    from mindrlhf.trainers.registry import loss_settings

    found = find_architecture(config)
    shape, traits = found.family.shape(found.hf_config), found.family.traits(found.hf_config)
    layout.check_model(shape, row_length_of(config))
    check_routing(config, found.family, layout)
    loss = loss_settings(config)
    check_layout(config, layout, loss)
    reference = reference_architecture(config, found) if loss.reference == "online" else None
    if reference:
        layout.check_model(reference.family.shape(reference.hf_config), row_length_of(config))
    folder = Path(config.output_dir) / STRATEGY
    require_writable(config.output_dir)
    log(f"{layout.world} workers: {layout}; compiling for Ascend, nothing is computed")
    stages = dry_run(
        lambda rank: training_graph(config, Device("Ascend", rank, layout.world, pretended=True), layout, found),
        layout,
        folder,
        ranks,
    )
    remove_beyond(folder, layout.world)
    works = _works(config)
    records = []
    for stage in stages:
        number = stage.ranks[0] // len(stage.ranks)
        with_and_without = [estimate(shape, layout, work, traits)[number] for work in works]
        log("\n".join(report(stage, *with_and_without)))
        records.append(record(stage, *with_and_without))
    said: dict[str, object] = {"world": layout.world, "stages": records}
    if reference:
        scoring = _pretend_reference(config, layout, reference)
        log("\n".join(report_reference(scoring)))
        said["reference"] = record_reference(scoring)
    write_json(Path(config.output_dir) / RECORD, said)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    log(f"strategy of {len(ranks)} rank(s): {folder}  (peak memory of this process {peak:.1f} GB)")


def _pretend_reference(config: Config, layout: Layout, found: Architecture) -> Stage:
    """The graph that scores a batch before its step, compiled likewise."""
    from mindrlhf.parallel.dry_run import dry_run
    from mindrlhf.runtime.device import Device
    from mindrlhf.trainers.frozen import reference_graph

    # Its strategy is not kept: what is merged and cut is the policy.
    with tempfile.TemporaryDirectory(prefix="mindrlhf-strategy-") as scratch:
        (stage,) = dry_run(
            lambda rank: reference_graph(config, Device("Ascend", rank, layout.world, pretended=True), layout, found),
            layout,
            Path(scratch),
            [0],
        )
    return stage


def _works(config: Config) -> list[Work]:
    """The work of a step, every activation being kept, and layers being computed anew; a reference tells of itself."""
    from mindrlhf.parallel.memory import Work
    from mindrlhf.trainers.graph import row_length_of

    work = replace(Work.of(config, row_length_of(config)), reference_bytes=0)
    return [replace(work, recompute=recompute) for recompute in (False, True)]


def report(stage: Stage, kept: StageMemory, recomputed: StageMemory) -> list[str]:
    """What a stage costs each of its ranks, in lines; estimates of its memory without and with recomputation."""
    sizes = stage.sizes
    return [
        f"stage of ranks {stage.ranks[0]}-{stage.ranks[-1]}, compiled in {stage.seconds:.0f} s",
        f"  parameters per rank  {sizes.local:,} of the stage's {sizes.full:,}",
        f"  memory per rank      weights {_size(sizes.weights)}, gradients {_size(sizes.gradients)}, "
        f"optimizer {_size(sizes.states)}",
        f"  and as estimated     activations {_size(kept.activations)}, with train.recompute "
        f"{_size(recomputed.activations)}; weights gathered or in 16 bits {_size(kept.copies)}, with train.recompute "
        f"{_size(recomputed.copies)}",
        "  collectives of a step (what train.recompute repeats is counted once)",
        *_collectives(stage),
    ]


def report_reference(stage: Stage) -> list[str]:
    """What an online reference costs each rank beside that, in lines."""
    sizes = stage.sizes
    return [
        f"online reference, compiled in {stage.seconds:.0f} s",
        f"  parameters per rank  {sizes.local:,} of {sizes.full:,}",
        f"  memory per rank      weights {_size(sizes.weights)}",
        "  collectives of a batch that it scores",
        *_collectives(stage),
    ]


def _collectives(stage: Stage) -> list[str]:
    from mindrlhf.parallel.collectives import summary

    lines = [
        f"    {kind:<14} over {size:>4}  {count:>5} x  {_size(nbytes)}"
        for kind, size, count, nbytes in summary(stage.collectives)
    ]
    return lines or ["    none"]


def record(stage: Stage, kept: StageMemory, recomputed: StageMemory) -> dict[str, object]:
    """The same for machines."""
    return {
        "ranks": [stage.ranks[0], stage.ranks[-1]],
        "seconds": stage.seconds,
        **asdict(stage.sizes),
        "estimate": asdict(kept),
        "estimate_with_recompute": asdict(recomputed),
        "collectives": _rows(stage),
    }


def record_reference(stage: Stage) -> dict[str, object]:
    """The same of an online reference."""
    sizes = {name: size for name, size in asdict(stage.sizes).items() if name in ("full", "local", "weights")}
    return {"seconds": stage.seconds, **sizes, "collectives": _rows(stage)}


def _rows(stage: Stage) -> list[dict[str, object]]:
    from mindrlhf.parallel.collectives import summary

    return [dict(zip(("kind", "group", "count", "bytes"), row)) for row in summary(stage.collectives)]


def _size(nbytes: float) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**29 else f"{nbytes / 2**20:.2f} MiB"
