"""Weights into MindFormers' names and back: every family, both directions, all formats, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest

from mindrlhf.checkpoint.find import find_weights
from mindrlhf.checkpoint.hf_folder import hugging_face_folder
from mindrlhf.checkpoint.safetensors_file import SafetensorsFile
from mindrlhf.checkpoint.store import read_weights, save_weights
from mindrlhf.checkpoint.tensor_file import spec_of
from mindrlhf.commands import convert as command
from mindrlhf.commands.conversion import rounded
from mindrlhf.config.schema import Config, Model
from mindrlhf.models import families, get_family
from mindrlhf.runtime import files
from mindrlhf.runtime.errors import run
from mindrlhf.runtime.files import write_json
from mindrlhf.trainers.policy import find_source

ROOT = Path(__file__).resolve().parents[3]
BFLOAT16 = mindspore.Tensor(np.zeros(1, np.float32), mindspore.bfloat16).asnumpy().dtype
KINDS = {"bf16": BFLOAT16, "fp16": np.dtype("float16"), "fp32": np.dtype("float32")}


def models() -> Iterator[tuple[str, str, bool]]:
    """Every family, every form of it that is published, and a tied twin."""
    for name, family in families().items():
        for variant in ("", *family.tiny_variants):
            for tied in (False, True):
                yield name, variant, tied


def config_of(name: str, variant: str = "", tied: bool = False) -> dict[str, Any]:
    family = get_family(name)
    config = family.tiny_config(vocab_size=96, hidden_size=128, layers=2)
    config = family.tiny_variants[variant](config) if variant else config
    return {**config, "tie_word_embeddings": tied, "torch_dtype": "float32"}


def arrays_of(config: dict[str, Any], name: str, dtype: np.dtype[Any]) -> dict[str, np.ndarray]:
    """Random bits under Hugging Face's names, but no infinities."""
    random = np.random.default_rng(7)
    shapes = {key: shape for group in get_family(name).tensors(config) for key, shape in group.hf.items()}
    return {key: random.normal(size=shape).astype(np.float32).astype(dtype) for key, shape in shapes.items()}


