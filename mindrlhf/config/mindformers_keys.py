"""A yaml written for MindFormers, in our keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mindrlhf.config import kinds, schema
from mindrlhf.runtime.errors import UserError

# In this order: what is taken out of model_config goes before the rest of it.
MOVED = {
    "load_checkpoint": "model.load_checkpoint",
    "model.arch.type": "model.family",
    "model.model_config.compute_dtype": "model.dtype",
    "model.model_config.max_new_tokens": "generation.max_new_tokens",
    "model.model_config.do_sample": "generation.do_sample",
    "model.model_config.temperature": "generation.temperature",
    "model.model_config.top_k": "generation.top_k",
    "model.model_config.top_p": "generation.top_p",
    "model.model_config.beta": "rlhf.beta",
    "model.model_config": "model.config",
    "processor.tokenizer.vocab_file": "tokenizer.path",
    "processor.tokenizer.chat_template": "tokenizer.chat_template",
    "runner_config.epochs": "train.epochs",
    "runner_config.batch_size": "train.micro_batch_pairs",
    "recompute_config.recompute": "train.recompute",
    "lr_schedule.learning_rate": "optimizer.learning_rate",
    "parallel.enable_parallel_optimizer": "parallel.optimizer_shard",
    "parallel_config.data_parallel": "parallel.data_parallel",
    "parallel_config.model_parallel": "parallel.model_parallel",
    "parallel_config.pipeline_stage": "parallel.pipeline_stage",
    "parallel_config.micro_batch_num": "parallel.micro_batch_num",
    "parallel_config.vocab_emb_dp": "parallel.vocab_emb_dp",
    "parallel_config.expert_parallel": "parallel.expert_parallel",
    "parallel_config.use_seq_parallel": "parallel.sequence_parallel",
    "parallel_config.context_parallel": "parallel.context_parallel",
}
RENAMED = {  # values of keys that have the same name in both
    "run_mode": {"finetune": "train"},
    "optimizer.type": dict.fromkeys(("AdamW", "FusedAdamW", "AdamWeightDecay", "FP32StateAdamWeightDecay"), "adamw"),
    "lr_schedule.type": {
        "ConstantWarmUpLR": "constant",
        "constant_with_warmup": "constant",
        "LinearWithWarmUpLR": "linear",
        "CosineWithWarmUpLR": "cosine",
    },
}
# MindFormers' words for a model's shapes where they are not Hugging Face's, by model_config.type.
_MCORE = {
    "num_layers": "num_hidden_layers",
    "num_query_groups": "num_key_value_heads",
    "kv_channels": "head_dim",
    "ffn_hidden_size": "intermediate_size",
    "layernorm_epsilon": "rms_norm_eps",
    "add_qkv_bias": "attention_bias",
    "rotary_base": "rope_theta",
    "init_method_std": "initializer_range",
}
SHAPES = {
    "LlamaConfig": {
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads",
        "max_position_embedding": "max_position_embeddings",
        "theta": "rope_theta",
        "init_method_std": "initializer_range",
    },
    "ChatGLM2Config": {
        "num_layers": "num_hidden_layers",
        "padded_vocab_size": "vocab_size",
        "ffn_hidden_size": "intermediate_size",
        "kv_channels": "head_dim",
        "multi_query_group_num": "num_key_value_heads",
        "layernorm_epsilon": "rms_norm_eps",
        "add_qkv_bias": "attention_bias",
        "seq_length": "max_position_embeddings",
    },
    "Qwen3Config": _MCORE,
    "Qwen3MoeConfig": {
        **_MCORE,
        "num_moe_experts": "num_experts",
        "moe_router_topk": "num_experts_per_tok",
        "moe_ffn_hidden_size": "moe_intermediate_size",
    },
}
ROPE_RATIO_OF = 10000.0  # the rope_theta that ChatGLM2Config's rope_ratio multiplies
NOT_SHAPES = ("type", "auto_register", "checkpoint_name_or_path")
# Keys of MindFormers inside the sections above that mean nothing here.
WITHOUT_EFFECT = {
    "model.arch": ("auto_register",),
    "runner_config": (
        *("sink_mode", "sink_size", "sink_per_epoch", "initial_epoch", "initial_step", "step_scale", "stop_step"),
        *("num_classes", "image_size", "gradient_accumulation_steps"),
    ),
    "optimizer": ("swap", "amsgrad", "maximize"),
    "lr_schedule": (
        *("lr_end", "total_steps", "warmup_lr_init", "warmup_epochs", "num_cycles", "power"),
        *("decay_steps", "decay_ratio"),
    ),
    "parallel": (
        *("parallel_mode", "gradients_mean", "loss_repeated_mean", "enable_alltoall", "full_batch"),
        *("dataset_strategy", "search_mode", "auto_parallel_search_mode", "strategy_ckpt_config"),
        *("strategy_ckpt_save_file", "strategy_ckpt_load_file", "only_trainable_params", "pipeline_config"),
        *("parallel_optimizer_config", "comm_fusion", "device_num", "global_rank", "gradient_fp32_sync"),
        *("parameter_broadcast", "pipeline_stages"),
    ),
    "parallel_config": (
        *("context_parallel_algo", "ulysses_degree_in_cp", "seq_split_num"),
        *("gradient_aggregation_group", "optimizer_shard", "recompute", "mem_coeff", "swap"),
    ),
    "recompute_config": (
        *("select_recompute", "select_comm_recompute", "parallel_optimizer_comm_recompute", "mp_comm_recompute"),
        *("recompute_slice_activation", "select_recompute_exclude", "select_comm_recompute_exclude"),
    ),
}
# The other top-level keys of MindFormers' own template, and what its published files had before that.
IGNORED = (
    *("trainer", "context", "runner_wrapper", "callbacks", "train_dataset", "train_dataset_task", "eval_dataset"),
    *("eval_dataset_task", "moe_config", "micro_batch_interleave_num", "use_parallel"),
    *("resume_training", "use_legacy", "processor", "swap_config", "metric", "eval_callbacks", "do_eval"),
    *("eval_step_interval", "eval_epoch_interval", "only_save_strategy", "src_strategy_path_or_dir"),
    *("transform_process_num", "load_ckpt_format", "load_ckpt_async", "use_legacy_format", "balanced_load"),
    *("reshard_worker_num", "pretrained_model_dir", "print_separate_loss", "ignore_data_skip", "data_skip_steps"),
    *("init_start_profile", "mstx", "layer_scale", "layer_decay", "lr_scale", "lr_scale_factor", "remote_save_url"),
    *("save_file", "input_data", "predict_batch_size", "adapter_id", "exclude_cann_cpu", "train_precision_sync"),
    *("infer_precision_sync", "postprocess_use_numpy", "auto_tune", "filepath_prefix", "autotune_per_step"),
)
IGNORED_STARTS = ("profile", "monitor")
THEIR_SECTIONS = ("model.arch", "runner_config", "parallel_config", "recompute_config")
ABSENT = object()


@dataclass
class Notes:
    """What was made of MindFormers' keys in all files of a run, to be told once."""

    mapped: dict[str, str] = field(default_factory=dict)  # their key -> what it became
    ignored: dict[str, str] = field(default_factory=dict)  # their key -> the file where it stands


