"""What a compiled graph sends between workers, read from the form in which MindSpore writes its last pass down."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mindrlhf.runtime.files import PathLike

LAST_GRAPH = "handle_group_info"  # the last pass of the frontend: forward and backward, local shapes, ranks of groups
_KINDS = (
    *("AllReduce", "AllGather", "ReduceScatter", "AlltoAll", "AllToAll", "AlltoAllV", "AllGatherV", "Broadcast"),
    *("Send", "Receive", "NeighborExchange", "MatMulReduceScatter", "AllGatherMatmul"),
)
_NODE = re.compile(rf"^  %\d+\([^)]*\) = (?:PrimFunc_)?(?P<kind>{'|'.join(_KINDS)})\(")
_TENSOR = re.compile(r"Tensor\[(\w+)\], \(([\d, -]*)\)")
_ORDER = re.compile(r"_(\d{4})\.ir$")
_BYTES = {"Float32": 4, "Int32": 4, "BFloat16": 2, "Float16": 2, "Int64": 8, "UInt8": 1, "Bool": 1, "Int8": 1}


@dataclass(frozen=True)
class Collective:
    """One communication of the graph, as one worker sees it.

    role: "forward" or "gradient". cause: "mirror" sums the gradient of a parameter, "redistribution" is what the passes
    insert between operators that divide a tensor differently, "operator" belongs to an operator, "written" to the
    model's own code. sent, received: shapes on this worker; dtype as MindSpore spells it.
    """

    kind: str
    role: str
    cause: str
    ranks: tuple[int, ...]
    dtype: str
    sent: tuple[int, ...]
    received: tuple[int, ...]
    where: str

    @property
    def elements(self) -> int:
        """Elements of the larger side."""
        return max(math.prod(self.sent), math.prod(self.received))

    @property
    def nbytes(self) -> int:
        """Bytes of the larger side."""
        return self.elements * _BYTES.get(self.dtype, 4)


def last_graph(folder: PathLike) -> Path:
    """The newest graph of `LAST_GRAPH` in the folder that MindSpore wrote its graphs to."""
    found = [file for file in Path(folder).rglob("*.ir") if LAST_GRAPH in file.name and _ORDER.search(file.name)]
    if not found:
        raise FileNotFoundError(f"no graph of {LAST_GRAPH} under {folder}")
    return max(found, key=lambda file: int(_ORDER.findall(file.name)[0]))


def read_collectives(path: PathLike, named: Mapping[str, tuple[int, ...]], world: int) -> list[Collective]:
    """Every communication of a graph; `named`: ranks of the groups that a model's own code named; a group
    that is not listed is that of all workers.

    What a function is called for several times stands there once.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    found = []
    for number, line in enumerate(lines):
        match = _NODE.match(line)
        if match:
            found.append(_collective(match["kind"], line, lines[number + 1 : number + 4], named, world))
    return found


def _collective(
    kind: str, line: str, behind: list[str], named: Mapping[str, tuple[int, ...]], world: int
) -> Collective:
    shapes = [(dtype, _numbers(shape)) for dtype, shape in _TENSOR.findall(behind[0] if behind else "")]
    dtype, sent = shapes[0] if shapes else ("Float32", ())
    received = shapes[-1][1] if shapes else ()
    group = re.search(r'group: "([^"]+)"', line)
    listed = re.search(r"group_rank_ids: \(([\d, ]*)\)", line)
    if group and group[1] in named:
        # The graph lists all workers for a group that the passes did not make.
        ranks, cause = named[group[1]], "written"
    else:
        ranks, cause = _numbers(listed[1]) if listed else tuple(range(world)), _cause(line)
    where = re.search(r"Fullname with scope: \(([^)]*)\)", "\n".join([line, *behind]))
    return Collective(
        kind=kind,
        role="gradient" if "grad_" in line or "Gradients" in (where[1] if where else "") else "forward",
        cause=cause,
        ranks=ranks,
        dtype=dtype,
        sent=sent,
        received=received,
        where=where[1] if where else "",
    )


def _cause(line: str) -> str:
    # Send and Receive of a tied embedding carry mirror_user_id: they sum no gradient.
    if "mirror" in re.sub(r"mirror_user_id", "", line):
        return "mirror"
    if "redistribution_op" in line:
        return "redistribution"
    return "operator" if "forward_op" in line else "other"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part.strip())


def summary(found: Iterable[Collective]) -> list[tuple[str, int, int, int]]:
    """(kind, size of its group, how many, bytes of all) by kind and size."""
    counts: Counter[tuple[str, int]] = Counter()
    sizes: Counter[tuple[str, int]] = Counter()
    for one in found:
        counts[one.kind, len(one.ranks)] += 1
        sizes[one.kind, len(one.ranks)] += one.nbytes
    return [(kind, size, counts[kind, size], sizes[kind, size]) for kind, size in sorted(counts)]
