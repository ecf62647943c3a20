"""Checkpoints cut over ranks by a rule of their own: NumPy splits along a grid of devices, no `parallel/slices`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import mindspore
import numpy as np

from mindrlhf.checkpoint import store
from mindrlhf.parallel.strategy import TensorLayout, write_stages

Arrays = dict[str, np.ndarray]
Stages = list[dict[str, TensorLayout]]


def slice_of(array: np.ndarray, layout: TensorLayout, rank: int) -> np.ndarray:
    """What a rank of a stage holds."""
    place = _places(layout, array.ndim, rank)
    for axis, indices in enumerate(place):
        for size, index in indices:
            array = np.split(array, size, axis=axis)[index]
    if layout.opt_weight_shard_step and layout.opt_weight_shard_size:
        same = [other for other in range(layout.devices) if _places(layout, array.ndim, other) == place]
        size = layout.opt_weight_shard_size if layout.opt_weight_shard_size > 0 else len(same)
        array = np.split(array, size, axis=0)[same.index(rank) % size]
    return array


def _places(layout: TensorLayout, ndim: int, rank: int) -> list[list[tuple[int, int]]]:
    """For each axis of the tensor (parts, which of them), the first the coarsest."""
    grid = np.arange(layout.devices).reshape(layout.dev_matrix)
    (coordinates,) = np.argwhere(grid == rank)
    maps = layout.tensor_map if len(layout.tensor_map) == ndim else [sum(layout.tensor_map, ())]
    return [[(layout.dev_matrix[-1 - axis], int(coordinates[-1 - axis])) for axis in axes] for axes in maps]


def random_layout(random: np.random.Generator, shape: Sequence[int], devices: int, shard: bool) -> TensorLayout:
    """Some layout of a tensor on a stage that divides its shape."""
    grid: list[int] = []
    left = devices
    while left > 1:
        grid.append(int(random.choice([k for k in range(2, left + 1) if left % k == 0])))
        left //= grid[-1]
    grid.insert(int(random.integers(len(grid) + 1)), 1)
    free = list(random.permutation(len(grid)))
    maps: list[tuple[int, ...]] = []
    for size in shape:
        axes: list[int] = []
        while free and random.random() < 0.5 and len(axes) < 2:
            axis = int(free.pop())
            if size % (grid[-1 - axis] * int(np.prod([grid[-1 - other] for other in axes]))) == 0:
                axes.append(axis)
        maps.append(tuple(axes))
    layout = TensorLayout(tuple(grid), tuple(maps))
    others = devices // int(np.prod([grid[-1 - axis] for axes in maps for axis in axes]))
    rows = shape[0] // int(np.prod([grid[-1 - axis] for axis in maps[0]])) if shape else 0
    sizes = [size for size in range(2, others + 1) if others % size == 0 and rows and rows % size == 0]
    if not shard or not sizes:
        return layout
    size = int(random.choice(sizes))
    step = next(k for k in range(1, devices) if _places(layout, len(shape), k) == _places(layout, len(shape), 0))
    return TensorLayout(layout.dev_matrix, layout.tensor_map, 0, step, -1 if size == others else size)


def random_stages(random: np.random.Generator, arrays: Mapping[str, np.ndarray], world: int) -> Stages:
    """A layout of every tensor, over one, two or four pipeline stages."""
    count = int(random.choice([k for k in (1, 2, 4) if world % k == 0 and k <= len(arrays)]))
    names = list(arrays)
    bounds = [0, *sorted(random.choice(range(1, len(names)), count - 1, replace=False).tolist()), len(names)]
    shard = bool(random.random() < 0.5)
    return [
        {name: random_layout(random, arrays[name].shape, world // count, shard) for name in names[start:stop]}
        for start, stop in zip(bounds, bounds[1:])
    ]


def cut(folder: Path, arrays: Mapping[str, np.ndarray], stages: Stages, kind: str = "safetensors") -> Path:
    """An output folder as another program would leave it: slices and strategies, no manifest."""
    shutil.rmtree(folder, ignore_errors=True)
    write_stages(folder / "strategy", stages)
    rank = 0
    for layouts in stages:
        for number in range(next(iter(layouts.values())).devices):
            held = {name: slice_of(arrays[name], layout, number) for name, layout in layouts.items() if name in arrays}
            write_rank(folder, rank, held, kind)
            rank += 1
    return folder


def write_rank(folder: Path, rank: int, held: Mapping[str, np.ndarray], kind: str = "safetensors") -> Path:
    """The file of one rank."""
    path = store.network_file(folder, rank).with_suffix(f".{kind}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "ckpt":
        parameters = [{"name": name, "data": mindspore.Tensor(np.ascontiguousarray(a))} for name, a in held.items()]
        mindspore.save_checkpoint(parameters, str(path))
        path.chmod(0o600)
    else:
        store.save_weights(held, path)
    return path


def model(seed: int = 0) -> Arrays:
    """A few tensors of random numbers, of which 2, 4 and 8 divide most axes."""
    random = np.random.default_rng(seed)
    shapes = {
        "model.tok_embeddings.weight": (32, 8),
        "model.layers.0.wq.weight": (16, 8),
        "model.layers.0.wo.weight": (8, 16),
        "model.layers.0.norm.weight": (8,),
        "model.layers.0.experts.weight": (8, 4, 16),
        "model.layers.1.wq.bias": (16,),
        "model.layers.1.w2.weight": (8, 24),
        "lm_head.weight": (32, 8),
    }
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["model.layers.0.wo.weight"] = arrays["model.layers.0.wo.weight"].astype(np.float16)
    return arrays


def dense(arrays: Mapping[str, np.ndarray], dp: int, mp: int, pp: int = 1, shard: bool = False) -> Stages:
    """Layouts as training at (dp, mp, pp) has them: columns of wo and w2, rows of the other matrices, norms whole."""
    names = list(arrays)
    size = -(-len(names) // pp)
    stages: Stages = [{} for _ in range(pp)]
    for k, (name, array) in enumerate(arrays.items()):
        columns = ".wo." in name or ".w2." in name
        split = [(0,) if axis == (1 if columns else 0) and "norm" not in name else () for axis in range(array.ndim)]
        rest = dp if "norm" not in name else dp * mp
        opt = (mp if "norm" not in name else 1, -1) if shard and rest > 1 else (0, 0)
        stages[k // size][name] = TensorLayout((dp, mp), tuple(split), 0, *opt)
    return stages


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """Whether the bits are."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )
