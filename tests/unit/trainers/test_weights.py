"""Weights into parameters: whole ones, and the slices of a rank, from whatever lies on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mindspore import Parameter, Tensor

from mindrlhf.checkpoint.hf_folder import hugging_face_folder
from mindrlhf.checkpoint.store import fingerprint, save_weights
from mindrlhf.checkpoint.tensor_file import TensorFile, spec_of
from mindrlhf.checkpoint.tensors import Tensors
from mindrlhf.config.schema import Config, Model
from mindrlhf.models import families, get_family
from mindrlhf.parallel.layout import ONE_WORKER, Layout
from mindrlhf.parallel.slices import Box, box_of, extent, whole, within
from mindrlhf.parallel.strategy import TensorLayout
from mindrlhf.runtime.device import Device
from mindrlhf.runtime.errors import IncompleteCheckpoint
from mindrlhf.runtime.files import write_json
from mindrlhf.trainers.policy import Source, find_source
from mindrlhf.trainers.weights import first_weights, load_slices, load_weights


def source_of(folder: Path, name: str, ours: bool) -> tuple[Source, dict[str, np.ndarray]]:
    """Random weights of a family on the disk, under MindFormers' names or Hugging Face's; and MindFormers' arrays."""
    family = get_family(name)
    config = family.tiny_config(vocab_size=96, hidden_size=128, layers=2)
    random = np.random.default_rng(3)
    shapes = {key: shape for group in family.tensors(config) for key, shape in group.hf.items()}
    theirs = {key: random.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    arrays = {key: np.ascontiguousarray(array) for key, array in family.hf_to_ms(theirs, config).items()}
    if ours:
        save_weights(arrays, folder / "ms.safetensors")
    else:
        with hugging_face_folder(folder, {key: spec_of(array) for key, array in theirs.items()}, 60_000) as put:
            for key, array in theirs.items():
                put(key, array)
    write_json(folder / "config.json", config)
    return find_source(Config(model=Model(load_checkpoint=str(folder)))), arrays


def parameters_for(shapes: dict[str, tuple[int, ...]]) -> dict[str, Parameter]:
    return {key: Parameter(Tensor(np.zeros(shape, np.float32)), name=key) for key, shape in shapes.items()}


def boxes_for(arrays: dict[str, np.ndarray], rank: int) -> dict[str, Box]:
    """Matrices cut in two, along either axis, of every second tensor alone: the others are another stage's."""
    boxes = {}
    for number, (key, array) in enumerate(sorted(arrays.items())):
        box = [(0, size) for size in array.shape]
        if array.ndim > 1:
            axis = number % 4 // 2
            half = array.shape[axis] // 2
            box[axis] = (rank * half, rank * half + half)
        if number % 2:
            boxes[key] = tuple(box)
    return boxes


@pytest.mark.parametrize("ours", [True, False], ids=["MindFormers", "Hugging Face"])
@pytest.mark.parametrize("name", sorted(families()))
def test_a_rank_gets_its_slices(tmp_path: Path, name: str, ours: bool) -> None:
    source, arrays = source_of(tmp_path, name, ours)
    for rank in (0, 1):
        boxes = boxes_for(arrays, rank)
        cut = {key: arrays[key][tuple(slice(*side) for side in box)] for key, box in boxes.items()}
        parameters = parameters_for({key: array.shape for key, array in cut.items()})
        load_slices(source, parameters, boxes, rank, world=2)
        for key, array in cut.items():
            np.testing.assert_array_equal(parameters[key].asnumpy(), array)
            assert parameters[key].sliced


def test_of_a_tensor_nothing_but_the_slice_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, arrays = source_of(tmp_path, "llama", ours=True)
    wide = max(arrays, key=lambda key: arrays[key].nbytes)
    box = ((0, arrays[wide].shape[0] // 4), (0, arrays[wide].shape[1]))
    asked = []
    read = TensorFile.read

    def watched(file: TensorFile, key: str, box: Box | None = None) -> np.ndarray:
        asked.append((key, box))
        return read(file, key, box)

    monkeypatch.setattr(TensorFile, "read", watched)
    parameters = parameters_for({wide: tuple(stop - start for start, stop in box)})
    load_slices(source, parameters, {wide: box})
    assert asked == [(wide, box)]


@pytest.mark.parametrize("name", sorted(families()))
def test_of_a_hugging_face_folder_a_rank_reads_as_much_as_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """model_parallel 2 on rows, or experts on 2 devices, and each half shared by two: no head is cut."""
    source, arrays = source_of(tmp_path, name, ours=False)
    layouts = {
        ndim: TensorLayout((2, 2), ((0,), ())[:ndim], opt_weight_shard_step=2, opt_weight_shard_size=-1)
        for ndim in (1, 2)
    }
    read = Tensors.read
    given = []

    def watched(tensors: Tensors, key: str, box: Box | None = None) -> np.ndarray:
        array = read(tensors, key, box)
        given.append(array.nbytes)
        return array

    monkeypatch.setattr(Tensors, "read", watched)
    for rank in range(4):
        boxes = {key: box_of(layouts[array.ndim], array.shape, rank) for key, array in arrays.items()}
        parameters = parameters_for({key: extent(box) for key, box in boxes.items()})
        given.clear()
        load_slices(source, parameters, boxes, rank, world=4)
        assert sum(given) == sum(parameter.asnumpy().nbytes for parameter in parameters.values())
        for key, box in boxes.items():
            expected = arrays[key][within(box, whole(arrays[key].shape))]
            np.testing.assert_array_equal(parameters[key].asnumpy(), expected, key)


@pytest.mark.parametrize("ours", [True, False], ids=["MindFormers", "Hugging Face"])
def test_the_fingerprint_is_that_of_the_tensors(tmp_path: Path, ours: bool) -> None:
    source, arrays = source_of(tmp_path, "qwen3", ours)
    expected = fingerprint(source.family.ms_to_hf(arrays, source.hf_config))
    shapes = {key: array.shape for key, array in arrays.items()}
    parameters = parameters_for(shapes)
    assert first_weights(source, parameters, Device("CPU"), ONE_WORKER) == expected
    for key, array in arrays.items():
        np.testing.assert_array_equal(parameters[key].asnumpy(), array)
    untouched = parameters_for(shapes)
    assert first_weights(source, untouched, Device("CPU"), Layout(optimizer_shard=True)) == expected
    assert not any(parameter.asnumpy().any() for parameter in untouched.values())


@pytest.mark.parametrize("ours", [True, False], ids=["MindFormers", "Hugging Face"])
def test_weights_of_another_model_are_refused_before_anything_is_set(tmp_path: Path, ours: bool) -> None:
    source, arrays = source_of(tmp_path, "llama", ours)
    shapes = {key: array.shape for key, array in arrays.items()}
    parameters = parameters_for({**shapes, "model.layers.9.bias": (3,)})
    with pytest.raises(IncompleteCheckpoint, match=r"1 of 22 parameters missing: model\.layers\.9\.bias"):
        load_weights(source, parameters)
    assert not any(parameter.asnumpy().any() for parameter in parameters.values())
