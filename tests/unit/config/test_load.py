"""Files, includes, flags and overrides: who wins, what is refused, what is understood of MindFormers."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindrlhf.config.load import load_config, merge, split_overrides, to_dict
from mindrlhf.config.schema import Config
from mindrlhf.runtime.errors import UserError

MODEL_CONFIGS = Path(__file__).parents[3] / "model_configs"
EVERY_FILE = sorted(MODEL_CONFIGS.rglob("*.yaml"))
BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 40))])
MERGE_BOMB = "\n".join(
    ["a0: &a0 {x: 1, y: 2}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}, *a{i - 1}]}}" for i in range(1, 40))]
)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files and read them by their relative names, as the errors then call them."""
    monkeypatch.chdir(tmp_path)

    def write_file(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return name

    return write_file


def _refusal(*arguments, **words):
    with pytest.raises(UserError) as caught:
        load_config(*arguments, **words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Precedence


def test_later_wins_include_file_flag_override(write):
    write("one.yaml", "train: {epochs: 2, steps: 2, logging_steps: 2, save_steps: 2, eval_steps: 2}")
    write("two.yaml", "train: {steps: 3, logging_steps: 3, save_steps: 3, eval_steps: 3}")
    write("run.yaml", "include: [one.yaml, two.yaml]\ntrain: {logging_steps: 4, save_steps: 4, eval_steps: 4}")
    config = load_config(
        "run.yaml", ["train.eval_steps=6"], {"train.save_steps": 5, "train.eval_steps": 5, "train.steps": None}
    )
    train = config.train
    assert (train.epochs, train.steps, train.logging_steps, train.save_steps, train.eval_steps) == (2, 3, 4, 5, 6)


def test_the_last_of_two_overrides_wins(write):
    assert load_config(write("run.yaml", ""), ["seed=1", "seed=2"]).seed == 2


def test_a_false_flag_counts_as_given(write):
    write("run.yaml", "train: {resume: true}")
    assert load_config("run.yaml", flags={"train.resume": False}).train.resume is False


def test_includes_are_relative_to_their_file_and_nest(write):
    write("base/more/deep.yaml", "seed: 1\noutput_dir: deep")
    write("base/middle.yaml", "include: more/deep.yaml\noutput_dir: middle")
    config = load_config(write("runs/run.yaml", "include: ../base/middle.yaml"))
    assert (config.seed, config.output_dir) == (1, "middle")


def test_one_file_may_be_included_on_two_ways(write):
    write("base.yaml", "seed: 5")
    write("left.yaml", "include: base.yaml")
    write("right.yaml", "include: base.yaml")
    assert load_config(write("run.yaml", "include: [left.yaml, right.yaml]")).seed == 5


def test_model_config_is_merged_key_by_key(write):
    write("base.yaml", "model: {config: {hidden_size: 64, rope: {theta: 1.0, kind: plain}}}")
    write("run.yaml", "include: base.yaml\nmodel: {config: {rope: {theta: 2.0}}}")
    found = load_config("run.yaml", ["model.config.hidden_size=32", "model.config.new=[1, 2]"]).model.config
    assert found == {"hidden_size": 32, "rope": {"theta": 2.0, "kind": "plain"}, "new": [1, 2]}


def test_merge_leaves_its_arguments_alone():
    first, second = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(first, second) == {"a": {"b": 1, "c": 2}}
    assert (first, second) == ({"a": {"b": 1}}, {"a": {"c": 2}})


@pytest.mark.parametrize("content", ["", "# nothing\n", "train:\ndata:\n", "{}", "\ufeffseed: 0"])
def test_files_that_say_nothing_give_the_defaults(write, content):
    assert load_config(write("run.yaml", content)) == Config()


# Overrides


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("rlhf.beta=0.2", ("rlhf", "beta"), 0.2),
        ("rlhf.beta=null", ("rlhf", "beta"), None),
        ("rlhf.beta=", ("rlhf", "beta"), None),
        ("rlhf.reference=none", ("rlhf", "reference"), "none"),
        ("optimizer.learning_rate=5e-6", ("optimizer", "learning_rate"), 5e-6),
        ("optimizer.betas=[0.8, 0.9]", ("optimizer", "betas"), (0.8, 0.9)),
        ("data.shuffle=false", ("data", "shuffle"), False),
        ("data.train=a=b.mindrecord", ("data", "train"), "a=b.mindrecord"),
    ],
)
def test_an_override_is_read_as_yaml(write, word, key, value):
    section, name = key
    assert getattr(getattr(load_config(write("run.yaml", ""), [word]), section), name) == value


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("rlhf.betta=0.2", "the override rlhf.betta=0.2: rlhf.betta is not a key; did you mean rlhf.beta?"),
        ("train.steps=abc", "the override train.steps=abc: train.steps is 'abc'; give a whole number >= 1 or null"),
        (
            "lora.rank=8",
            "the override lora.rank=8: lora is {'rank': 8}; LoRA is not in this version, so leave the key out",
        ),
        (
            "train.steps.x=1",
            "the override train.steps.x=1: train.steps is {'x': 1}; give a whole number >= 1 or null",
        ),
        ("seed", "the override seed has no value; write key=value"),
    ],
)
def test_a_wrong_override_is_named(write, word, sentence):
    assert _refusal(write("run.yaml", ""), [word]) == sentence


