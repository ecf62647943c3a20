from __future__ import annotations

import numpy as np
import pytest
from sliced_runs import random_layout, slice_of

from mindrlhf.parallel.slices import Uncut, bands, box_of, common, extent, full_shape, relative, whole, within
from mindrlhf.parallel.strategy import TensorLayout, is_whole

SHAPES = [(), (8,), (48,), (16, 8), (8, 48), (4, 8, 16), (2, 1, 8, 4)]


@pytest.mark.parametrize("devices", [1, 2, 4, 8, 12, 16])
def test_the_box_of_a_rank_is_what_splitting_gives(devices: int) -> None:
    random = np.random.default_rng(devices)
    for k in range(100):
        shape = SHAPES[k % len(SHAPES)]
        layout = random_layout(random, shape, devices, shard=k % 2 > 0)
        array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
        counts = np.zeros(shape, int)
        for rank in range(devices):
            box = box_of(layout, shape, rank)
            held = slice_of(array, layout, rank)
            assert np.array_equal(array[within(box, whole(shape))], held), layout
            assert extent(box) == held.shape
            assert full_shape(layout, held.shape) == shape
            counts[within(box, whole(shape))] += 1
        assert (counts == counts.flat[0]).all(), "each number is held equally often"
        assert is_whole(layout) == (counts.flat[0] == devices)


def test_a_grid_smaller_than_the_world_repeats_on_the_right() -> None:
    # What MindSpore makes of Square().shard(((4, 1),)) on 8 devices: rank r holds slice r // 2.
    layout = TensorLayout((4, 2), ((1,), ()))
    assert [box_of(layout, (8, 3), rank)[0] for rank in range(8)] == [
        *([(0, 2)] * 2),
        *([(2, 4)] * 2),
        *([(4, 6)] * 2),
        *([(6, 8)] * 2),
    ]


def test_the_optimizer_shares_a_slice_between_neighbours_of_the_same_slice() -> None:
    # dp4 mp2: ranks 0, 2, 4, 6 hold the same rows; two by two they share them.
    layout = TensorLayout((4, 2), ((0,), ()), 0, 2, 2)
    assert [box_of(layout, (8, 3), rank)[0] for rank in range(8)] == [
        *((0, 2), (4, 6), (2, 4), (6, 8)),
        *((0, 2), (4, 6), (2, 4), (6, 8)),
    ]


def test_a_single_axis_may_be_split_by_several() -> None:
    layout = TensorLayout((2, 2), ((1,), (0,)))  # as it is read from a file: one list of two entries
    assert [box_of(layout, (8,), rank) for rank in range(4)] == [((0, 2),), ((2, 4),), ((4, 6),), ((6, 8),)]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(Uncut, match=r"axis 0 of \(28, 4\) is not divisible by 8"):
        box_of(TensorLayout((8,), ((0,), ())), (28, 4), 0)
    with pytest.raises(Uncut, match="it has 3 axes, its strategy says 2"):
        full_shape(TensorLayout((8,), ((0,), ())), (1, 2, 3))
    with pytest.raises(Uncut, match="no axis to be cut"):
        full_shape(TensorLayout((8,), (), 0, 1, -1), ())


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (5, 7), (3, 4, 5), (1, 6, 2)])
@pytest.mark.parametrize("limit", [1, 4, 10, 1000])
def test_bands_make_up_a_tensor_in_order(shape: tuple[int, ...], limit: int) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    found = [array[within(box, whole(shape))] for box in bands(shape, limit)]
    assert all(piece.size <= limit for piece in found)
    assert [number for piece in found for number in piece.reshape(-1)] == array.reshape(-1).tolist()


def test_boxes_meet() -> None:
    assert common(((0, 4), (2, 6)), ((2, 8), (0, 3))) == ((2, 4), (2, 3))
    assert common(((0, 4),), ((4, 8),)) is None
    assert common((), ()) == ()
    assert relative(((4, 6), (2, 3)), ((4, 8), (0, 4))) == ((0, 2), (2, 3))
