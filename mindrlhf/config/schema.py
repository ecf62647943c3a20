"""Every key of a run's yaml: its default, and what it accepts."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from mindrlhf.config import kinds
from mindrlhf.config.kinds import Kind
from mindrlhf.runtime.errors import UserError

LARGEST_SEED = 2**32 - 1  # of NumPy and MindSpore


def _leaf(default: Any, kind: Kind) -> Any:
    return field(default=default, metadata={"kind": kind})


_count = kinds.whole(1)
_positive = kinds.number("> 0", lambda x: x > 0)
_not_negative = kinds.number(">= 0", lambda x: x >= 0)
_share = kinds.number(">= 0 and <= 1", lambda x: 0 <= x <= 1)
_below_one = kinds.number(">= 0 and < 1", lambda x: 0 <= x < 1)
_yes_no = kinds.boolean()
_path = kinds.either(None, kinds.text())
_absent = Kind("; LoRA is not in this version, so leave the key out", kinds.choice(None).read)


@dataclass(frozen=True)
class Device:
    """Where the run computes."""

    target: str = _leaf("auto", kinds.choice("auto", "CPU", "Ascend"))


@dataclass(frozen=True)
class Model:
    """The model: its family, precision, weights, and shapes in Hugging Face's words, which win over its config.json.

    aux_loss_coef: weight of a router's load-balance loss; null as config.json says, 0 unless `output_router_logits`.
    """

    family: str = _leaf("auto", kinds.text("the name of a model family, or auto"))
    dtype: str = _leaf("auto", kinds.choice("auto", "float32", "float16", "bfloat16"))
    load_checkpoint: str | None = _leaf(None, _path)
    aux_loss_coef: float | None = _leaf(None, kinds.either(None, _not_negative))
    config: dict[str, Any] = field(default_factory=dict, metadata={"kind": kinds.mapping()})


@dataclass(frozen=True)
class Tokenizer:
    """Where the tokenizer lies, and its chat template: its own (auto), a built-in one by name, or a .jinja file."""

    path: str | None = _leaf(None, _path)
    chat_template: str = _leaf("auto", kinds.text("auto, the name of a built-in chat template, or a .jinja file"))


@dataclass(frozen=True)
class Data:
    """Records and how they become rows. `seq_len` counts prompt and response tokens; null is the record's own."""

    train: str | None = _leaf(None, _path)
    eval: str | None = _leaf(None, _path)
    seq_len: int | None = _leaf(None, kinds.either(None, kinds.whole(2)))
    layout: str = _leaf("padded", kinds.choice("padded"))
    overlong: str = _leaf("drop", kinds.choice("drop", "truncate_prompt_left", "truncate_end"))
    shuffle: bool = _leaf(True, _yes_no)
    max_rejected: float = _leaf(0.05, _share)


