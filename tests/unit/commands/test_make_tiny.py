"""The folder of a tiny model: what transformers reads from it, its sizes, its bytes, and refusals in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoTokenizer

from mindrlhf.commands.make_tiny import FILES, main, make_tiny
from mindrlhf.commands.tiny_tokenizer import voice_of
from mindrlhf.data.tokenizers import load_tokenizer
from mindrlhf.models import BuildOptions, families, get_family
from mindrlhf.models.hf_weights import faults
from mindrlhf.runtime.errors import run
from mindrlhf.runtime.files import sha256_file

QUESTION = [{"role": "user", "content": "How do I cook rice?"}]
ANSWER = [*QUESTION, {"role": "assistant", "content": "Rinse it."}]
ALL = [*families(), *(f"{name} {variant}" for name, family in families().items() for variant in family.tiny_variants)]
READ_BY_TRANSFORMERS = ("llama", "qwen2", "qwen3", "qwen3_moe", "glm4")
TOKENIZER_FILES = {
    "bpe": {"tokenizer.json"},
    "sentencepiece": {"tokenizer.model"},
    "tiktoken": {"tokenizer.json", "tokenizer.model"},
}
CHATS = {
    "qwen2": "<|im_start|>user\nHow do I cook rice?<|im_end|>\n<|im_start|>assistant\nRinse it.<|im_end|>\n",
    "qwen3": "<|im_start|>user\nHow do I cook rice?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nRinse it."
    "<|im_end|>\n",
    "llama": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHow do I cook rice?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nRinse it.<|eot_id|>",
    "glm4": "[gMASK]<sop><|user|>\nHow do I cook rice?<|assistant|>\nRinse it.<|endoftext|>",
    "baichuan2": "<reserved_106>How do I cook rice?<reserved_107>Rinse it.</s>",
}
CHATS["qwen3_moe"] = CHATS["qwen3"]


class Made:
    """A folder that was made, and of what."""

    def __init__(self, name: str, folder: Path) -> None:
        self.family, _, variant = name.partition(" ")
        self.variant = variant or None
        self.folder = folder
        make_tiny(folder, self.family, variant=self.variant)

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=ALL)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(request.param, tmp_path_factory.mktemp(request.param.replace(" ", "-")))


@pytest.fixture(scope="module", params=READ_BY_TRANSFORMERS)
def readable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(request.param, tmp_path_factory.mktemp(request.param))


def test_the_folder_holds_these_files(made: Made) -> None:
    files = {path.name for path in made.folder.iterdir()}
    kind = get_family(made.family).tokenizer_kind
    common = set(FILES) - {"tokenizer.json", "tokenizer.model"}
    own_code = "auto_map" in made.json("config.json")
    assert files == common | ({"tokenizer.model"} if own_code else TOKENIZER_FILES[kind])


def test_a_seed_names_the_bytes(made: Made, tmp_path: Path) -> None:
    make_tiny(tmp_path / "same", made.family, variant=made.variant)
    make_tiny(tmp_path / "other", made.family, variant=made.variant, seed=1)
    for path in made.folder.iterdir():
        same, other = (sha256_file(tmp_path / place / path.name) for place in ("same", "other"))
        assert sha256_file(path) == same
        assert (same == other) == (path.name != "model.safetensors")


def test_tensors_and_config_are_those_of_the_family(made: Made) -> None:
    family, config = get_family(made.family), made.json("config.json")
    constants = family.constants(config)
    shapes = {name: array.shape for name, array in load_file(made.folder / "model.safetensors").items()}
    assert faults(family.tensors(config), shapes, constants.__contains__) == []
    assert constants.keys() <= shapes.keys()
    assert config["architectures"][0] in family.architectures
    settings = family.from_hf_config(config, BuildOptions(seq_length=128))
    assert (settings["hidden_size"], settings["vocab_size"]) == (128, 2048)


def test_weights_are_drawn_as_transformers_draws_them(made: Made) -> None:
    weights = load_file(made.folder / "model.safetensors")
    for name, array in get_family(made.family).constants(made.json("config.json")).items():
        assert np.array_equal(weights.pop(name), array.astype(np.float32))
    biases = {name for name in weights if name.endswith(".bias")}
    norms = {name for name in weights if "norm" in name}
    assert norms
    assert all(not weights[name].any() for name in biases)
    assert all((weights[name] == 1).all() for name in norms)
    pad_id = made.json("config.json")["pad_token_id"]
    (embedding,) = (array for name, array in weights.items() if "embed" in name)
    assert not embedding[pad_id].any()
    for name in weights.keys() - biases - norms:
        assert weights[name].dtype == np.float32
        assert weights[name].std() == pytest.approx(0.02, rel=0.05), name


@pytest.mark.parametrize(("family", "count", "biases"), [("qwen2", 1263744, 12), ("llama", 1262720, 0)])
def test_counts(family: str, count: int, biases: int, tmp_path: Path) -> None:
    make_tiny(tmp_path, family)
    weights = load_file(tmp_path / "model.safetensors")
    assert sum(array.size for array in weights.values()) == count
    assert sum(name.endswith(".bias") for name in weights) == biases
    assert weights["model.layers.3.self_attn.k_proj.weight"].shape == (64, 128)
    assert weights["model.layers.0.mlp.down_proj.weight"].shape == (128, 352)


def test_our_tokenizer_and_the_ids_of_the_config(made: Made) -> None:
    tokenizer, config = load_tokenizer(made.folder), made.json("config.json")
    family = get_family(made.family)
    voice = voice_of(family.tokenizer_kind, family.template)
    ends = config["eos_token_id"] if isinstance(config["eos_token_id"], list) else [config["eos_token_id"]]
    assert tokenizer.vocab_size == 2048
    assert (tokenizer.eos_id, tokenizer.pad_id) == (ends[0], config["pad_token_id"])
    assert made.json("generation_config.json")["eos_token_id"] == config["eos_token_id"]
    for token in voice.specials:
        assert token not in tokenizer.decode(tokenizer.encode_messages([{"role": "user", "content": "x"}], True))
    text = "Émile's 37 chats\n\n  été，怎样煮米饭？🙂 "
    ids = tokenizer.encode_text(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert max(ids) < 2048


def test_the_chat_of_the_family(made: Made) -> None:
    tokenizer = load_tokenizer(made.folder)
    whole, prompt = tokenizer.encode_messages(ANSWER, False), tokenizer.encode_messages(QUESTION, True)
    assert tokenizer.decode(whole, skip_special_tokens=False) == CHATS[made.family]
    assert tokenizer.has_template
    assert whole[: len(prompt)] == prompt
    assert tokenizer.eos_id in whole[len(prompt) :]


def test_roles_of_baichuan2_stand_in_the_generation_config(tmp_path: Path) -> None:
    make_tiny(tmp_path, "baichuan2", hidden_size=64, layers=1)
    config = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    ids = load_tokenizer(tmp_path).encode_messages(QUESTION, True)
    assert [ids[0], ids[-1]] == [config["user_token_id"], config["assistant_token_id"]]
    assert [config[f"{role}_token_id"] for role in ("pad", "bos", "eos")] == [0, 1, 2]


def test_a_file_of_ranks_is_the_tokenizer_json_beside_it(tmp_path: Path) -> None:
    make_tiny(tmp_path, "glm4", hidden_size=64, layers=1)
    both = [load_tokenizer(tmp_path / name) for name in ("tokenizer.json", "tokenizer.model")]
    assert both[0].tokenizer_hash == both[1].tokenizer_hash
    assert both[0].template_hash == both[1].template_hash


def test_transformers_reads_the_config(readable: Made) -> None:
    written = readable.json("config.json")
    config = AutoConfig.from_pretrained(readable.folder)
    assert config.model_type == written["model_type"]
    assert config.num_attention_heads * 32 == config.hidden_size == 128
    assert config.num_key_value_heads == 2
    for key, value in written.items():
        if key not in ("torch_dtype", "sliding_window"):  # read as `dtype`; None while use_sliding_window is false
            assert getattr(config, key) == value, key


def test_transformers_reads_the_tokenizer(readable: Made) -> None:
    tokenizer = AutoTokenizer.from_pretrained(readable.folder)
    config = AutoConfig.from_pretrained(readable.folder)
    family = get_family(readable.family)
    voice = voice_of(family.tokenizer_kind, family.template)
    assert len(tokenizer) == config.vocab_size == 2048
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    assert tokenizer.eos_token_id == ends[0]
    assert tokenizer.pad_token_id == config.pad_token_id
    assert set(tokenizer.all_special_tokens) == set(voice.specials)
    assert min(tokenizer.all_special_ids) == 2048 - len(voice.specials)
    assert tokenizer.apply_chat_template(ANSWER, tokenize=False) == CHATS[readable.family]
    ours = load_tokenizer(readable.folder)
    assert ours.encode_messages(ANSWER, False) == tokenizer.apply_chat_template(ANSWER)


def test_a_family_that_says_nothing_special_talks_chatml() -> None:
    voice = voice_of("bpe", "chatml")
    assert voice.specials == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert voice_of("sentencepiece", "chatml").specials == ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
    assert voice_of("tiktoken", "chatml").specials[-2:] == ("<|im_start|>", "<|im_end|>")
    assert voice_of("bpe", "gemma").specials == ("<|endoftext|>", "<start_of_turn>", "<end_of_turn>")


@pytest.mark.parametrize("family", ["qwen2", "glm4", "baichuan2"])
@pytest.mark.parametrize("vocab_size", [0, 300, 4000])
def test_every_id_has_a_row_of_the_embedding(tmp_path: Path, family: str, vocab_size: int) -> None:
    fewest = {"qwen2": 259, "glm4": 270, "baichuan2": 262}[family]
    make_tiny(tmp_path, family, vocab_size=vocab_size or fewest, hidden_size=64, layers=1)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size <= (vocab_size or fewest)
    ids = tokenizer.encode_text("你好, rice", add_special_tokens=False)
    assert tokenizer.decode(ids) == "你好, rice"
    assert load_file(tmp_path / "model.safetensors")["lm_head.weight"].shape == (vocab_size or fewest, 64)


def test_an_earlier_model_is_replaced(tmp_path: Path) -> None:
    assert run(main, ["--family", "glm4", "--output_path", str(tmp_path), "--layers", "2"]) == 0
    assert run(main, ["--family", "baichuan2", "--output_path", str(tmp_path), "--layers", "1"]) == 0
    assert not (tmp_path / "tokenizer.json").exists()
    assert run(main, ["--family", "llama", "--output_path", str(tmp_path), "--layers", "1"]) == 0
    assert not (tmp_path / "tokenizer.model").exists()
    assert AutoConfig.from_pretrained(tmp_path).model_type == "llama"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("qwen2 --vocab_size 258", "--vocab_size 258 is too small: bytes and special tokens alone are 259"),
        ("glm4 --vocab_size 269", "bytes and special tokens alone are 270"),
        ("baichuan2 --vocab_size 261", "bytes and special tokens alone are 262"),
        ("qwen2 --hidden_size 96", "--hidden_size 96 is not a positive multiple of 64"),
        ("qwen2 --hidden_size 0", "--hidden_size 0 is not a positive multiple of 64"),
        ("qwen2 --layers 0", "--layers 0 leaves no model"),
        ("qwen2 --variant 13b", "--variant '13b' is not known of qwen2; its variants: none"),
        ("glm4 --variant chatglm", "is not known of glm4; its variants: ChatGLMModel"),
    ],
)
def test_impossible_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, sentence: str) -> None:
    assert run(main, ["--output_path", str(tmp_path / "model"), "--family", *words.split()]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_foreign_file_is_never_written_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    assert run(main, ["--family", "qwen2", "--output_path", str(tmp_path)]) == 2
    assert "holds thesis.txt" in capsys.readouterr().err
    assert run(main, ["--family", "qwen2", "--output_path", str(tmp_path / "thesis.txt")]) == 2
    assert "thesis.txt is a file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
