"""Yaml files written for MindFormers: what is understood, what has no effect, what is refused."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from pathlib import Path

import pytest

from mindrlhf.config.load import load_config, to_dict
from mindrlhf.config.mindformers_keys import MOVED, NOT_SHAPES, SHAPES
from mindrlhf.config.schema import Config
from mindrlhf.models import get_family
from mindrlhf.runtime.errors import UserError

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
recompute_config: {recompute: True, mp_comm_recompute: True}
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
        "aux_loss_coef": None,
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
    expected["train"].update(epochs=5, micro_batch_pairs=2, global_batch_pairs=16, recompute=True)
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
            *("monitor_config", "processor", "profile", "profile_start_step", "resume_training"),
            *("runner_wrapper", "train_dataset", "train_dataset_task", "trainer", "use_legacy", "use_parallel"),
            "runner_config.{sink_mode, sink_size}",
            "recompute_config.{mp_comm_recompute}",
            "lr_schedule.{lr_end, total_steps}",
            "parallel.{parallel_mode, gradients_mean, full_batch, strategy_ckpt_config}",
            "parallel_config.{gradient_aggregation_group}",
        ]
    )


def test_every_key_of_the_installed_mindformers_is_understood(write, capsys):
    spec = importlib.util.find_spec("mindformers")
    template = Path(spec.origin).parent / "tools" / "register" / "template.py"
    tree = ast.parse(template.read_text(encoding="utf-8"))
    (general,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "GeneralConfig"]
    scalars = [node.targets[0].id for node in general.body if isinstance(node, ast.Assign)]
    (sections,) = [
        node.value.keys
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "CONFIG_NAME_TO_CLASS"
    ]
    names = {name for name in scalars if not name.startswith("_")} | {key.value for key in sections}
    assert len(names) > 50
    # These have types of their own, and "general_config" stands in no file.
    lines = [f"{name}:" for name in sorted(names - {"seed", "output_dir", "run_mode", "general_config"})]
    assert load_config(write("run.yaml", "\n".join(lines))) == Config()
    assert "swap_config is MindFormers' and has no effect here" in capsys.readouterr().err


def test_what_older_published_files_had(write, capsys):
    write(
        "run.yaml",
        """
use_parallel: True
do_eval: False
only_save_strategy: False
src_strategy_path_or_dir: ''
optimizer: {type: FP32StateAdamWeightDecay, beta1: 0.9, beta2: 0.95, eps: 1.e-8, learning_rate: 5.0e-6}
lr_schedule: {type: CosineWithWarmUpLR, learning_rate: 5.0e-6, warmup_ratio: 0.1, total_steps: -1}
model: {model_config: {type: LlamaConfig, beta: 0.5}, arch: {type: Qwen7BDPO}}
auto_tune: False
filepath_prefix: './autotune'
autotune_per_step: 10
init_start_profile: False
lr_scale_factor: 256
remote_save_url: "Please input obs url on AICC platform."
use_parallel: True
""",
    )
    config = load_config("run.yaml")
    assert (config.optimizer.betas, config.optimizer.learning_rate, config.rlhf.beta) == ((0.9, 0.95), 5e-6, 0.5)
    assert (config.lr_schedule.type, config.model.family) == ("cosine", "Qwen7BDPO")
    out, err = capsys.readouterr()
    assert "optimizer.beta1, optimizer.beta2 -> optimizer.betas" in out
    assert len(err.splitlines()) == 11  # use_parallel once, and inside lr_schedule total_steps


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("pretrained_model_dir: hf", "hf"),
        ("pretrained_model_dir: hf\nload_checkpoint: ''", "hf"),
        ("pretrained_model_dir: hf\nload_checkpoint: trained", "trained"),
    ],
)
def test_the_folder_of_a_pretrained_model_is_where_weights_come_from_unless_others_are_named(write, content, found):
    assert load_config(write("run.yaml", content)).model.load_checkpoint == found


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
def test_mistakes_in_mindformers_keys_are_named(write, content, sentence, refusal):
    assert refusal(write("run.yaml", content)) == f"run.yaml: {sentence}"


def test_aliased_sections_do_not_share_what_is_taken_out(write):
    write("run.yaml", "model: {model_config: &shape {type: LlamaConfig, num_layers: 2}, config: *shape}")
    assert load_config("run.yaml").model.config == {"num_hidden_layers": 2, "type": "LlamaConfig", "num_layers": 2}


GLM4 = """
model:
  model_config:
    type: ChatGLM2Config
    num_layers: 40
    padded_vocab_size: 151552
    hidden_size: 4096
    ffn_hidden_size: 13696
    kv_channels: 128
    num_attention_heads: 32
    multi_query_group_num: 2
    seq_length: 131072
    layernorm_epsilon: 1.5625e-07
    rope_ratio: 500
    add_qkv_bias: True
  arch: {type: ChatGLM2ForConditionalGeneration}
