"""Compile a training graph for a world of workers, in one process without a device and without weights.

MindSpore's own parallel passes do the work, so that the layout of every parameter and the communication are theirs:
the gate is opened, questions about workers and groups are answered for the world that is pretended, compilation
stops before kernels are chosen, and parameters get the shapes of their slices without being filled. What it cannot
tell: whether the kernels run, what memory and time a device takes.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from mindrlhf.parallel import context
from mindrlhf.parallel.collectives import LAST_GRAPH, Collective, last_graph, read_collectives
from mindrlhf.parallel.gate import open_gate
from mindrlhf.parallel.groups import known_groups
from mindrlhf.parallel.layout import Layout
from mindrlhf.parallel.strategy import strategy_path, write_strategy
from mindrlhf.runtime.files import replacing

if TYPE_CHECKING:
    from mindspore import nn

# Groups that a model's own code made: kept for the life of the process, since MindFormers makes each only once.
_made: dict[str, tuple[int, ...]] = {}
_LISTED = re.compile(r"[a-z_]+((?:-\d+)+)")  # a group of MindFormers' that is called after its ranks


class Graph(NamedTuple):
    """What is to be compiled: `step` with `inputs`. The parameters of `model` are weights, the step's others the
    optimizer's."""

    step: nn.Cell
    model: nn.Cell
    inputs: Sequence[Any]


@dataclass(frozen=True)
class Held:
    """A parameter and what one rank holds of it.

    kind: "trained", "frozen"; "gradient", summed over the parts of a pipeline's batch; or, of the optimizer's, "state".
    """

    full: tuple[int, ...]
    local: tuple[int, ...]
    dtype: str
    kind: str

    @property
    def nbytes(self) -> int:
        """Bytes of the local part."""
        return math.prod(self.local) * (2 if self.dtype in ("BFloat16", "Float16") else 4)


@dataclass(frozen=True)
class Sizes:
    """Of the parameters of a stage: elements of all and of one rank's part, bytes of that part's weights, of their
    gradients (float32, as the weights that are trained) and of the optimizer's states."""

    full: int
    local: int
    weights: int
    gradients: int
    states: int


@dataclass(frozen=True)
class Stage:
    """What a stage of the pipeline came to, compiled as its `rank`. ranks: all that it stands for."""

    rank: int
    ranks: range
    parameters: dict[str, Held]
    collectives: list[Collective]
    seconds: float

    @property
    def sizes(self) -> Sizes:
        """What one rank holds, added up."""
        weights = [part for part in self.parameters.values() if part.kind in ("trained", "frozen")]
        return Sizes(
            full=sum(math.prod(part.full) for part in weights),
            local=sum(math.prod(part.local) for part in weights),
            weights=sum(part.nbytes for part in weights),
            gradients=sum(part.nbytes for part in self.parameters.values() if part.kind in ("trained", "gradient")),
            states=sum(part.nbytes for part in self.parameters.values() if part.kind == "state"),
        )


class _Manager:
    """Stands for MindSpore's collective manager where it is asked whether the workers have met."""

    @staticmethod
    def get_instance() -> _Manager:
        return _Manager()

    @staticmethod
    def initialized() -> bool:
        return True


@contextmanager
def simulate(layout: Layout, rank: int, strategy_file: Path, graphs: Path) -> Iterator[None]:
    """Within it this process is `rank` of the layout's world to all that asks, and compiles without computing.

    Build the model and compile it inside. Raises `UserError` where the gate cannot be opened.
    """
    import mindspore
    from mindspore.parallel._auto_parallel_context import auto_parallel_context

    open_gate()
    with ExitStack() as stack:
        stack.callback(mindspore.reset_auto_parallel_context)
        stack.enter_context(_variables(MS_DEV_PRECOMPILE_ONLY="1", MS_DEV_DUMP_IR_PASSES=LAST_GRAPH))
        stack.enter_context(_answers(layout, rank))
        mindspore.set_context(mode=mindspore.GRAPH_MODE, save_graphs=2, save_graphs_path=str(graphs))
        stack.callback(mindspore.set_context, save_graphs=0)
        context.enter(layout, rank)
        stack.enter_context(context.recorded_strategy(strategy_file))
        # By it the passes ask nobody how many workers there are.
        auto_parallel_context()._context_handle.set_hccl_test_avaible(True)
        yield


