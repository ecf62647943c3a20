"""tools/plan_layout.py: what it prints, refuses, and does not need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mindrlhf.commands.plan import main
from mindrlhf.config.load import load_config
from mindrlhf.models import get_family
from mindrlhf.parallel.layout import Layout
from mindrlhf.parallel.parameters import Traits
from mindrlhf.runtime.errors import UserError
from mindrlhf.trainers.architecture import find_architecture

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "model_configs"
QWEN2 = str(CONFIGS / "qwen2/7b.yaml")
# Runs a script, then says whether MindSpore was loaded.
RUN = """
import runpy, sys
script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as ended:
    print("mindspore" in sys.modules, file=sys.stderr)
    raise SystemExit(ended.code)
"""


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["--config", QWEN2, "--world_size", "8", *words]) == 0
    return capsys.readouterr().out


def report(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    return json.loads(said(capsys, "--format", "json", *words))


def test_it_needs_no_mindspore() -> None:
    argv = [sys.executable, "-c", RUN, str(ROOT / "tools/plan_layout.py"), "--config", QWEN2, "--world_size", "8"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "False")


def test_the_yaml_of_the_best_layout_gives_it_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text, first = said(capsys), report(capsys)["plans"][0]
    snippet = text.partition("the first of them, as a yaml for --config:")[2]
    own = tmp_path / "own.yaml"
    own.write_text(snippet, encoding="utf-8")
    config = load_config(own)
    assert set(yaml.safe_load(snippet)) == {"include", "parallel", "train"}
    assert Layout.of(config.parallel, 8) == Layout(**first["parallel"])
    assert config.train.recompute is first["recompute"]


def test_the_table_has_a_line_for_each_plan(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "--top", "3").splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("dp"))
    rows = [line.split() for line in lines[head + 1 : head + 4]]
    plans = report(capsys, "--top", "3")["plans"]
    assert len(plans) == 3
    for row, plan in zip(rows, plans):
        layout = plan["parallel"]
        numbers = ("data_parallel", "context_parallel", "model_parallel", "pipeline_stage", "micro_batch_num")
        assert row[:5] == [str(layout[name]) for name in numbers]
        assert row[10] == f"{plan['need'] / 2**30:.1f}"
        assert row[16] == f"{plan['seconds']:.2f}"
    assert lines[head + 4].startswith("dp, cp")


def test_json_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, "--top", "1000", "--verbose")
    assert found["parameters"] == 7_615_616_512
    assert found["memory"] == 58 * 2**30
    assert len(found["plans"]) == found["fitting"]
    assert len(found["larger"]) == found["too_large"]
    assert sum(found["refusals"].values()) == found["refused"]
    parts = ("weights", "copies", "gradients", "optimizer", "activations", "reference")
    for plan in (*found["plans"], *found["larger"]):
        assert plan["need"] == max(stage["total"] for stage in plan["stages"])
        for stage in plan["stages"]:
            assert stage["total"] == sum(stage[part] for part in parts)
        assert (plan["need"] <= found["memory"]) == (plan in found["plans"])


def test_the_yamls_own_layout_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train.recompute=true"]
    assert "the yaml's own layout (data_parallel 8, model_parallel 1, optimizer_shard, recompute) fits" in said(
        capsys, *words
    )
    own = report(capsys, *words)["own"]
    assert own["parallel"]["optimizer_shard"] is True
    assert own in report(capsys, "--top", "1000", *words)["plans"]
    assert "does not fit" in said(capsys, "train.recompute=false")
    assert "data_parallel 4 x model_parallel 1" in report(capsys, "parallel.data_parallel=4")["own"]


def test_verbose_says_why_others_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "1 x parallel.model_parallel is 8, which must divide the model's 28 heads and 4 key-value heads"
    assert reason in said(capsys, "--verbose")
    assert reason not in said(capsys)


def test_slower_links_and_devices_take_longer(capsys: pytest.CaptureFixture[str]) -> None:
    usual = report(capsys)["plans"][0]["seconds"]
    for words in (
        ["--peak_tflops", "188"],
        ["--efficiency", "0.2"],
        ["--node_bandwidth", "20"],
        ["--node_devices", "2"],
    ):
        assert report(capsys, *words)["plans"][0]["seconds"] > usual
    far = ["--node_devices", "2"]
    near = report(capsys, *far)["plans"][0]["seconds"]
    assert report(capsys, *far, "--network_bandwidth", "2")["plans"][0]["seconds"] > near


def test_where_nothing_fits_the_smallest_need_and_what_lowers_it_are_said() -> None:
    with pytest.raises(UserError) as caught:
        main(["--config", QWEN2, "--world_size", "1", "--device_memory", "32", "rlhf.reference=online"])
    sentence = str(caught.value)
    assert caught.value.exit_code == 2
    assert sentence.startswith("no layout of 1 devices with 26.0 GB for training fits: the smallest need is ")
    for help_ in ("on 2 devices", "with rows half as long", "with rlhf.reference=record"):
        assert help_ in sentence


def test_where_no_layout_is_possible_the_reason_is_said() -> None:
    with pytest.raises(UserError, match=r"no layout of 5 devices .* is possible: (parallel|train)\."):
        main(["--config", QWEN2, "--world_size", "5"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--world_size", "0"], "--world_size is 0; give 1 or more"),
        (["--world_size", "8", "--top", "0"], "--top is 0; give 1 or more"),
        (["--world_size", "8", "--device_memory", "4"], "--device_memory 4 less --reserve 6 leaves no memory"),
        (["--world_size", "8", "--efficiency", "2"], "--efficiency is 2; give a share, 1 at most"),
        (["--world_size", "8", "--efficiency", "nan"], "--efficiency is nan; give a number above 0"),
        (["--world_size", "8", "--device_memory", "inf"], "--device_memory inf less --reserve 6 leaves no memory"),
        (["--world_size", "8", "--peak_tflops", "-1"], "--peak_tflops is -1; give a number above 0"),
        (["--world_size", "8", "data.seq_len=null"], "data.seq_len is null"),
        (["--world_size", "8", "paralel.model_parallel=2"], "did you mean parallel.model_parallel"),
    ],
)
def test_what_is_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        main(["--config", QWEN2, *words])
    assert sentence in str(caught.value)


def test_shapes_come_from_a_folder_without_weights_and_the_yaml_wins(tmp_path: Path) -> None:
    shapes = {**get_family("qwen3").tiny_config(2048, 128, 4), "architectures": ["Qwen3ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(shapes), encoding="utf-8")
    config = load_config(None, [f"model.load_checkpoint={tmp_path}", "model.config.num_hidden_layers=8"])
    family, found = find_architecture(config)
    assert (family.name, found["num_hidden_layers"], found["hidden_size"]) == ("qwen3", 8, 128)
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="is not a JSON object"):
        find_architecture(config)
    with pytest.raises(UserError, match=r"no model is named; set model\.load_checkpoint"):
        find_architecture(load_config(None))


@pytest.mark.parametrize(
    ("name", "traits"),
    [
        ("llama2/7b", Traits()),
        ("qwen2/7b", Traits(qkv_bias=True)),
        ("baichuan2/7b", Traits(normalised_head=True)),
        ("baichuan2/13b", Traits(normalised_head=True, alibi=True)),
        ("glm4/9b", Traits(qkv_bias=True, fused=True)),
        ("qwen3/8b", Traits(qk_norm=True, fused=True)),
        ("qwen3_moe/30b_a3b", Traits(qk_norm=True, fused=True)),
    ],
)
def test_what_a_family_adds(name: str, traits: Traits) -> None:
    config = load_config(ROOT / f"model_configs/{name}.yaml").model
    assert get_family(config.family).traits(config.config) == traits


def test_rows_that_the_model_cannot_hold_are_refused() -> None:
    with pytest.raises(UserError, match=r"rows of 32768 tokens pass the model's 4096 positions"):
        main(["--config", str(CONFIGS / "llama2/7b.yaml"), "--world_size", "8", "data.seq_len=32769"])


def test_the_smallest_batch_is_said_where_none_will_do() -> None:
    argv = ["--config", str(CONFIGS / "qwen2/7b.yaml"), "--world_size", "64"]
    with pytest.raises(UserError, match=r"the smallest batch for which there is one: train\.global_batch_pairs=16$"):
        main(argv)
    main([*argv, "train.global_batch_pairs=16"])
