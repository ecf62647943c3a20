"""A box of any tensor of any family: it is the cut of the whole, and is made of little more than its own numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from mindrlhf.models import families
from mindrlhf.models.family import TINY_HEAD
from mindrlhf.models.hf_weights import Group
from mindrlhf.parallel.slices import Box, box_of, extent, whole, within
from mindrlhf.parallel.strategy import TensorLayout

VARIANTS = [(name, variant) for name, family in families().items() for variant in ("", *family.tiny_variants)]
EVERY_VARIANT = pytest.mark.parametrize(
    ("name", "variant"), VARIANTS, ids=[" ".join(filter(None, both)) for both in VARIANTS]
)
BOXES = 12  # of each tensor
RANKS = 4


def groups_of(name: str, variant: str) -> list[Group]:
    """The tensors of a model of one layer: 4 heads, 8 experts, 96 words."""
    family = families()[name]
    config = family.tiny_config(vocab_size=96, hidden_size=128, layers=1)
    return list(family.tensors(family.tiny_variants[variant](config) if variant else config))


class Reader:
    """A group's Hugging Face tensors, no two numbers of which are equal; read counts the numbers it gave."""

    def __init__(self, group: Group) -> None:
        ends = np.cumsum([math.prod(shape) for shape in group.hf.values()])
        self.arrays = [
            np.arange(end - math.prod(shape), end, dtype=np.float32).reshape(shape)
            for end, shape in zip(ends, group.hf.values())
        ]
        assert ends[-1] < 1 << 24, "float32 could not tell them apart"
        self.given = 0
        self.touched: set[int] = set()

    def __call__(self, number: int, box: Box) -> np.ndarray:
        shape = self.arrays[number].shape
        assert len(box) == len(shape)
        assert all(0 <= start < stop <= size for (start, stop), size in zip(box, shape)), f"{box} of {shape}"
        self.given += math.prod(extent(box))
        self.touched.add(number)
        return self.arrays[number][within(box, whole(shape))].copy()


def random_boxes(shape: tuple[int, ...], random: np.random.Generator) -> Iterator[Box]:
    """Of any place and size, one number and everything among them."""
    yield whole(shape)
    yield tuple((size - 1, size) for size in shape)
    for _ in range(BOXES):
        ends = [np.sort(random.choice(size + 1, 2, replace=False)) for size in shape]
        yield tuple((int(start), int(stop)) for start, stop in ends)


def spare(name: str, group: Group, box: Box) -> int:
    """Numbers that may be read beside those of a box: GLM-4's heads are permuted inside, so that at either end of the
    box one head of q or k may be read from its first needed row to its last, of which one row at least is needed."""
    permuted = name == "glm4" and "linear_qkv" in group.ms[0]
    return 2 * (TINY_HEAD - 1) * math.prod(extent(box)[1:]) if permuted else 0


@EVERY_VARIANT
def test_a_box_is_the_cut_of_the_whole(name: str, variant: str) -> None:
    random = np.random.default_rng(11)
    for group in groups_of(name, variant):
        reader = Reader(group)
        joined = group.join(*reader.arrays)
        assert [array.shape for array in joined] == list(group.ms_shapes.values())
        for number, array in enumerate(joined):
            for box in random_boxes(array.shape, random):
                reader.given = 0
                found = group.cut(number, box, reader)
                expected = array[within(box, whole(array.shape))]
                assert found.dtype == expected.dtype, group.ms[number]
                np.testing.assert_array_equal(found, expected, f"{group.ms[number]} {box}")
                assert reader.given <= expected.size + spare(name, group, box), f"{group.ms[number]} {box}"


# How MindSpore lays matrices on four devices: the grid's last axis is model_parallel (or, of experts, their number),
# and those that hold one slice may share its rows (optimizer_shard).
HALVED = {
    "rows": TensorLayout((2, 2), ((0,), ())),
    "columns": TensorLayout((2, 2), ((), (0,))),
    "rows, shared by two": TensorLayout((2, 2), ((0,), ()), opt_weight_shard_step=2, opt_weight_shard_size=-1),
    "columns, shared by two": TensorLayout((2, 2), ((), (0,)), opt_weight_shard_step=2, opt_weight_shard_size=-1),
    "shared by four": TensorLayout((4,), ((), ()), opt_weight_shard_step=1, opt_weight_shard_size=-1),
    "both": TensorLayout((2, 2), ((1,), (0,))),
}


@EVERY_VARIANT
@pytest.mark.parametrize("layout", HALVED.values(), ids=HALVED)
def test_four_ranks_read_every_number_as_often_as_they_hold_it(name: str, variant: str, layout: TensorLayout) -> None:
    """linear_qkv has 256 rows, 8 times a head's 32, so that no slice ends inside of a head: nothing is read beside
    what is held, of GLM-4 neither."""
    for group in groups_of(name, variant):
        reader = Reader(group)
        for number, shape in enumerate(group.ms_shapes.values()):
            for rank in range(RANKS if len(shape) == 2 else 0):
                reader.given = 0
                box = box_of(layout, shape, rank)
                assert group.cut(number, box, reader).shape == extent(box)
                assert reader.given == math.prod(extent(box)), group.ms[number]


def test_a_rank_reads_the_experts_that_it_holds() -> None:
    """8 experts on 4 ranks: rank 1 holds 2 and 3."""
    layout = TensorLayout((4,), ((0,), ()))
    groups = [group for group in groups_of("qwen3_moe", "") if ".experts." in group.ms[0]]
    read = set()
    for group in groups:
        reader = Reader(group)
        (shape,) = group.ms_shapes.values()
        group.cut(0, box_of(layout, shape, 1), reader)
        read |= {list(group.hf)[number] for number in reader.touched}
    assert read == {
        f"model.layers.0.mlp.experts.{expert}.{part}_proj.weight"
        for expert in (2, 3)
        for part in ("gate", "up", "down")
    }