def test_broken_yaml_in_an_override_is_named(write):
    assert _refusal(write("run.yaml", ""), ["rlhf.loss=[a"]).startswith("the override rlhf.loss=[a: line 1 is not")


def test_a_wrong_flag_is_named(write):
    sentence = _refusal(write("run.yaml", ""), flags={"data.seq_len": 1})
    assert sentence == "the flag for data.seq_len: data.seq_len is 1; give a whole number >= 2 or null"


@pytest.mark.parametrize(
    "word",
    ["rlhf.beta=0.2", "rlhf.betta=1", "output_dir=x", "seed=1", "lora.rank=8", "lora=null", "model.config.a.b=1"],
)
def test_what_is_an_override(word):
    assert split_overrides([word]) == ([word], [])


@pytest.mark.parametrize(
    "word",
    [
        *(
            "1+1=?",
            "x=1",
            "output_dirr=x",
            "foo.bar=1",
            "train=1",
            "rlhf.beta",
            "output_dir",
            "=",
            "",
            ".=1",
            "train.=1",
        ),
        *("What is rlhf.beta=0.2?", "rlhf.beta =1", " seed=1", "若 a=b？", "--seed=1", "runner_config.epochs=1"),
    ],
)
def test_what_is_no_override(word):
    assert split_overrides([word]) == ([], [word])


def test_split_overrides_keeps_order():
    assert split_overrides(["a?", "seed=1", "1+1=?", "seed=2"]) == (["seed=1", "seed=2"], ["a?", "1+1=?"])


# Files that are refused


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            "seed: 0\ntrain: [1\n",
            "run.yaml: line 3 is not plain yaml: while parsing a flow sequence,"
            " expected ',' or ']', but got '<stream end>'",
        ),
        ("seed: 1\nseed: 2", "run.yaml: seed is given twice, on lines 1 and 2; keep one"),
        ("train:\n  steps: 1\n  epochs: 1\n  steps: 2", "run.yaml: steps is given twice, on lines 2 and 4; keep one"),
        ("- a\n- b", "run.yaml: the file is ['a', 'b']; give a mapping of keys to values"),
        ("hello", "run.yaml: the file is 'hello'; give a mapping of keys to values"),
        (
            "seed: 0\n---\nseed: 1",
            "run.yaml: line 2 is not plain yaml: expected a single document in the stream, but found another document",
        ),
        ("model: {config: &a {b: *a}}", "run.yaml: line 1 has an anchor that contains itself; write it out"),
        ("output_dir: 2024-13-01", "run.yaml: month must be in 1..12; put the text in quotes"),
        (
            "output_dir: 20240131",
            "run.yaml: output_dir is 20240131; give text (in quotes where it looks like a number or a date)",
        ),
        ("include: 5", "run.yaml: include is 5; give a path or a list of paths of yaml files"),
        (
            "include: no.yaml",
            "run.yaml: include no.yaml does not exist as no.yaml; paths are relative to the file that includes",
        ),
        (b"seed: \xff", "run.yaml is not UTF-8 text (byte 6); give the path of a yaml file"),
        ("seed: 1\0", "run.yaml: character 7 is not allowed in yaml"),
        (
            "trian: {steps: 1}",
            "run.yaml: trian is not a key; did you mean train?",
        ),
    ],
)
def test_a_wrong_file_gets_one_sentence(write, content, sentence):
    assert _refusal(write("run.yaml", content)) == sentence