def translate(given: Mapping[Any, Any], source: str, notes: Notes) -> tuple[dict[Any, Any], dict[str, str]]:
    """`given` in our keys, and for each key that was moved the word by which the file calls it."""
    tree: dict[Any, Any] = _copy(given)
    spelled: dict[str, str] = {}
    _set_global_batch(tree, notes)
    _set_betas(tree, notes)
    if not tree.get("load_checkpoint") and _move(tree, "pretrained_model_dir", "model.load_checkpoint", source):
        spelled["model.load_checkpoint"] = "pretrained_model_dir"
        notes.mapped["pretrained_model_dir"] = "model.load_checkpoint"
    for key, names in RENAMED.items():
        value = _get(tree, key)
        if isinstance(value, str) and value in names:
            _put(tree, key, names[value])
            notes.mapped[f"{key} {value}"] = names[value]
    if isinstance(_get(tree, "model.model_config"), dict):
        _name_shapes(tree["model"]["model_config"])
    for theirs, ours in MOVED.items():
        if _move(tree, theirs, ours, source):
            spelled[ours] = theirs
            notes.mapped[theirs] = ours
    if _take(tree, "auto_trans_ckpt") is not ABSENT:
        notes.mapped["auto_trans_ckpt"] = "what every load does"
    _drop_inner(tree, source, notes)
    _drop_outer(tree, source, notes)
    return tree, spelled


def _set_global_batch(tree: dict[Any, Any], notes: Notes) -> None:
    """MindFormers' batch_size is per worker and pass, so that its global batch follows from the layout."""
    layout, runner = tree.get("parallel_config"), tree.get("runner_config")
    if not isinstance(layout, dict) or not isinstance(runner, dict):
        return
    factors = [
        runner.get("batch_size"),
        layout.get("data_parallel"),
        runner.get("gradient_accumulation_steps", 1),
        layout.get("micro_batch_num", 1) if layout.get("pipeline_stage", 1) != 1 else 1,
    ]
    if (
        all(type(factor) is int and factor >= 1 for factor in factors)
        and _get(tree, "train.global_batch_pairs") is ABSENT
    ):
        product = math.prod(factors)
        runner.pop("gradient_accumulation_steps", None)
        _put(tree, "train.global_batch_pairs", product)
        notes.mapped["batch_size of all workers"] = f"train.global_batch_pairs {product}"


