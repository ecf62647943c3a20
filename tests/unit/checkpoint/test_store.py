from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import mindspore
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindrlhf.checkpoint import store
from mindrlhf.runtime.errors import CorruptCheckpoint, IncompleteCheckpoint, UserError

ARRAYS: dict[str, np.ndarray] = {
    "model.embed.weight": np.arange(24, dtype=np.float32).reshape(6, 4),
    "model.norm.weight": np.linspace(-1, 1, 4).astype(np.float16),
    "scale": np.array(3.5, np.float32),
}


def bfloat16(array: np.ndarray) -> np.ndarray:
    return mindspore.Tensor(array, mindspore.bfloat16).asnumpy()


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


def write_shards(folder: Path) -> dict[str, np.ndarray]:
    """A Hugging Face folder of two shards."""
    folder.mkdir()
    shards = {f"model-{k}.safetensors": {f"{n}.{k}": a for n, a in ARRAYS.items() if a.ndim} for k in (1, 2)}
    for name, arrays in shards.items():
        save_file(arrays, folder / name)
    weight_map = {tensor: name for name, arrays in shards.items() for tensor in arrays}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    return {name: array for arrays in shards.values() for name, array in arrays.items()}


def write_ckpt(path: Path, *, crc_check: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parameters = [{"name": name, "data": mindspore.Tensor(array)} for name, array in ARRAYS.items()]
    mindspore.save_checkpoint(parameters, str(path), crc_check=crc_check)
    path.chmod(0o600)


def write_run(folder: Path, arrays: dict[str, np.ndarray] = ARRAYS, world: int = 1) -> Path:
    """The output of a data-parallel run, one rank after the other; returns the file of rank 0."""
    for rank in range(world):
        network = store.write_network(
            folder, arrays, step=7, rank=rank, world=world, barrier=lambda: None, replicated=True, save="s"
        )
        assert network == folder / "checkpoint_network"
    return store.network_file(folder, 0)


# finding


def test_one_output_folder_is_found_by_every_name_it_has(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    network = tmp_path / "checkpoint_network"
    for place in (tmp_path, network, network / "rank_0", path, path.with_suffix(".ckpt")):
        assert store.find_weights(place) == store.Weights((path,), network, "safetensors")


def test_a_hugging_face_folder_of_one_file(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "model.safetensors")
    save_file(ARRAYS, tmp_path / "consolidated.safetensors")
    assert store.find_weights(tmp_path) == store.Weights((tmp_path / "model.safetensors",), tmp_path, "safetensors")


def test_a_sharded_hugging_face_folder(tmp_path: Path) -> None:
    arrays = write_shards(tmp_path / "hf")
    weights = store.find_weights(tmp_path / "hf")
    assert [file.name for file in weights.files] == ["model-1.safetensors", "model-2.safetensors"]
    assert weights.folder == tmp_path / "hf"
    assert weights.promised == arrays.keys()
    assert same(store.read_weights(weights), arrays)


def test_what_cannot_be_found_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.h5").write_bytes(b"")
    for path, sentence in {
        "absent": "there is no checkpoint .*absent",
        "absent.ckpt": r"there is no checkpoint .*absent\.ckpt",
        "weights.h5": r"ends in none of \.safetensors, \.ckpt and \.bin",
        "": "holds no weights",
    }.items():
        with pytest.raises(UserError, match=sentence):
            store.find_weights(tmp_path / path)
    for name in ("a.safetensors", "b.ckpt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"2 weight files.*a\.safetensors, b\.ckpt"):
        store.find_weights(tmp_path)


def test_a_rank_folder_with_none_or_two_checkpoints_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    path.with_suffix(".ckpt").write_bytes(b"")
    with pytest.raises(UserError, match="holds 2 checkpoints"):
        store.find_weights(tmp_path)
    path.unlink()
    path.with_suffix(".ckpt").unlink()
    with pytest.raises(UserError, match="rank_0 holds no checkpoint"):
        store.find_weights(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path / "hf")
    (tmp_path / "hf" / "model-2.safetensors").unlink()
    with pytest.raises(IncompleteCheckpoint, match=r"1 of 2 shards are missing: model-2\.safetensors"):
        store.find_weights(tmp_path / "hf")


@pytest.mark.parametrize(
    "index",
    ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../x.safetensors"}}'],
)
def test_a_damaged_index_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CorruptCheckpoint, match=r"model\.safetensors\.index\.json is damaged"):
        store.find_weights(tmp_path)


# reading and writing


def test_every_array_comes_back_as_it_was(tmp_path: Path) -> None:
    arrays = {
        **ARRAYS,
        "transposed": np.arange(12, dtype=np.float32).reshape(3, 4).T,
        "strided": np.arange(12, dtype=np.int32)[::3],
        "half": bfloat16(np.linspace(-3, 3, 7, dtype=np.float32)),
        "empty": np.zeros((0, 3), np.float32),
    }
    store.save_weights(arrays, tmp_path / "x.safetensors")
    assert same(store.read_weights(store.find_weights(tmp_path / "x.safetensors")), arrays)
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_equal_arrays_give_equal_files(tmp_path: Path) -> None:
    for k in range(10):
        store.save_weights(dict(reversed(ARRAYS.items())) if k % 2 else ARRAYS, tmp_path / f"{k}.safetensors")
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


def test_mindspore_reads_our_files_and_their_checksum(tmp_path: Path) -> None:
    path = str(tmp_path / "x.safetensors")
    store.save_weights(ARRAYS, path)
    loaded = mindspore.load_checkpoint(path, format="safetensors", crc_check=True)
    assert same({name: value.asnumpy() for name, value in loaded.items()}, ARRAYS)


@pytest.mark.parametrize("crc_check", [False, True])
def test_a_ckpt_file_is_read(tmp_path: Path, crc_check: bool) -> None:
    write_ckpt(tmp_path / "x.ckpt", crc_check=crc_check)
    assert same(store.read_weights(store.find_weights(tmp_path / "x.ckpt")), ARRAYS)


def test_any_flipped_bit_and_any_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    store.save_weights(ARRAYS, path)
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    weights = store.find_weights(path)
    for place in range(header, len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(CorruptCheckpoint, match=r"x\.safetensors is damaged"):
            store.read_weights(weights)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptCheckpoint, match=r"x\.safetensors is damaged or cut short"):
            store.read_weights(weights)


def test_a_damaged_ckpt_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    write_ckpt(path, crc_check=True)
    whole = path.read_bytes()
    weights = store.find_weights(path)
    flipped = [whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :] for place in range(0, len(whole) - 17, 9)]
    for damaged in (b"", b"x" * 100, whole[:3], *flipped):
        path.write_bytes(damaged)
        with pytest.raises(CorruptCheckpoint, match=r"x\.ckpt is damaged"):
            store.read_weights(weights)


def test_shards_that_lack_or_repeat_a_tensor_are_refused(tmp_path: Path) -> None:
    arrays = write_shards(tmp_path / "hf")
    weights = store.find_weights(tmp_path / "hf")
    second = load_file(weights.files[1])
    save_file({name: array for name, array in second.items() if "norm" not in name}, weights.files[1])
    with pytest.raises(IncompleteCheckpoint, match=r"lacks 1 tensors .*: model\.norm\.weight\.2"):
        store.read_weights(weights)
    save_file(arrays, weights.files[1])
    with pytest.raises(CorruptCheckpoint, match=r"holds model\.embed\.weight\.1 twice"):
        store.read_weights(weights)


def test_a_folder_that_cannot_be_written_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*x\.safetensors"):
        store.save_weights(ARRAYS, tmp_path / "file" / "x.safetensors")


def test_the_header_alone_tells_dtypes_and_shapes(tmp_path: Path) -> None:
    store.save_weights(ARRAYS, tmp_path / "x.safetensors")
    assert store.tensor_table(tmp_path / "x.safetensors") == {
        "model.embed.weight": {"dtype": "F32", "shape": [6, 4]},
        "model.norm.weight": {"dtype": "F16", "shape": [4]},
        "scale": {"dtype": "F32", "shape": []},
    }


# parameters


def zeros(**shapes: tuple[int, ...]) -> dict[str, mindspore.Parameter]:
    return {name: mindspore.Parameter(mindspore.Tensor(np.zeros(s, np.float32))) for name, s in shapes.items()}


def test_arrays_are_cast_to_the_parameters_dtype() -> None:
    values = np.array([1.0, -2.5, 0.125], np.float32)
    for array in (values, values.astype(np.float16), bfloat16(values), values.astype(np.float64)):
        targets = zeros(x=(3,))
        store.load_parameters(targets, {"x": array}, "here")
        assert targets["x"].dtype == mindspore.float32
        assert np.array_equal(targets["x"].asnumpy(), values)


def test_everything_that_does_not_fit_is_told_at_once_and_nothing_is_set() -> None:
    targets = zeros(a=(2,), b=(2, 3), **{f"layer{k:02}": (1,) for k in range(12)})
    arrays = {"a": np.ones(2), "b": np.ones((3, 2)), "x": np.ones(1), "y": np.ones(1)}
    with pytest.raises(IncompleteCheckpoint) as caught:
        store.load_parameters(targets, arrays, "OUT")
    assert str(caught.value) == (
        "OUT does not fit the model: 12 of 14 parameters missing: layer00, layer01, layer02, layer03, layer04, "
        "layer05, layer06, layer07, layer08, layer09, and 2 more; 1 of another shape: b is (3, 2), the model's (2, 3); "
        "2 not the model's: x, y"
    )
    assert not any(target.asnumpy().any() for target in targets.values())


# fingerprint


def test_fingerprint_is_what_its_docstring_says() -> None:
    # 1, 2, 3 are the bfloat16 words 3f80, 4000, 4040; place i of 64 falls on value i*2//63.
    values = b"".join(struct.pack("<H", [0x3F80, 0x4000, 0x4040][i * 2 // 63]) for i in range(64))
    expected = hashlib.sha256(b"a\x001,3\x00" + values + b"b\x000\x00").hexdigest()
    tensors: dict[str, np.ndarray] = {"b": np.zeros(0), "a": np.array([[1, 2, 3]], np.float32)}
    assert store.fingerprint(tensors) == expected


def test_fingerprint_is_the_same_for_a_16_bit_copy_and_any_order() -> None:
    values = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    # Halfway between two bfloat16 numbers, the even one below and above.
    ties = (0x3F80_8000 + 0x1_0000 * np.arange(64, dtype=np.uint32)).view(np.float32)
    full: dict[str, np.ndarray] = {"a": values, "b": ties, "c": values.T}
    halves = {name: bfloat16(full[name]) for name in ("c", "a", "b")}
    assert store.fingerprint(full) == store.fingerprint(halves) == store.fingerprint(iter(full.items()))
    assert store.fingerprint(full) == store.fingerprint({**full, "tied": values}, skip={"tied"})


def test_fingerprint_tells_names_shapes_and_values_apart() -> None:
    base = {"a": np.arange(1, 7, dtype=np.float32), "b": np.ones(2, np.float32)}
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"].reshape(2, 3), "b": base["b"]},
        {"a": base["a"] * 1.01, "b": base["b"]},
        {"a": base["a"]},
        {"a": base["a"][::-1], "b": base["b"]},
    ]
    assert len({store.fingerprint(arrays) for arrays in [base, *others]}) == 6


# what lies beside


def test_config_and_tokenizer_are_carried_and_older_ones_removed(tmp_path: Path) -> None:
    source, target, tokenizer = tmp_path / "source", tmp_path / "target", tmp_path / "tokenizer"
    for folder in (source, target, tokenizer):
        folder.mkdir()
    for name in ("config.json", "tokenizer.json", "README.md"):
        (source / name).write_text(f"source {name}")
    for name in ("vocab.json", "merges.txt"):
        (tokenizer / name).write_text(f"tokenizer {name}")
    (target / "generation_config.json").write_text("old")
    assert store.carry_files(source, target) == ["config.json", "tokenizer.json"]
    assert sorted(file.name for file in target.iterdir()) == ["config.json", "tokenizer.json"]
    names = store.carry_files(source, target, list(tokenizer.iterdir()))
    assert names == sorted(file.name for file in target.iterdir()) == ["config.json", "merges.txt", "vocab.json"]
    assert (target / "config.json").read_text() == "source config.json"
    assert store.carry_files(target, target) == names


def test_replicas_share_one_file_until_the_next_save(tmp_path: Path) -> None:
    first = write_run(tmp_path, world=2)
    second = store.network_file(tmp_path, 1)
    assert second == tmp_path / "checkpoint_network" / "rank_1" / "checkpoint_0.safetensors"
    assert second.samefile(first)
    assert sorted(file.name for file in second.parent.iterdir()) == [second.name, "manifest.json"]
    store.save_weights({"scale": ARRAYS["scale"]}, first)
    assert same(store.read_weights(store.find_weights(second)), ARRAYS)
    write_run(tmp_path, world=2)
    assert second.samefile(first)


def test_without_hard_links_a_replica_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    first = write_run(tmp_path, world=2)
    second = store.network_file(tmp_path, 1)
    assert second.read_bytes() == first.read_bytes()
    assert not second.samefile(first)


def test_ranks_that_differ_each_write_their_own(tmp_path: Path) -> None:
    for rank in range(2):
        arrays = {"x": np.full(3, rank, np.float32)}
        store.write_network(
            tmp_path, arrays, step=7, rank=rank, world=2, barrier=lambda: None, replicated=False, save="s"
        )
    for rank in range(2):
        assert store.read_weights(store.find_weights(store.network_file(tmp_path, rank)))["x"][0] == rank


def test_a_save_clears_what_killed_and_larger_runs_left(tmp_path: Path) -> None:
    path = write_run(tmp_path, world=3)
    for name in (".tmpAb12Cd", ".checkpoint_0.safetensors.0f0f0f0f.tmp"):
        (path.parent / name).write_bytes(b"half")
    write_run(tmp_path, world=2)
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, "manifest.json"]
    assert sorted(folder.name for folder in path.parent.parent.iterdir()) == ["rank_0", "rank_1"]