def test_python_objects_are_refused(write, tmp_path):
    touched = tmp_path / "touched"
    sentence = _refusal(write("run.yaml", f"seed: !!python/object/apply:os.mkdir [{touched}]"))
    assert sentence.startswith("run.yaml: line 1 is not plain yaml: could not determine a constructor for the tag")
    assert not touched.exists()


@pytest.mark.parametrize("content", [BOMB, MERGE_BOMB])
def test_aliases_that_multiply_are_refused(write, content):
    assert "means more than 10000 values" in _refusal(write("run.yaml", content))


def test_deep_nesting_is_refused(write):
    assert _refusal(write("run.yaml", "[" * 50_000)).startswith("run.yaml is nested too deeply")


def test_a_large_file_is_refused_unread(write):
    assert _refusal(write("run.yaml", b"#" * 1_000_001)).startswith("run.yaml is larger than 1000000 bytes")


def test_a_missing_file_and_a_folder_are_refused(write, tmp_path):
    assert _refusal("no.yaml") == "no.yaml does not exist; give the path of a yaml file"
    assert "Is a directory" in _refusal(str(tmp_path))


def test_an_include_circle_is_refused(write):
    write("one.yaml", "include: two.yaml")
    write("two.yaml", "include: one.yaml")
    assert "one.yaml includes itself (" in _refusal("one.yaml")


def test_an_error_in_an_include_names_that_file(write):
    write("base/one.yaml", "rlhf: {betta: 1}")
    assert _refusal(write("run.yaml", "include: base/one.yaml")).startswith("base/one.yaml: rlhf.betta is not a key")


# The files of the repository


@pytest.mark.parametrize("path", EVERY_FILE, ids=lambda path: str(path.relative_to(MODEL_CONFIGS)))
def test_every_published_file_loads_in_silence(path, capsys):
    load_config(path)
    assert capsys.readouterr() == ("", "")
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def test_dpo_default_is_the_schema_default():
    assert load_config(MODEL_CONFIGS / "dpo/default.yaml") == Config()