def _set_betas(tree: dict[Any, Any], notes: Notes) -> None:
    """Some of MindFormers' optimizers take beta1 and beta2, each with a default of its own."""
    optimizer = tree.get("optimizer")
    if isinstance(optimizer, dict) and optimizer.keys() & {"beta1", "beta2"} and "betas" not in optimizer:
        optimizer["betas"] = [optimizer.pop("beta1", 0.9), optimizer.pop("beta2", 0.999)]
        notes.mapped["optimizer.beta1, optimizer.beta2"] = "optimizer.betas"


def _name_shapes(model_config: dict[Any, Any]) -> None:
    kind = str(model_config.get("type"))
    for name in NOT_SHAPES:
        model_config.pop(name, None)
    for theirs, ours in SHAPES.get(kind, {}).items():
        if theirs in model_config:
            model_config.setdefault(ours, model_config.pop(theirs))
    ratio = model_config.get("rope_ratio")
    if kind == "ChatGLM2Config" and isinstance(ratio, (int, float)):
        model_config.setdefault("rope_theta", ROPE_RATIO_OF * model_config.pop("rope_ratio"))


def _move(tree: dict[Any, Any], theirs: str, ours: str, source: str) -> bool:
    """Give the value of `theirs` to `ours`; False where there is none. Empty and null are MindFormers' "not given"."""
    value = _take(tree, theirs)
    if value is ABSENT or value is None or value in ("", {}):
        return False
    present = _get(tree, ours)
    if isinstance(present, dict) and isinstance(value, dict):
        value = {**value, **present}
    elif present is not ABSENT and present is not None and present != value:
        both = f"{theirs} is {kinds.show(value)} and {ours} is {kinds.show(present)}"
        raise UserError(f"{source}: {both}, which are one thing; keep one")
    _put(tree, ours, value)
    return True


def _drop_inner(tree: dict[Any, Any], source: str, notes: Notes) -> None:
    """Drop what has no effect inside the sections; in sections that are MindFormers' alone the rest is unknown."""
    _take(tree, "processor.tokenizer", only_empty=True)
    for key, ours in (("context_parallel_algo", "colossalai_cp"), ("ulysses_degree_in_cp", 1)):
        given = _get(tree, f"parallel_config.{key}")
        if given not in (ABSENT, None, ours):
            raise UserError(
                f"{source}: parallel_config.{key} is {kinds.show(given)}, which is not supported; here it is {ours}"
            )
    for section, names in WITHOUT_EFFECT.items():
        dropped = [name for name in names if _take(tree, f"{section}.{name}") is not ABSENT]
        if dropped:
            notes.ignored[f"{section}.{{{', '.join(dropped)}}}"] = source
    for section in THEIR_SECTIONS:
        rest = _take(tree, section)
        if rest is ABSENT or rest is None:
            continue
        if not isinstance(rest, dict):
            raise UserError(f"{source}: {section} is {kinds.show(rest)}; give a mapping")
        known = [key for key in MOVED if key.startswith(f"{section}.")]
        known += [f"{section}.{name}" for name in WITHOUT_EFFECT[section]]
        for name in rest:
            raise schema.unknown_key(f"{section}.{name}", source, known)


def _drop_outer(tree: dict[Any, Any], source: str, notes: Notes) -> None:
    """Drop the sections that have no effect; refuse a name that is neither ours nor MindFormers'."""
    for name in list(tree):
        if name in IGNORED or str(name).startswith(IGNORED_STARTS):
            if tree.pop(name) != {}:
                notes.ignored[name] = source
        elif name not in schema.SECTIONS and name not in schema.LEAVES:
            theirs = [key.split(".")[0] for key in MOVED]
            raise schema.unknown_key(str(name), source, [*theirs, *IGNORED, "auto_trans_ckpt", "include"])


def _copy(value: Any) -> Any:
    """A copy in which what yaml aliases share is apart."""
    if isinstance(value, Mapping):
        return {name: _copy(item) for name, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _get(tree: Any, key: str) -> Any:
    for name in key.split("."):
        if not isinstance(tree, dict) or name not in tree:
            return ABSENT
        tree = tree[name]
    return tree


def _take(tree: dict[Any, Any], key: str, *, only_empty: bool = False) -> Any:
    section, _, name = key.rpartition(".")
    holder = _get(tree, section) if section else tree
    if not isinstance(holder, dict) or (only_empty and holder.get(name) != {}):
        return ABSENT
    return holder.pop(name, ABSENT)


def _put(tree: dict[Any, Any], key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    holder = tree.setdefault(section, {}) if section else tree
    if holder is None:
        holder = tree[section] = {}
    if isinstance(holder, dict):
        holder[name] = value