def hf_folder(
    folder: Path, name: str = "qwen2", variant: str = "", tied: bool = False, dtype: str = "fp32", limit: int = 60_000
) -> Path:
    """A Hugging Face folder of several shards; returns it."""
    config = config_of(name, variant, tied)
    arrays = arrays_of(config, name, KINDS[dtype])
    with hugging_face_folder(folder, {key: spec_of(array) for key, array in arrays.items()}, limit) as put:
        for key, array in arrays.items():
            put(key, array)
    write_json(folder / "config.json", config)
    for file in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_text(f'"{name}{variant}"')
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def bits(arrays: dict[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()}


def call(*words: object) -> int:
    return run(command.main, [str(word) for word in words])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The sentence of a refusal."""
    capsys.readouterr()
    assert call(*words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


# there and back


@pytest.mark.parametrize(("name", "variant", "tied"), list(models()))
def test_there_and_back_is_equal_bit_for_bit(tmp_path: Path, name: str, variant: str, tied: bool) -> None:
    source = hf_folder(tmp_path / "hf", name, variant, tied, dtype="bf16")
    for number, output in enumerate(("one/ms.ckpt", "two/ms.safetensors", "three")):
        assert call("--input_path", source, "--output_path", tmp_path / output) == 0
        ours = read_weights(find_weights(tmp_path / output))
        assert ours.keys() == {
            key for group in get_family(name).tensors(config_of(name, variant, tied)) for key in group.ms
        }
        back = tmp_path / f"back{number}"
        assert call("--input_path", tmp_path / output, "--output_path", back, "--reversed", "True") == 0
        assert bits(read_weights(find_weights(back))) == bits(read_weights(find_weights(source)))
        theirs, config = (json.loads((folder / "config.json").read_text()) for folder in (source, back))
        assert config == {**theirs, "torch_dtype": "bfloat16"}
        for file in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            assert (back / file).read_bytes() == (source / file).read_bytes()


@pytest.mark.parametrize("name", sorted(families()))
def test_the_tensors_are_those_of_the_whole_mapping(tmp_path: Path, name: str) -> None:
    source = hf_folder(tmp_path / "hf", name)
    assert call("--input_path", source, "--output_path", tmp_path / "out") == 0
    expected = get_family(name).hf_to_ms(read_weights(find_weights(source)), config_of(name))
    assert bits(read_weights(find_weights(tmp_path / "out"))) == bits(
        {key: np.ascontiguousarray(array) for key, array in expected.items()}
    )


@pytest.mark.parametrize("name", sorted(families()))
def test_load_checkpoint_takes_what_was_written_and_what_it_was_written_from(tmp_path: Path, name: str) -> None:
    source = hf_folder(tmp_path / "hf", name)
    found = []
    for place in ("hf", "one/ms.ckpt", "two/ms.safetensors", "three", "three/checkpoint_network"):
        if place in ("one/ms.ckpt", "two/ms.safetensors", "three"):
            assert call("--input_path", source, "--output_path", tmp_path / place) == 0
        weights = find_source(Config(model=Model(load_checkpoint=str(tmp_path / place))))
        assert weights.family.name == name
        found.append(bits({key: np.ascontiguousarray(array) for key, array in weights.read().items()}))
    assert found[1:] == found[:-1]


@pytest.mark.parametrize("output", ["ms.ckpt", "ms.safetensors", "folder"])
def test_equal_input_gives_equal_bytes(tmp_path: Path, output: str) -> None:
    source = hf_folder(tmp_path / "hf")
    for place in ("a", "b"):
        assert call("--input_path", source, "--output_path", tmp_path / place / output) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_mindspore_loads_what_was_written_with_its_checksum(tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "hf")
    for output, kind in (("ms.ckpt", "ckpt"), ("ms.safetensors", "safetensors")):
        assert call("--input_path", source, "--output_path", tmp_path / output, "--dtype", "bf16") == 0
        # MindSpore's own sum of a .safetensors file fails on bfloat16.
        loaded = mindspore.load_checkpoint(str(tmp_path / output), format=kind, crc_check=kind == "ckpt")
        ours = read_weights(find_weights(tmp_path / output))
        assert bits({key: value.asnumpy() for key, value in loaded.items()}) == bits(ours)


def test_the_older_spellings_mean_what_lies_there(tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "hf")
    new, old, back = tmp_path / "new" / "ms.ckpt", tmp_path / "old" / "ms.ckpt", tmp_path / "back"
    assert call("--input_path", source, "--output_path", new, "--dtype", "bf16") == 0
    assert call("--torch_ckpt_dir", source, "--mindspore_ckpt_path", old, "--dtype", "bf16") == 0
    assert contents(new.parent) == contents(old.parent)
    assert call("--mindspore_ckpt_path", old, "--torch_ckpt_path", back, "--reversed", "True") == 0
    assert find_weights(back).format == "safetensors"


@pytest.mark.parametrize(
    ("name", "model"),
    [("glm4", "glm-n"), ("glm4", "glm4"), ("qwen2", "qwen2_5"), ("llama", "Yi"), ("baichuan2", "baichuan")],
)
def test_names_of_families_of_earlier_commands(tmp_path: Path, name: str, model: str) -> None:
    source = hf_folder(tmp_path / "hf", name)
    assert call("--model", model, "--input_path", source, "--output_path", tmp_path / "o") == 0


def test_every_historical_name_is_of_a_family_there_is() -> None:
    assert set(command.MODELS.values()) <= set(families())
    assert not set(command.MODELS) & set(families())


# dtypes


@pytest.mark.parametrize("dtype", sorted(KINDS))
@pytest.mark.parametrize("source", sorted(KINDS))
def test_dtypes(tmp_path: Path, source: str, dtype: str) -> None:
    folder = hf_folder(tmp_path / "hf", dtype=source)
    assert call("--input_path", folder, "--output_path", tmp_path / "ms.ckpt", "--dtype", dtype) == 0
    back = tmp_path / "back"
    assert call("--input_path", tmp_path / "ms.ckpt", "--output_path", back, "--reversed", "True") == 0
    config = json.loads((back / "config.json").read_text())
    assert config["torch_dtype"] == KINDS[dtype].name
    expected = {
        key: array.astype(np.float32).astype(KINDS[dtype]) for key, array in read_weights(find_weights(folder)).items()
    }
    assert bits(read_weights(find_weights(back))) == bits(expected)


def test_rounding_is_to_nearest_and_ties_to_even() -> None:
    words = np.array([0x3F808000, 0x3F808001, 0x3F818000, 0x3F817FFF, 0xBF808000, 0x7F800000, 0x80000000], np.uint32)
    found = rounded(words.view(np.float32), "bfloat16", "x").view(np.uint16)
    assert [f"{word:04x}" for word in found] == ["3f80", "3f81", "3f82", "3f81", "bf80", "7f80", "8000"]
    # 1 + 2^-11 lies halfway between two float16 numbers, 1 + 3 * 2^-11 too.
    halves = rounded(np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-25, np.inf], np.float32), "float16", "x")
    assert [f"{word:04x}" for word in halves.view(np.uint16)] == ["3c00", "3c02", "0000", "7c00"]
    assert np.isnan(rounded(np.array([np.nan], np.float32), "bfloat16", "x").astype(np.float32)).all()


def test_numbers_beyond_float16_are_refused_not_made_infinite(tmp_path: Path, capsys: Any) -> None:
    source = hf_folder(tmp_path / "hf", limit=10**9)
    arrays = read_weights(find_weights(source))
    arrays["model.norm.weight"][3] = 1.0e5
    save_weights(arrays, source / "model.safetensors", for_hugging_face=True)
    before = contents(tmp_path)
    said = refused(capsys, "--input_path", source, "--output_path", tmp_path / "new" / "o.ckpt", "--dtype", "fp16")
    assert "model.norm.weight has numbers beyond 65504, where float16 ends; give --dtype bf16" in said
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_the_newer_word_for_the_dtype_is_set_too(tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    config["dtype"] = config.pop("torch_dtype")
    write_json(source / "config.json", config)
    assert call("--input_path", source, "--output_path", tmp_path / "ms", "--dtype", "bf16") == 0
    assert call("--input_path", tmp_path / "ms", "--output_path", tmp_path / "back", "--reversed", "True") == 0
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == {**config, "dtype": "bfloat16"}


# tied heads and tensors that mean nothing


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_a_head_in_a_tied_source_is_left_out_and_said(tmp_path: Path, capsys: Any, name: str) -> None:
    source = hf_folder(tmp_path / "hf", name, tied=True, limit=10**9)
    arrays = read_weights(find_weights(source))
    extra = {
        "lm_head.weight": arrays["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
    }
    save_weights({**arrays, **extra}, source / "model.safetensors", for_hugging_face=True)
    assert call("--input_path", source, "--output_path", tmp_path / "ms") == 0
    assert "left out 2 tensor(s)" in capsys.readouterr().out
    assert call("--input_path", tmp_path / "ms", "--output_path", tmp_path / "back", "--reversed", "True") == 0
    assert bits(read_weights(find_weights(tmp_path / "back"))) == bits(arrays)


def test_a_missing_head_of_a_model_that_is_not_tied_is_named(tmp_path: Path, capsys: Any) -> None:
    source = hf_folder(tmp_path / "hf", tied=True)
    write_json(source / "config.json", config_of("qwen2", tied=False))
    assert "1 of 27 tensors missing: lm_head.weight" in refused(
        capsys, "--input_path", source, "--output_path", tmp_path / "o"
    )


# what is refused


def spoil(arrays: dict[str, np.ndarray], fault: str) -> None:
    name = next(name for name in arrays if name.endswith(("down_proj.weight", "feed_forward.w2.weight")))
    if fault == "missing":
        del arrays[name]
    elif fault == "extra":
        arrays["visual.patch.weight"] = np.zeros((2, 2), np.float32)
    else:
        arrays[name] = np.ascontiguousarray(arrays[name].T)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("fault", ["missing", "extra", "misshaped"])
def test_tensors_that_are_not_the_models_are_named(tmp_path: Path, capsys: Any, fault: str, reverse: bool) -> None:
    source = hf_folder(tmp_path / "hf", limit=10**9)
    file = source / "model.safetensors"
    if reverse:
        file = tmp_path / "ms" / "ms.safetensors"
        assert call("--input_path", source, "--output_path", file) == 0
    arrays = read_weights(find_weights(file))
    spoil(arrays, fault)
    save_weights(arrays, file)
    before = contents(tmp_path)
    said = refused(capsys, "--input_path", file.parent, "--output_path", tmp_path / "o", "--reversed", reverse)
    name = "model.layers.0.feed_forward.w2.weight" if reverse else "model.layers.0.mlp.down_proj.weight"
    assert {
        "missing": f"1 of 27 tensors missing: {name}",
        "extra": "1 not the model's: visual.patch.weight",
        "misshaped": f"1 of another shape: {name} is (352, 128), the model's (128, 352)",
    }[fault] in said
    assert contents(tmp_path) == before
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", sorted(families()))
def test_joined_tensors_of_another_shape_are_named(tmp_path: Path, capsys: Any, name: str) -> None:
    source = hf_folder(tmp_path / "hf", name)
    assert call("--input_path", source, "--output_path", tmp_path / "ms.safetensors") == 0
    arrays = read_weights(find_weights(tmp_path / "ms.safetensors"))
    wide = max(arrays, key=lambda key: arrays[key].size)
    arrays[wide] = arrays[wide].reshape(-1)
    save_weights(arrays, tmp_path / "ms.safetensors")
    said = refused(
        capsys, "--input_path", tmp_path / "ms.safetensors", "--output_path", tmp_path / "o", "--reversed", "1"
    )
    assert f"1 of another shape: {wide} is ({arrays[wide].size},)" in said


def test_a_damaged_source_leaves_nothing_behind(tmp_path: Path, capsys: Any) -> None:
    source = hf_folder(tmp_path / "hf")
    file = tmp_path / "ms" / "ms.safetensors"
    assert call("--input_path", source, "--output_path", file) == 0
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    before = contents(tmp_path)
    said = refused(
        capsys, "--input_path", file, "--output_path", tmp_path / "deep" / "er" / "back", "--reversed", "True"
    )
    assert "ms.safetensors is damaged: its checksum does not match" in said
    assert contents(tmp_path) == before
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("output", ["new/ms.ckpt", "new/ms.safetensors", "new/folder"])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, capsys: Any, monkeypatch: Any, output: str) -> None:
    source = hf_folder(tmp_path / "hf")
    before = contents(tmp_path)

    def full(path: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "fsync_path", full)
    assert "No space left on device" in refused(capsys, "--input_path", source, "--output_path", tmp_path / output)
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_what_a_killed_conversion_left_is_removed(tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "hf")
    (tmp_path / "out" / "back").mkdir(parents=True)
    mine = tmp_path / "out" / ".ms.ckpt.0f0f0f0f.tmp"
    other = tmp_path / "out" / ".other.ckpt.0f0f0f0f.tmp"
    shard = tmp_path / "out" / "back" / ".model-00001-of-00002.safetensors.0f0f0f0f.tmp"
    for file in (mine, other, shard):
        file.write_bytes(b"half")
    assert call("--input_path", source, "--output_path", tmp_path / "out" / "ms.ckpt") == 0
    back = ("--output_path", tmp_path / "out" / "back", "--reversed", "True")
    assert call("--input_path", tmp_path / "out" / "ms.ckpt", *back) == 0
    assert [file.exists() for file in (mine, other, shard)] == [False, True, False]


def test_quantised_weights_are_refused_by_name(tmp_path: Path, capsys: Any) -> None:
    source = hf_folder(tmp_path / "hf")
    write_json(source / "config.json", {**config_of("qwen2"), "quantization_config": {"quant_method": "awq"}})
    said = refused(capsys, "--input_path", source, "--output_path", tmp_path / "o")
    assert "quantised weights are not supported" in said


def test_a_disk_that_is_too_small_is_said_before_the_work(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    source = hf_folder(tmp_path / "hf")
    monkeypatch.setattr(command.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    said = refused(capsys, "--input_path", source, "--output_path", tmp_path / "o.ckpt")
    assert "o.ckpt needs 0.0 GiB, and its disk has 0.0 free; make room" in said


def test_wrong_words(tmp_path: Path, capsys: Any) -> None:
    source = hf_folder(tmp_path / "hf")
    ours = tmp_path / "ms" / "ms.ckpt"
    assert call("--input_path", source, "--output_path", ours) == 0
    output = ("--output_path", tmp_path / "o")
    for sentence, words in {
        "--input_path is missing; see": output,
        "--output_path is missing; see": ("--input_path", source),
        "--input_path and --torch_ckpt_dir are the same": ("--input_path", source, "--torch_ckpt_dir", source, *output),
        "--dtype is 'f32'": ("--input_path", source, "--dtype", "f32", *output),
        "--model is 'qwen9'; did you mean qwen": ("--input_path", source, "--model", "qwen9", *output),
        "--model llama is the family llama, and": ("--input_path", source, "--model", "llama", *output),
        "have MindFormers' names already; with --reversed True": ("--input_path", ours, *output),
        "have Hugging Face's names already": ("--input_path", source, "--reversed", "True", *output),
        "a folder of safetensors; name a folder": (
            "--input_path",
            ours,
            "--reversed",
            "True",
            "--output_path",
            "x.ckpt",
        ),
        "end it in .ckpt or .safetensors": ("--input_path", source, "--output_path", tmp_path / "x.bin"),
        "there is no checkpoint": ("--input_path", tmp_path / "absent", *output),
        "would replace its source": ("--input_path", source, "--output_path", source, "--reversed", "True"),
    }.items():
        assert sentence in refused(capsys, *words), sentence
    assert not (tmp_path / "o").exists()


def test_without_config_json_the_shapes_are_asked_for(tmp_path: Path, capsys: Any) -> None:
    source = hf_folder(tmp_path / "hf")
    (source / "config.json").unlink()
    said = refused(capsys, "--input_path", source, "--output_path", tmp_path / "o")
    assert "config.json does not exist; put the model's config.json there" in said


def test_files_of_another_model_beside_a_single_file_are_not_touched(tmp_path: Path, capsys: Any) -> None:
    first, second = hf_folder(tmp_path / "first"), hf_folder(tmp_path / "second", "llama")
    assert call("--input_path", first, "--output_path", tmp_path / "out" / "a.ckpt") == 0
    assert call("--input_path", first, "--output_path", tmp_path / "out" / "b.ckpt") == 0
    before = contents(tmp_path / "out")
    said = refused(capsys, "--input_path", second, "--output_path", tmp_path / "out" / "c.ckpt")
    assert "config.json is not that of" in said
    assert contents(tmp_path / "out") == before


def test_a_file_may_lie_in_its_sources_folder(tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "hf")
    before = contents(source)
    assert call("--input_path", source, "--output_path", source / "ms.ckpt") == 0
    assert {name: data for name, data in contents(source).items() if name != "ms.ckpt"} == before
    assert find_weights(source).format == "safetensors"


def test_a_run_is_not_buried_under_a_conversion(tmp_path: Path, capsys: Any) -> None:
    source = hf_folder(tmp_path / "hf")
    (tmp_path / "run" / "checkpoint_network" / "rank_1").mkdir(parents=True)
    said = refused(capsys, "--input_path", source, "--output_path", tmp_path / "run")
    assert "holds the ranks of a run; give another destination" in said


def test_code_that_a_model_brings_is_carried_along(tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "hf", "baichuan2")
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"}
    write_json(source / "config.json", config)
    tokenizer = {"auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None, "../run_dpo.main"]}}
    write_json(source / "tokenizer_config.json", tokenizer)
    code = {
        "modeling_baichuan.py": "from .configuration_baichuan import BaichuanConfig\nraise SystemExit('never run')\n",
        "configuration_baichuan.py": "from .modeling_baichuan import x\n",
        "tokenization_baichuan.py": "import run_dpo\n",
    }
    for name, text in {**code, "run_dpo.py": "from .tokenization_baichuan import y\n"}.items():
        (source / name).write_text(text)
    assert call("--input_path", source, "--output_path", tmp_path / "ms") == 0
    assert call("--input_path", tmp_path / "ms", "--output_path", tmp_path / "back", "--reversed", "True") == 0
    assert {file.name: file.read_text() for file in (tmp_path / "back").glob("*.py")} == code


# memory

MEASURE = """
import json, re, sys
from pathlib import Path
import mindspore
from mindrlhf.commands import conversion, convert
from mindrlhf.checkpoint import ckpt_file, hf_folder, store
from mindrlhf.trainers import policy
from mindrlhf.models import BuildOptions, family_of
import tqdm

config = json.loads(Path("hf/config.json").read_text())
family_of(config, "hf").from_hf_config(config, BuildOptions(seq_length=1))  # which imports MindFormers for some

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

base = peak()
for words in json.loads(sys.argv[1]):
    assert convert.main(words) == 0
print(peak() - base)
"""


def large_folder(folder: Path, name: str, **sizes: int) -> int:
    """A model of about 1.5 GB, written tensor by tensor; returns the bytes of its largest tensor in either form."""
    config = {**config_of(name), **sizes}
    shapes = {key: shape for group in get_family(name).tensors(config) for key, shape in group.hf.items()}
    row = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)
    arrays = ((key, np.resize(row, shape)) for key, shape in shapes.items())
    specs = {key: spec_of(np.broadcast_to(row[:1], shape)) for key, shape in shapes.items()}
    with hugging_face_folder(folder, specs, 4 * 10**8) as put:
        for key, array in arrays:
            put(key, array)
    write_json(folder / "config.json", config)
    return max(spec.nbytes for spec in specs.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "qwen3_moe"])
def test_memory_is_bounded_by_the_largest_tensor(tmp_path: Path, name: str) -> None:
    sizes = {"vocab_size": 16000, "hidden_size": 2048, "num_hidden_layers": 6, "intermediate_size": 5504}
    if name == "qwen3_moe":
        sizes |= {"num_experts": 64, "moe_intermediate_size": 384, "num_hidden_layers": 2}
    large_folder(tmp_path / "hf", name, **sizes)
    total = sum(file.stat().st_size for file in (tmp_path / "hf").glob("*.safetensors"))
    assert total > 1.2e9
    words = [
        ["--input_path", "hf", "--output_path", "ms.ckpt"],
        ["--input_path", "hf", "--output_path", "16/ms.safetensors", "--dtype", "bf16"],
        ["--input_path", "ms.ckpt", "--output_path", "back", "--reversed", "True"],
        ["--input_path", "16", "--output_path", "wide", "--reversed", "True", "--dtype", "fp32"],
    ]
    argv = [sys.executable, "-c", MEASURE, json.dumps(words)]
    done = subprocess.run(
        argv,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    used = int(done.stdout.split()[-1])
    opened = SafetensorsFile(tmp_path / "16" / "ms.safetensors")
    opened.close()
    largest = 2 * max(spec.nbytes for spec in opened.table.values())  # of the source, which has 32 bits
    print(f"{name}: {total / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB, {used / 1e6:.0f} MB used")
    assert used <= 2 * largest + 200e6
    assert bits(read_weights(find_weights(tmp_path / "back"))) == bits(read_weights(find_weights(tmp_path / "hf")))