def test_qwen2_7b_has_the_published_shapes():
    config = load_config(MODEL_CONFIGS / "qwen2/7b.yaml")
    shape = config.model.config
    parallel = config.parallel
    hidden, inner, layers, vocabulary = (
        shape[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    )
    narrow = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    attention = 2 * hidden * hidden + 2 * hidden * narrow + hidden + 2 * narrow
    layer = attention + 3 * hidden * inner + 2 * hidden
    assert 2 * vocabulary * hidden + layers * layer + hidden == 7_615_616_512  # the published one has these
    assert parallel.data_parallel * parallel.model_parallel * parallel.pipeline_stage == 8
    assert shape["num_key_value_heads"] % parallel.model_parallel == 0
    assert (config.model.dtype, config.data.seq_len) == ("bfloat16", 4097)


# MindFormers


FINETUNE = """
seed: 42
run_mode: 'finetune'
output_dir: './out'
load_checkpoint: 'qwen2_7b.ckpt'
auto_trans_ckpt: False  # If true, auto transform load_checkpoint to load in distributed model
resume_training: False
trainer:
  type: CausalLanguageModelingTrainer
  model_name: 'qwen2_7b'
train_dataset: &train_dataset
  data_loader: {type: MindDataset, dataset_dir: "", shuffle: True}
  input_columns: ["input_ids", "labels"]
train_dataset_task:
  type: CausalLanguageModelDataset
  dataset_config: *train_dataset
eval_dataset: &eval_dataset
  data_loader: {type: MindDataset, dataset_dir: ""}
eval_dataset_task:
  type: CausalLanguageModelDataset
  dataset_config: *eval_dataset
runner_config:
  epochs: 5
  batch_size: 2
  gradient_accumulation_steps: 4
  sink_mode: True
  sink_size: 2
optimizer:
  type: AdamW
  betas: [0.9, 0.95]
  eps: 1.e-6
  weight_decay: 0.1
lr_schedule:
  type: CosineWithWarmUpLR
  learning_rate: 1.e-6
  lr_end: 0.
  warmup_ratio: 0.01
  total_steps: -1
callbacks:
  - type: MFLossMonitor
runner_wrapper:
  type: MFTrainOneStepCell
  use_clip_grad: True
use_parallel: True
use_legacy: True
parallel:
  parallel_mode: 1
  gradients_mean: False
  full_batch: True
  enable_parallel_optimizer: True
  strategy_ckpt_config: {save_file: "./ckpt_strategy.ckpt"}
parallel_config:
  data_parallel: &dp 2
  model_parallel: 4
  pipeline_stage: 1
  micro_batch_num: 1
  vocab_emb_dp: False
  gradient_aggregation_group: 4
micro_batch_interleave_num: 1
recompute_config: {recompute: True}
moe_config: {expert_num: 1}
model:
  model_config:
    type: LlamaConfig
    batch_size: 1
    seq_length: 4096
    hidden_size: 3584
    num_layers: 28
    num_heads: 28
    n_kv_heads: 4
    vocab_size: 152064
    intermediate_size: 18944
    theta: 1000000.0
    qkv_has_bias: True
    rms_norm_eps: 1.0e-6
    compute_dtype: "bfloat16"
    checkpoint_name_or_path: ""
    do_sample: True
    top_k: 3
    top_p: 0.8
  arch:
    type: LlamaForCausalLM
processor:
  return_tensors: ms
  tokenizer:
    vocab_file: "/models/qwen2/vocab.json"
    merges_file: "/models/qwen2/merges.txt"
    type: Qwen2Tokenizer
  type: Qwen2Processor
context: {mode: 0, device_target: "Ascend"}
profile: False
profile_start_step: 1
monitor_config: {monitor_on: False}
"""


def test_a_mindformers_file_is_understood(write, capsys):
    config = load_config(write("finetune.yaml", FINETUNE))
    expected = to_dict(Config())
    expected.update(seed=42, run_mode="train", output_dir="./out")
    expected["model"] = {
        "family": "LlamaForCausalLM",
        "dtype": "bfloat16",
        "load_checkpoint": "qwen2_7b.ckpt",
        "config": {
            "batch_size": 1,
            "seq_length": 4096,
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "intermediate_size": 18944,
            "rope_theta": 1000000.0,
            "qkv_has_bias": True,
            "rms_norm_eps": 1e-6,
        },
    }
    expected["tokenizer"]["path"] = "/models/qwen2/vocab.json"
    expected["train"].update(epochs=5, micro_batch_pairs=2, global_batch_pairs=16)
    expected["optimizer"].update(betas=[0.9, 0.95], eps=1e-6, weight_decay=0.1, learning_rate=1e-6)
    expected["lr_schedule"].update(type="cosine", warmup_ratio=0.01)
    expected["parallel"].update(data_parallel=2, model_parallel=4, optimizer_shard=True, vocab_emb_dp=False)
    expected["generation"].update(do_sample=True, top_k=3, top_p=0.8)
    assert to_dict(config) == expected

    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    for part in (
        "runner_config.epochs -> train.epochs",
        "optimizer.type AdamW -> adamw",
        "train.global_batch_pairs 16",
    ):
        assert part in out
    ignored = [line.split(" is MindFormers'")[0].removeprefix("warning: finetune.yaml: ") for line in err.splitlines()]
    assert sorted(ignored) == sorted(
        [
            *("callbacks", "context", "eval_dataset", "eval_dataset_task", "micro_batch_interleave_num", "moe_config"),
            *("monitor_config", "processor", "profile", "profile_start_step", "recompute_config", "resume_training"),
            *("runner_wrapper", "train_dataset", "train_dataset_task", "trainer", "use_legacy", "use_parallel"),
            "runner_config.{sink_mode, sink_size}",
            "lr_schedule.{lr_end, total_steps}",
            "parallel.{parallel_mode, gradients_mean, full_batch, strategy_ckpt_config}",
            "parallel_config.{gradient_aggregation_group}",
        ]
    )


def test_the_global_batch_of_a_pipeline_counts_its_micro_batches(write):
    write(
        "run.yaml",
        "runner_config: {batch_size: 1}\nparallel_config: {data_parallel: 2, pipeline_stage: 2, micro_batch_num: 16}",
    )
    assert load_config("run.yaml").train.global_batch_pairs == 32


def test_both_meanings_of_parallel_may_stand_together(write):
    write("run.yaml", "parallel: {model_parallel: 2, enable_parallel_optimizer: True, full_batch: True}")
    parallel = load_config("run.yaml").parallel
    assert (parallel.model_parallel, parallel.optimizer_shard) == (2, True)


def test_empty_values_of_mindformers_are_not_given(write, capsys):
    write("base.yaml", "model: {load_checkpoint: weights}")
    write("run.yaml", "include: base.yaml\nload_checkpoint: ''\nprocessor: {tokenizer: {vocab_file: ''}}")
    config = load_config("run.yaml")
    assert (config.model.load_checkpoint, config.tokenizer.path) == ("weights", None)
    assert capsys.readouterr() == ("", "")


def test_a_mapped_key_loses_to_an_override(write):
    write("run.yaml", "runner_config: {epochs: 5}")
    assert load_config("run.yaml", ["train.epochs=2"]).train.epochs == 2


def test_historical_arch_names_are_kept_for_the_registry(write):
    assert load_config(write("run.yaml", "model: {arch: {type: Qwen7BDPO}}")).model.family == "Qwen7BDPO"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            "runner_config: {epochs: abc}",
            "runner_config.epochs (our train.epochs) is 'abc'; give a whole number >= 1",
        ),
        ("runner_config: {epoch: 1}", "runner_config.epoch is not a key; did you mean runner_config.epochs?"),
        ("runner_config: {sink_mod: 1}", "runner_config.sink_mod is not a key; did you mean runner_config.sink_mode?"),
        ("runner_confg: {epochs: 1}", "runner_confg is not a key; did you mean runner_config?"),
        ("runner_config: 5", "runner_config is 5; give a mapping"),
        (
            "parallel_config: {model_paralel: 1}",
            "parallel_config.model_paralel is not a key; did you mean parallel_config.model_parallel?",
        ),
        ("parallel: {model_paralel: 1}", "parallel.model_paralel is not a key; did you mean parallel.model_parallel?"),
        ("model: {arch: {typ: x}}", "model.arch.typ is not a key; did you mean model.arch.type?"),
        ("callback: []", "callback is not a key; did you mean callbacks?"),
        ("includes: []", "includes is not a key; did you mean include?"),
        (
            "lr_schedule: {type: polynomial}",
            "lr_schedule.type is 'polynomial', which is not one of constant, linear, cosine;"
            " this version knows no other",
        ),
        (
            "optimizer: {type: Muon}",
            "optimizer.type is 'Muon', which is not one of adamw; this version knows no other",
        ),
        (
            "runner_config: {epochs: 5}\ntrain: {epochs: 1}",
            "runner_config.epochs is 5 and train.epochs is 1, which are one thing; keep one",
        ),
    ],
)
def test_mistakes_in_mindformers_keys_are_named(write, content, sentence):
    assert _refusal(write("run.yaml", content)) == f"run.yaml: {sentence}"


def test_aliased_sections_do_not_share_what_is_taken_out(write):
    write("run.yaml", "model: {model_config: &shape {type: LlamaConfig, num_layers: 2}, config: *shape}")
    assert load_config("run.yaml").model.config == {"num_hidden_layers": 2, "type": "LlamaConfig", "num_layers": 2}