"""
QWEN3_MOE = """
model:
  model_config:
    type: Qwen3MoeConfig
    num_layers: 48
    hidden_size: 2048
    num_attention_heads: 32
    num_query_groups: 4
    kv_channels: 128
    layernorm_epsilon: 1.0e-6
    rotary_base: 1000000.0
    vocab_size: 151936
    num_moe_experts: 128
    moe_router_topk: 8
    moe_ffn_hidden_size: 768
"""


def test_shapes_of_glm4_are_read_in_mindformers_words(write):
    repository = Path(__file__).parents[3] / "model_configs"
    ours = load_config(repository / "glm4" / "9b.yaml").model.config
    theirs = load_config(write("run.yaml", GLM4)).model.config
    assert theirs == {key: ours[key] for key in theirs}
    assert theirs.keys() >= ours.keys() - {"partial_rotary_factor", "tie_word_embeddings"}


def test_shapes_of_qwen3_moe_are_read_in_mindformers_words(write):
    repository = Path(__file__).parents[3] / "model_configs"
    ours = load_config(repository / "qwen3_moe" / "30b_a3b.yaml").model.config
    theirs = load_config(write("run.yaml", QWEN3_MOE)).model.config
    assert theirs == {key: ours[key] for key in theirs}
    assert len(theirs) == 11


def test_words_of_another_type_stay(write):
    write("run.yaml", "model: {model_config: {type: OtherConfig, rope_ratio: 2, num_layers: 3}}")
    assert load_config("run.yaml").model.config == {"rope_ratio": 2, "num_layers": 3}


@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "LlamaConfig"), ("baichuan2", "LlamaConfig"), ("glm4", "ChatGLM2Config")]
)
def test_every_word_of_mindformers_config_is_a_shape_or_known_to_the_family(family, kind):
    import mindformers

    words = set(inspect.signature(getattr(mindformers, kind).__init__).parameters) - {"self", "kwargs"}
    moved = {key.rpartition(".")[2] for key in MOVED if key.startswith("model.model_config.")}
    known = get_family(family).config_keys | get_family(family).mindformers_keys()
    assert words - SHAPES[kind].keys() - moved - {*NOT_SHAPES} <= known
    assert set(SHAPES[kind]) <= words
    assert set(SHAPES[kind].values()) <= get_family(family).config_keys


def test_rows_divided_over_workers(write):
    assert load_config(write("two.yaml", "parallel_config: {context_parallel: 2}")).parallel.context_parallel == 2
    load_config(write("same.yaml", "parallel_config: {context_parallel_algo: colossalai_cp, ulysses_degree_in_cp: 1}"))
    for words, said in (
        ("context_parallel_algo: ulysses_cp", "algo is 'ulysses_cp'"),
        ("ulysses_degree_in_cp: 2", "cp is 2"),
    ):
        with pytest.raises(UserError, match=rf"other\.yaml: parallel_config\.\w+_{said}, which is not supported"):
            load_config(write("other.yaml", f"parallel_config: {{{words}}}"))
