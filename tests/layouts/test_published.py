"""Every yaml of a published size under model_configs: its own layout, world, widths and rows, with 2 layers a stage.

Compiled by the command that users type, not run; `compile_published.py` tells how. A new yaml is found by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable

import mindspore
import pytest
from demands import STATES, beside_parameters, demand, redistributions, reductions

from mindrlhf.config.load import load_config
from mindrlhf.parallel.gate import PROVEN
from mindrlhf.parallel.layout import Layout

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(mindspore.__version__ not in PROVEN, reason="the gate is not proven on this MindSpore"),
]

CONFIGS = Path(__file__).resolve().parents[2] / "model_configs"
AT_ONCE = 2


def published() -> dict[str, Path]:
    """Name -> yaml, of those with a model's sizes but the small ones; of several that differ in weights only, one."""
    found: dict[str, Path] = {}
    seen = []
    for path in sorted(CONFIGS.rglob("*.yaml")):
        config = asdict(load_config(str(path)))
        config["model"]["load_checkpoint"] = None
        if config["model"]["config"] and path.parent.name != "tiny" and config not in seen:
            seen.append(config)
            found[path.relative_to(CONFIGS).with_suffix("").as_posix()] = path
    return found


PUBLISHED = published()


@pytest.fixture(scope="module")
def started(
    request: pytest.FixtureRequest,
    processes: Callable[..., Future[Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Future[Any]]:
    """What came of those that this session asks for, in a few processes with several each."""
    folder = tmp_path_factory.mktemp("published")
    chosen = [item.callspec.params.get("compiled") for item in request.session.items if hasattr(item, "callspec")]
    paths = [str(PUBLISHED[name]) for name in dict.fromkeys(chosen) if name in PUBLISHED]
    shares = [paths[number::AT_ONCE] for number in range(AT_ONCE)]
    return [
        processes("compile_published.py", folder / f"{number}.json", *share)
        for number, share in enumerate(shares)
        if share
    ]


@pytest.fixture(scope="module", params=PUBLISHED)
def compiled(request: pytest.FixtureRequest, started: list[Future[Any]]) -> dict[str, Any]:
    """What the command made of one yaml."""
    path = str(PUBLISHED[request.param])
    (found,) = (future.result()[path] for future in started if path in future.result())
    assert not isinstance(found, str), found
    return found


def stages(compiled: dict[str, Any], reference: bool = False) -> Iterator[tuple[int, Layout, dict[str, Any]]]:
    """(number, layout, graph) of each stage of the training; with `reference` also of an online reference."""
    for graph in compiled["graphs"]:
        layout = Layout(**graph["layout"])
        if reference or graph["trains"]:
            yield graph["rank"] // (layout.world // layout.pipeline_stage), layout, graph


def shapes_of(graph: dict[str, Any]) -> dict[str, list[int]]:
    """Weight -> its shape, undivided."""
    return {name: held["full"] for name, held in graph["parameters"].items() if held["kind"] in ("trained", "frozen")}


def test_the_strategies_cover_every_trained_parameter(compiled: dict[str, Any]) -> None:
    numbers, layouts, graphs = zip(*stages(compiled))
    stage_count = layouts[0].pipeline_stage
    assert list(numbers) == list(range(stage_count))
    assert len(compiled["strategies"]) == layouts[0].world
    trained = [shapes_of(graph) for graph in graphs]
    assert all(graph["parameters"][name]["kind"] == "trained" for graph in graphs for name in shapes_of(graph))
    assert sorted(name for names in trained for name in names) == compiled["weights"]
    for rank, names in enumerate(compiled["strategies"]):
        here = trained[rank * stage_count // layouts[0].world]
        prefixes = ("", *(STATES if stage_count > 1 else STATES[:2]))
        assert set(names) == {prefix + name for prefix in prefixes for name in here}, rank


def test_an_online_reference_is_compiled_too(compiled: dict[str, Any]) -> None:
    frozen = [sorted(shapes_of(graph)) for graph in compiled["graphs"] if not graph["trains"]]
    assert frozen == [compiled["weights"]] * compiled["online"]


def test_every_parameter_is_divided_as_its_kind_demands(compiled: dict[str, Any]) -> None:
    for _, layout, graph in stages(compiled, reference=True):
        full = shapes_of(graph)
        wanted = {name: demand(name, shape, layout, graph["rank"]).local(shape) for name, shape in full.items()}
        assert {name: graph["parameters"][name]["local"] for name in full} == wanted


def test_one_gradient_reduction_for_each_parameter(compiled: dict[str, Any]) -> None:
    for _, layout, graph in stages(compiled, reference=True):
        full = shapes_of(graph)
        wanted = reductions(full, full, layout, graph["rank"]) if graph["trains"] else {}
        found = graph["reductions"]
        assert {name: [kind, ranks] for name, kind, ranks in found} == wanted
        assert len(found) == len(wanted), "a gradient is reduced twice"


def test_no_logits_are_sent(compiled: dict[str, Any]) -> None:
    """Of what is no parameter and no gradient of one, nothing has the vocabulary's axis, whole or a worker's part, nor
    is anything as large as a worker's part of the logits: of a sequence (R,S,V), or of the scored tokens (R,T,V)."""
    vocabulary = compiled["vocabulary"]
    for graph in compiled["graphs"]:
        layout = Layout(**graph["layout"])
        full = {
            name: held["full"] for name, held in graph["parameters"].items() if held["kind"] in ("trained", "frozen")
        }
        rules = {name: demand(name, shape, layout, graph["rank"]) for name, shape in full.items()}
        shapes = [rule.local(full[name], shared) for name, rule in rules.items() for shared in (True, False)]
        (rows, length), (_, scored) = graph["inputs"][0], graph["inputs"][3]
        rows //= layout.data_parallel * layout.micro_batch_num
        axes = {vocabulary, vocabulary // layout.model_parallel}
        for one in beside_parameters(graph["collectives"], shapes):
            assert not axes & {*one["sent"], *one["received"]}, one
            assert one["elements"] < rows * min(length, scored) * min(axes), one


def test_redistributions_are_those_that_are_wanted(compiled: dict[str, Any]) -> None:
    """As in the table of docs/parallel.md: of figures of pairs, and of rows where the sequence is divided."""
    routed = compiled["family"] == "qwen3_moe"
    for number, layout, graph in stages(compiled, reference=True):
        outputs, sequences, tokens = redistributions(
            layout, number, compiled["layers"] // layout.pipeline_stage, routed
        )
        found = [one for one in graph["collectives"] if one["cause"] == "redistribution"]
        forward = [one for one in found if one["role"] == "forward"]
        assert {one["kind"] for one in forward} <= {"AllGather"}
        small = [one for one in forward if len(one["received"]) == 2]
        assert tokens == 0, "count the chunks of scored tokens"
        # Of a reference the log-probs of answers and of their shared length, which may be one array.
        assert len(small) == outputs or (not graph["trains"] and len(small) == min(outputs, 1))
        assert len(forward) - len(small) == sequences
        wanted = sequences if graph["trains"] else 0
        assert [one["kind"] for one in found if one["role"] == "gradient"] == ["ReduceScatter"] * wanted
