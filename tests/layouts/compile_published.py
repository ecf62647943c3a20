"""Compile yaml files of published sizes as `run_dpo.py --only_save_strategy True` does it, with fewer layers, and write
down what MindSpore's passes made of each, as JSON.

    python compile_published.py out.json model_configs/yi/6b.yaml model_configs/yi/34b.yaml

One process for all: the first compilation is the slow one.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable

from compile_layouts import failure, forget_layouts, reductions

LAYERS = 2  # of a stage of the pipeline
REFERENCE = "reference."  # before the names of an online reference's weights


def command_of(path: str, output: Path) -> list[str]:
    """The words behind run_dpo.py for the yaml's own number of workers."""
    from mindrlhf.config.load import load_config

    parallel = load_config(path).parallel
    inner = parallel.context_parallel * parallel.model_parallel * parallel.pipeline_stage
    world = int(parallel.data_parallel) * inner
    words = ["--config", path, "--only_save_strategy", "True", "--dry_run_world_size", str(world)]
    return [*words, f"model.config.num_hidden_layers={LAYERS * parallel.pipeline_stage}", f"output_dir={output}"]


class Watched:
    """What the command compiles, kept on its way through `mindrlhf.parallel.dry_run`."""

    def __init__(self) -> None:
        self.graphs: list[dict[str, Any]] = []

    def dry_run(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Keeps the shapes of rows and of what is scored in them, and every stage."""

        def watched(make: Callable[[int], Any], layout: Any, folder: Path, ranks: Sequence[int]) -> Any:
            fields: list[Any] = []

            def made(rank: int) -> Any:
                graph = make(rank)
                fields.append([list(given.shape) for given in graph.inputs if hasattr(given, "shape")])
                return graph

            before = len(self.graphs)
            stages = original(made, layout, folder, ranks)
            assert len(self.graphs) - before == len(stages) == len(fields)
            for graph, stage, shapes in zip(self.graphs[before:], stages, fields):
                graph.update(
                    layout=asdict(layout),
                    rank=stage.rank,
                    trains=any(held.kind == "trained" for held in stage.parameters.values()),
                    inputs=shapes,
                    parameters={name.removeprefix(REFERENCE): asdict(held) for name, held in stage.parameters.items()},
                    collectives=[{**asdict(one), "elements": one.elements} for one in stage.collectives],
                )
            return stages

        return watched

    def last_graph(self, original: Callable[..., Path]) -> Callable[..., Path]:
        """Keeps the sums of gradients, which the command does not tell apart by parameter."""

        def watched(folder: Path) -> Path:
            path = original(folder)
            self.graphs.append({"reductions": reductions(path)})
            return path

        return watched


def compile_yaml(path: str, output: Path) -> dict[str, Any]:
    """What the command wrote for the yaml, and the graphs that it compiled."""
    from mindrlhf.commands.train import main
    from mindrlhf.config.load import load_config
    from mindrlhf.parallel import dry_run
    from mindrlhf.parallel.strategy import STRATEGY, read_strategy, strategy_path
    from mindrlhf.trainers.architecture import find_architecture

    words = command_of(path, output)
    forget_layouts()
    began = time.perf_counter()
    watched, before = Watched(), (dry_run.dry_run, dry_run.last_graph)
    dry_run.dry_run, dry_run.last_graph = watched.dry_run(before[0]), watched.last_graph(before[1])
    try:
        assert main(words) == 0
    finally:
        dry_run.dry_run, dry_run.last_graph = before
    config = load_config(path, [words[-2]])
    family, hf_config = find_architecture(config)
    files = [strategy_path(output / STRATEGY, rank) for rank in range(len(list((output / STRATEGY).iterdir())))]
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "family": family.name,
        "vocabulary": hf_config["vocab_size"],
        "layers": hf_config["num_hidden_layers"],
        "online": config.rlhf.reference == "online",
        "weights": sorted(name for group in family.tensors(hf_config) for name in group.ms),
        "strategies": [sorted(read_strategy(file)) for file in files],
        "graphs": watched.graphs,
    }


def compile_all(paths: Sequence[str]) -> Mapping[str, Any]:
    """Path of a yaml -> what came of it, or the error."""
    found: dict[str, Any] = {}
    for path in paths:
        with tempfile.TemporaryDirectory(prefix="published-") as folder:
            try:
                found[path] = compile_yaml(path, Path(folder) / "out")
            except Exception as error:  # noqa: BLE001  (whatever it was, the others are compiled)
                found[path] = failure(error)
    return found


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(compile_all(sys.argv[2:])), encoding="utf-8")