@dataclass(frozen=True)
class Rlhf:
    """The algorithm. Null parameters of a loss are the loss's own; `loss` may be a list of {type, weight, ...}.

    `ld_alpha`, `use_weighting`, `f_divergence_type` and `f_alpha_divergence_coef` act on every loss that is built on
    log-ratios. `reference_checkpoint` is what an online reference starts from, null being what training starts from.
    """

    algorithm: str = _leaf("dpo", kinds.choice("dpo"))
    loss: str | tuple[dict[str, Any], ...] = _leaf("sigmoid", kinds.losses())
    beta: float | None = _leaf(None, kinds.either(None, _positive))
    label_smoothing: float | None = _leaf(
        None, kinds.either(None, kinds.number(">= 0 and < 0.5", lambda x: 0 <= x < 0.5))
    )
    simpo_gamma: float | None = _leaf(None, kinds.either(None, _not_negative))
    cpo_alpha: float | None = _leaf(None, kinds.either(None, _not_negative))
    discopop_tau: float | None = _leaf(None, kinds.either(None, _positive))
    ld_alpha: float | None = _leaf(None, kinds.either(None, _share))
    use_weighting: bool = _leaf(False, _yes_no)
    f_divergence_type: str = _leaf(
        "reverse_kl", kinds.choice("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
    )
    f_alpha_divergence_coef: float = _leaf(0.5, kinds.number("other than 1", lambda x: x != 1))
    reference: str = _leaf("record", kinds.choice("record", "online", "none"))
    reference_free: bool = _leaf(False, _yes_no)
    reference_checkpoint: str | None = _leaf(None, _path)
    other_reference: str = _leaf("refuse", kinds.choice("refuse", "accept"))
    sync_ref_model: bool = _leaf(False, _yes_no)
    ref_model_sync_steps: int = _leaf(512, _count)
    ref_model_mixup_alpha: float = _leaf(0.6, kinds.number("> 0 and <= 1", lambda x: 0 < x <= 1))


@dataclass(frozen=True)
class Train:
    """The loop. `steps` wins over `epochs`; a null `micro_batch_pairs` is no accumulation. `recompute`: of a layer only
    its input is kept for the backward pass, which computes the rest again.

    `metric_for_best_model`: the figure of the evaluations by which the best weights are kept. `greater_is_better` null:
    false for a loss, true for all else. `early_stopping_patience`: evaluations without a gain of more than
    `early_stopping_threshold` after which training ends.
    """

    epochs: int = _leaf(1, _count)
    steps: int | None = _leaf(None, kinds.either(None, _count))
    global_batch_pairs: int = _leaf(8, _count)
    micro_batch_pairs: int | None = _leaf(None, kinds.either(None, _count))
    max_grad_norm: float = _leaf(1.0, _positive)
    recompute: bool = _leaf(False, _yes_no)
    logging_steps: int = _leaf(1, _count)
    eval_steps: int | None = _leaf(None, kinds.either(None, _count))
    save_steps: int | None = _leaf(None, kinds.either(None, _count))
    save_total_limit: int = _leaf(2, _count)
    metric_for_best_model: str | None = _leaf(None, kinds.either(None, kinds.text("the name of a metric")))
    greater_is_better: bool | None = _leaf(None, kinds.either(None, _yes_no))
    early_stopping_patience: int | None = _leaf(None, kinds.either(None, _count))
    early_stopping_threshold: float = _leaf(0.0, _not_negative)
    resume: bool = _leaf(False, _yes_no)


@dataclass(frozen=True)
class Optimizer:
    """AdamW as torch has it."""

    type: str = _leaf("adamw", kinds.choice("adamw"))
    learning_rate: float = _leaf(5.0e-6, _positive)
    betas: tuple[float, float] = _leaf(
        (0.9, 0.999), kinds.pair(_below_one, "; give two numbers >= 0 and < 1, such as [0.9, 0.999]")
    )
    eps: float = _leaf(1.0e-8, _positive)
    weight_decay: float = _leaf(0.0, _not_negative)


@dataclass(frozen=True)
class LrSchedule:
    """The learning rate over the steps. `warmup_steps` wins over `warmup_ratio`."""

    type: str = _leaf("constant", kinds.choice("constant", "linear", "cosine"))
    warmup_steps: int = _leaf(0, kinds.whole(0))
    warmup_ratio: float = _leaf(0.0, _share)


@dataclass(frozen=True)
class Parallel:
    """The layout over the processes; `data_parallel: auto` is what the others leave."""

    data_parallel: int | str = _leaf("auto", kinds.either("auto", _count))
    model_parallel: int = _leaf(1, _count)
    pipeline_stage: int = _leaf(1, _count)
    micro_batch_num: int = _leaf(1, _count)
    optimizer_shard: bool = _leaf(False, _yes_no)
    vocab_emb_dp: bool = _leaf(True, _yes_no)
    expert_parallel: int = _leaf(1, _count)
    sequence_parallel: bool = _leaf(False, _yes_no)
    context_parallel: int = _leaf(1, _count)


@dataclass(frozen=True)
class Generation:
    """How answers are drawn. `top_k` 0 and `top_p` 1 cut nothing."""

    max_new_tokens: int = _leaf(256, _count)
    do_sample: bool = _leaf(False, _yes_no)
    temperature: float = _leaf(1.0, _positive)
    top_k: int = _leaf(0, kinds.whole(0))
    top_p: float = _leaf(1.0, kinds.number("> 0 and <= 1", lambda x: 0 < x <= 1))


@dataclass(frozen=True)
class Config:
    """A whole run."""

    seed: int = _leaf(0, kinds.whole(0, LARGEST_SEED))
    run_mode: str = _leaf("train", kinds.choice("train", "eval", "predict"))
    output_dir: str = _leaf("./output", kinds.text())
    device: Device = field(default_factory=Device)
    model: Model = field(default_factory=Model)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    data: Data = field(default_factory=Data)
    rlhf: Rlhf = field(default_factory=Rlhf)
    train: Train = field(default_factory=Train)
    optimizer: Optimizer = field(default_factory=Optimizer)
    lr_schedule: LrSchedule = field(default_factory=LrSchedule)
    parallel: Parallel = field(default_factory=Parallel)
    lora: None = _leaf(None, _absent)
    generation: Generation = field(default_factory=Generation)


SECTIONS: dict[str, Any] = {
    item.name: item.default_factory for item in fields(Config) if is_dataclass(item.default_factory)
}
LEAVES: dict[str, Kind] = {
    **{item.name: item.metadata["kind"] for item in fields(Config) if "kind" in item.metadata},
    **{f"{name}.{item.name}": item.metadata["kind"] for name, cls in SECTIONS.items() for item in fields(cls)},
}


def check(tree: Mapping[Any, Any], source: str, spelled: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The keys and values of `tree` as the schema keeps them; keys that are absent stay absent.

    `source` names the file, flag or override in errors; `spelled` the word there for a key that goes by another.
    Raises UserError for an unknown key, with the nearest one, and for a value that its key does not accept.
    """
    spelled = spelled or {}
    checked: dict[str, Any] = {}
    for name, value in tree.items():
        if name not in SECTIONS:
            checked[name] = _read(str(name), value, source, spelled)
        elif isinstance(value, Mapping):
            checked[name] = {key: _read(f"{name}.{key}", item, source, spelled) for key, item in value.items()}
        elif value is not None:
            keys = ", ".join(item.name for item in fields(SECTIONS[name]))
            raise UserError(f"{source}: {name} is {kinds.show(value)}; give a mapping with keys among {keys}")
    return checked


def _read(key: str, value: Any, source: str, spelled: Mapping[str, str]) -> Any:
    if key not in LEAVES:
        raise unknown_key(key, source)
    word = f"{spelled[key]} (our {key})" if key in spelled else key
    return read_value(key, value, f"{source}: {word}")


def read_value(key: str, value: Any, word: str, *, or_null: bool = True) -> Any:
    """`value` as `key` keeps it; UserError "`word` is ..." where it does not accept it.

    `or_null` False leaves null unsaid, which only yaml can write.
    """
    kind = LEAVES[key]
    try:
        return kind.read(value)
    except kinds.WrongPart as error:
        raise UserError(f"{word}, {error}") from None
    except ValueError:
        complaint = kind.complaint if or_null else kind.complaint.removesuffix(" or null")
        raise UserError(f"{word} is {kinds.show(value)}{complaint}") from None


def unknown_key(key: str, source: str, others: Iterable[str] = ()) -> UserError:
    """The error for a key that is neither in the schema nor among `others`, naming the nearest that is."""
    return UserError(f"{source}: {key} is not a key; did you mean {_nearest(key, [*LEAVES, *SECTIONS, *others])}?")


def _nearest(key: str, known: list[str]) -> str:
    """The nearest in the same section, else the nearest last word anywhere, else the nearest of all."""
    section, _, last = key.rpartition(".")
    anywhere = {name.rpartition(".")[2]: name for name in known}
    beside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    for words, cutoff in ((beside, 0.6), (anywhere, 0.6), (anywhere, 0.0)):
        for word in difflib.get_close_matches(last, words, n=1, cutoff=cutoff):
            return words[word]
    raise AssertionError("the schema has keys")


def build(tree: Mapping[str, Any]) -> Config:
    """The Config of a checked tree; what it lacks takes its default."""
    return Config(**{name: SECTIONS[name](**value) if name in SECTIONS else value for name, value in tree.items()})
