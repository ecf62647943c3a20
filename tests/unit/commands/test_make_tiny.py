"""The folder of a tiny model: what transformers reads from it, its sizes, its bytes, and refusals in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoTokenizer

from mindrlhf.commands.make_tiny import FAMILIES, FILES, main, make_tiny
from mindrlhf.runtime.errors import run
from mindrlhf.runtime.files import sha256_file

QUESTION = [{"role": "user", "content": "How do I cook rice?"}]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    make_tiny(folder, request.param)
    return request.param, folder


def test_the_folder_holds_these_files(made: tuple[str, Path]) -> None:
    assert sorted(path.name for path in made[1].iterdir()) == list(FILES)


def test_a_seed_names_the_bytes(made: tuple[str, Path], tmp_path: Path) -> None:
    family, folder = made
    make_tiny(tmp_path / "same", family)
    make_tiny(tmp_path / "other", family, seed=1)
    for name in FILES:
        assert sha256_file(folder / name) == sha256_file(tmp_path / "same" / name)
        assert (sha256_file(folder / name) == sha256_file(tmp_path / "other" / name)) == (name != "model.safetensors")


def test_transformers_reads_the_config(made: tuple[str, Path]) -> None:
    family, folder = made
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == family
    assert config.num_attention_heads * 32 == config.hidden_size == 128
    assert config.num_key_value_heads == 2
    for key, value in written.items():
        if key not in ("torch_dtype", "sliding_window"):  # read as `dtype`; None while use_sliding_window is false
            assert getattr(config, key) == value, key


def test_transformers_reads_the_tokenizer(made: tuple[str, Path]) -> None:
    family, folder = made
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    assert len(tokenizer) == config.vocab_size == 2048
    assert tokenizer.eos_token_id == config.eos_token_id
    assert tokenizer.pad_token_id == config.pad_token_id
    assert set(tokenizer.all_special_tokens) == set(FAMILIES[family]["specials"])
    assert min(tokenizer.all_special_ids) == 2048 - len(FAMILIES[family]["specials"])
    text = "Émile's 37 chats\n\n  été，怎样煮米饭？🙂 "
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_chat_template_of_the_family(made: tuple[str, Path]) -> None:
    family, folder = made
    rendered = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [*QUESTION, {"role": "assistant", "content": "Rinse it."}], tokenize=False
    )
    assert (
        rendered
        == {
            "qwen2": "<|im_start|>user\nHow do I cook rice?<|im_end|>\n<|im_start|>assistant\nRinse it.<|im_end|>\n",
            "llama": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHow do I cook rice?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nRinse it.<|eot_id|>",
        }[family]
    )


def test_the_generation_prompt_continues_to_the_answer(made: tuple[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made[1])
    prompt = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    answer = [*QUESTION, {"role": "assistant", "content": "Rinse it."}]
    whole = tokenizer.apply_chat_template(answer, tokenize=False)
    assert whole.startswith(prompt + "Rinse it." + tokenizer.eos_token)


def test_weights_are_drawn_as_transformers_draws_them(made: tuple[str, Path]) -> None:
    family, folder = made
    weights = load_file(folder / "model.safetensors")
    biases = {name for name in weights if name.endswith(".bias")}
    assert len(biases) == {"qwen2": 3 * 4, "llama": 0}[family]
    assert all(not weights[name].any() for name in biases)
    norms = {name for name in weights if "norm" in name}
    assert len(norms) == 2 * 4 + 1
    assert all((weights[name] == 1).all() for name in norms)
    pad_id = AutoConfig.from_pretrained(folder).pad_token_id
    assert not weights["model.embed_tokens.weight"][pad_id].any()
    for name in weights.keys() - biases - norms:
        assert weights[name].dtype == np.float32
        assert weights[name].std() == pytest.approx(0.02, rel=0.02), name
    assert weights["model.layers.3.self_attn.k_proj.weight"].shape == (64, 128)
    assert weights["model.layers.0.mlp.down_proj.weight"].shape == (128, 352)
    assert sum(array.size for array in weights.values()) == {"qwen2": 1263744, "llama": 1262720}[family]


@pytest.mark.parametrize("vocab_size", [259, 300, 4000])
def test_every_id_has_a_row_of_the_embedding(tmp_path: Path, vocab_size: int) -> None:
    make_tiny(tmp_path, "qwen2", vocab_size=vocab_size, hidden_size=64, layers=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert max(tokenizer.get_vocab().values()) < vocab_size
    assert tokenizer.decode(tokenizer("你好, rice").input_ids) == "你好, rice"
    assert load_file(tmp_path / "model.safetensors")["lm_head.weight"].shape == (vocab_size, 64)


def test_an_earlier_model_is_replaced(tmp_path: Path) -> None:
    assert run(main, ["--family", "qwen2", "--output_path", str(tmp_path), "--layers", "2"]) == 0
    assert run(main, ["--family", "llama", "--output_path", str(tmp_path), "--layers", "1"]) == 0
    assert AutoConfig.from_pretrained(tmp_path).model_type == "llama"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--vocab_size", "258"], "--vocab_size 258 is too small"),
        (["--hidden_size", "96"], "--hidden_size 96 is not a positive multiple of 64"),
        (["--hidden_size", "0"], "--hidden_size 0 is not a positive multiple of 64"),
        (["--layers", "0"], "--layers 0 leaves no model"),
    ],
)
def test_impossible_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    assert run(main, ["--family", "qwen2", "--output_path", str(tmp_path / "model"), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_foreign_file_is_never_written_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    assert run(main, ["--family", "qwen2", "--output_path", str(tmp_path)]) == 2
    assert "holds thesis.txt" in capsys.readouterr().err
    assert run(main, ["--family", "qwen2", "--output_path", str(tmp_path / "thesis.txt")]) == 2
    assert "thesis.txt is a file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
