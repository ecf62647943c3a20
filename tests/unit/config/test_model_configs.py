"""The yaml files of the repository: they load in silence, and their shapes are those that were published."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mindrlhf.config.load import load_config
from mindrlhf.config.schema import Config
from mindrlhf.data.data_config import read_data_config
from mindrlhf.models import BuildOptions, families, get_family
from mindrlhf.models.family import is_tied
from mindrlhf.parallel.layout import Layout

ROOT = Path(__file__).parents[3]
MODEL_CONFIGS = ROOT / "model_configs"
EXAMPLES = ROOT / "examples"
LINES, HISTORICAL_LINES = 60, 15
DATA_SET = EXAMPLES / "dpo" / "qwen3_moe" / "orca_dpo_pairs.yaml"  # in MindSpeed-RL's words
EVERY_FILE = sorted(path for folder in (MODEL_CONFIGS, EXAMPLES) for path in folder.rglob("*.yaml") if path != DATA_SET)
TINY = sorted(path.stem for path in (MODEL_CONFIGS / "tiny").glob("*.yaml") if path.stem not in ("dpo", "warmup"))
TINY_VARIANTS = {"baichuan2_13b": ("baichuan2", "13b")}
HISTORICAL = [
    *(MODEL_CONFIGS / "baichuan_config").glob("*.yaml"),
    *(EXAMPLES / "dpo" / "baichuan2").glob("*.yaml"),
    *(EXAMPLES / "dpo" / "glm4").glob("*.yaml"),
]
# Parameters of the published checkpoints: the sum over the shapes in their safetensors headers or .bin files.
PUBLISHED = {
    "llama2/7b": 6_738_415_616,
    "llama3/8b": 8_030_261_248,
    "yi/6b": 6_061_035_520,
    "yi/34b": 34_388_917_248,
    "mistral/7b": 7_241_732_096,
    "qwen2/7b": 7_615_616_512,
    "qwen2_5/7b": 7_615_616_512,
    "baichuan2/7b": 7_505_973_248,
    "baichuan2/13b": 13_896_668_160,
    "glm4/9b": 9_399_951_360,
    "qwen3/8b": 8_190_735_360,
    "qwen3_moe/30b_a3b": 30_532_122_624,
}


def config_of(name: str) -> Config:
    return load_config(MODEL_CONFIGS / f"{name}.yaml")


def options(config: Config) -> BuildOptions:
    """As a run on Ascend builds the model of `config`."""
    return BuildOptions(
        seq_length=-(-((config.data.seq_len or 2) - 1) // 16) * 16,
        compute_dtype=config.model.dtype,
        fused=True,
        layout=Layout.of(config.parallel, int(config.parallel.data_parallel) * config.parallel.model_parallel),
    )


def test_every_model_of_the_repository_is_listed() -> None:
    kinds = {"dpo", "parallel", "tiny", "baichuan_config"}
    found = {
        f"{path.parent.name}/{path.stem}" for path in MODEL_CONFIGS.rglob("*.yaml") if path.parent.name not in kinds
    }
    assert found == set(PUBLISHED)
    assert {config_of(name).model.family for name in PUBLISHED} == set(families())


@pytest.mark.parametrize("path", EVERY_FILE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_published_file_loads_in_silence(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_config(path)
    assert capsys.readouterr() == ("", "")
    assert len(path.read_text(encoding="utf-8").splitlines()) < LINES


def test_a_data_set_in_mindspeed_words_is_read_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    said = read_data_config(DATA_SET)
    assert (said.src, said.dst, said.dataset_type) == (("./orca_rlhf.jsonl",), "./orca.mindrecord", "orca_dpo_pairs")
    assert said.seq_len == config_of("qwen3_moe/30b_a3b").data.seq_len
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("path", HISTORICAL, ids=lambda path: path.name)
def test_files_under_historical_names_only_say_what_differs(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= HISTORICAL_LINES
    assert any(line.startswith("include: ") for line in lines)


def test_dpo_default_is_the_schema_default() -> None:
    assert load_config(MODEL_CONFIGS / "dpo/default.yaml") == Config()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_the_published_number_of_parameters(name: str) -> None:
    config = config_of(name)
    groups = get_family(config.model.family).tensors(config.model.config)
    assert sum(math.prod(shape) for group in groups for shape in group.hf.values()) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_fits_its_devices(name: str) -> None:
    config = config_of(name)
    parallel, shapes = config.parallel, config.model.config
    devices = 16 if name in ("yi/34b", "qwen3_moe/30b_a3b") else 8
    assert int(parallel.data_parallel) * parallel.model_parallel * parallel.pipeline_stage == devices
    for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
        assert shapes.get(key, shapes["num_attention_heads"]) % parallel.model_parallel == 0, key
    assert shapes.get("num_experts", 1) % parallel.expert_parallel == 0
    assert devices % parallel.expert_parallel == 0
    assert config.train.global_batch_pairs % int(parallel.data_parallel) == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_family_accepts_the_shapes_of_its_models(name: str) -> None:
    config = config_of(name)
    family, shapes = get_family(config.model.family), config.model.config
    assert set(shapes) <= family.config_keys
    given = family.from_hf_config(shapes, options(config))
    assert given["hidden_size"] == shapes["hidden_size"]
    assert config.model.dtype == "bfloat16"
    assert not is_tied(shapes)


def test_every_family_has_a_tiny_file() -> None:
    assert set(TINY) == {*families(), *TINY_VARIANTS}


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_file_has_the_shapes_that_make_tiny_model_gives(name: str) -> None:
    config = load_config(MODEL_CONFIGS / "tiny" / f"{name}.yaml")
    family_name, variant = TINY_VARIANTS.get(name, (name, None))
    family = get_family(family_name)
    made = family.tiny_config(2048, 128, 4)
    made = family.tiny_variants[variant](made) if variant else made
    assert config.model.family == family_name
    assert config.model.config == {key: made[key] for key in config.model.config}
    # And they are enough without a config.json.
    family.from_hf_config(config.model.config, BuildOptions(seq_length=128))
    groups = (list(family.tensors(shapes)) for shapes in (config.model.config, made))
    mine, theirs = ([(group.hf, group.ms) for group in groups_of] for groups_of in groups)
    assert mine == theirs