@contextmanager
def _variables(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _answers(layout: Layout, rank: int) -> Iterator[None]:
    """What MindSpore looks up when it is asked about workers, groups and slices."""
    from mindspore import nn
    from mindspore.common import parameter
    from mindspore.communication import _comm_helper, management
    from mindspore.parallel import _utils

    groups = known_groups(layout.world)

    def members(group: str | None) -> Sequence[int]:
        listed = _LISTED.fullmatch(group or "")
        if group in _made:
            return _made[group]
        if listed:
            return tuple(map(int, listed[1].split("-")[1:]))
        return groups.get(group or "", range(layout.world))

    def size(group: str | None = None, **_: Any) -> int:
        return len(members(group))

    def place(group: str | None = None, **_: Any) -> int:
        return list(members(group)).index(rank)

    def make(group: str, ranks: Sequence[int], *_: Any, **__: Any) -> None:
        _made[group] = tuple(ranks)

    def cut(whole: Any, phase: str, parts: Any) -> None:
        if parts is not None and not whole.sliced and whole.shape:
            whole.shape = shape = _utils._load_tensor_shape_by_layout(whole, parts, rank)
            if hasattr(whole.init_mode, "shape"):
                whole.init_mode.shape = shape
        whole.sliced = True

    new = {
        (management, "_get_size_helper"): size,
        (management, "_get_rank_helper"): place,
        (management, "_create_group_helper"): make,
        (_comm_helper, "CollectiveManager"): _Manager,
        (_utils, "_slice_parameter"): cut,
        (_utils, "_init_optimizer_state"): lambda parameter, phase: None,
        # Nothing is filled, where every worker has a whole model either.
        (parameter, "_is_in_auto_parallel_mode"): lambda: True,
        (nn.Cell, "init_parameters_data"): lambda cell, auto_parallel_mode=False: {},
    }
    before = {(module, name): getattr(module, name) for module, name in new}
    try:
        for (module, name), answer in new.items():
            setattr(module, name, answer)
        yield
    finally:
        for (module, name), answer in before.items():
            setattr(module, name, answer)


def dry_run(make: Callable[[int], Graph], layout: Layout, folder: Path, ranks: Sequence[int]) -> list[Stage]:
    """Compile what `make` builds for a rank, once for each stage of the pipeline that `ranks` touch.

    Writes the strategy of every rank of `ranks` to `folder`: those of a stage are equal.
    """
    per_stage = layout.per_stage
    stages = []
    for number in sorted({rank // per_stage for rank in ranks}):
        members = range(number * per_stage, (number + 1) * per_stage)
        mine = [rank for rank in ranks if rank in members]
        with tempfile.TemporaryDirectory(prefix="mindrlhf-dry-run-") as scratch:
            written = Path(scratch) / "strategy.ckpt"
            stage = _compile(make, layout, members, written, Path(scratch) / "graphs")
            for rank in mine:
                _keep(stage, written, strategy_path(folder, rank), layout)
        stages.append(stage)
    return stages


def _keep(stage: Stage, written: Path, path: Path, layout: Layout) -> None:
    if layout.semi_auto:
        with replacing(path) as temporary:
            shutil.copyfile(written, temporary)
    else:
        # MindSpore writes none where every worker has a whole model.
        weights = {name: part.full for name, part in stage.parameters.items() if part.kind in ("trained", "frozen")}
        write_strategy(path, weights, layout.world)


def _compile(make: Callable[[int], Graph], layout: Layout, members: range, written: Path, graphs: Path) -> Stage:
    began = time.perf_counter()
    rank = members[0]
    with simulate(layout, rank, written, graphs):
        step, model, inputs = make(rank)
        parameters = list(step.get_parameters())
        full = {parameter.name: tuple(parameter.shape) for parameter in parameters}
        weights = {parameter.name: parameter.requires_grad for parameter in model.get_parameters()}
        step.compile(*inputs)
        here = step.parameter_layout_dict if layout.semi_auto else full
        slices = {
            parameter.name: Held(
                full[parameter.name], tuple(parameter.shape), str(parameter.dtype), _kind(parameter.name, weights)
            )
            for parameter in parameters
            if parameter.name in here
        }
        found = read_collectives(last_graph(graphs), _made, layout.world)
    return Stage(rank, members, slices, found, time.perf_counter() - began)


def _kind(name: str, weights: Mapping[str, bool]) -> str:
    if name in weights:
        return "trained" if weights[name] else "frozen"
    return "gradient" if name.startswith("accu_grads.") else "state"
