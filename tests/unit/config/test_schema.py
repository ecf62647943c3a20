"""The schema against the published defaults, and every key of it against wrong values."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields

import pytest

from mindrlhf.config.load import to_dict
from mindrlhf.config.schema import LARGEST_SEED, LEAVES, SECTIONS, Config, build, check
from mindrlhf.runtime.errors import UserError

DEFAULTS = {
    "seed": 0,
    "run_mode": "train",
    "output_dir": "./output",
    "device": {"target": "auto"},
    "model": {"family": "auto", "dtype": "auto", "load_checkpoint": None, "aux_loss_coef": None, "config": {}},
    "tokenizer": {"path": None, "chat_template": "auto"},
    "data": {
        "train": None,
        "eval": None,
        "seq_len": None,
        "layout": "padded",
        "overlong": "drop",
        "shuffle": True,
        "max_rejected": 0.05,
    },
    "rlhf": {
        "algorithm": "dpo",
        "loss": "sigmoid",
        "beta": None,
        "label_smoothing": None,
        "simpo_gamma": None,
        "cpo_alpha": None,
        "discopop_tau": None,
        "ld_alpha": None,
        "use_weighting": False,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "reference": "record",
        "reference_free": False,
        "reference_checkpoint": None,
        "other_reference": "refuse",
        "sync_ref_model": False,
        "ref_model_sync_steps": 512,
        "ref_model_mixup_alpha": 0.6,
    },
    "train": {
        "epochs": 1,
        "steps": None,
        "global_batch_pairs": 8,
        "micro_batch_pairs": None,
        "max_grad_norm": 1.0,
        "recompute": False,
        "logging_steps": 1,
        "eval_steps": None,
        "save_steps": None,
        "save_total_limit": 2,
        "metric_for_best_model": None,
        "greater_is_better": None,
        "early_stopping_patience": None,
        "early_stopping_threshold": 0.0,
        "resume": False,
    },
    "optimizer": {"type": "adamw", "learning_rate": 5.0e-6, "betas": [0.9, 0.999], "eps": 1.0e-8, "weight_decay": 0.0},
    "lr_schedule": {"type": "constant", "warmup_steps": 0, "warmup_ratio": 0.0},
    "parallel": {
        "data_parallel": "auto",
        "model_parallel": 1,
        "pipeline_stage": 1,
        "micro_batch_num": 1,
        "optimizer_shard": False,
        "vocab_emb_dp": True,
        "expert_parallel": 1,
        "sequence_parallel": False,
        "context_parallel": 1,
    },
    "lora": None,
    "generation": {"max_new_tokens": 256, "do_sample": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
}

COUNTS = [
    *("train.epochs", "train.global_batch_pairs", "train.logging_steps", "train.save_total_limit"),
    *("parallel.model_parallel", "parallel.pipeline_stage", "parallel.micro_batch_num", "generation.max_new_tokens"),
    *("rlhf.ref_model_sync_steps", "parallel.expert_parallel", "parallel.context_parallel"),
]
COUNTS_OR_NULL = [
    *("train.steps", "train.micro_batch_pairs", "train.eval_steps", "train.save_steps"),
    "train.early_stopping_patience",
]
POSITIVE = ["train.max_grad_norm", "optimizer.learning_rate", "optimizer.eps", "generation.temperature"]
POSITIVE_OR_NULL = ["rlhf.beta", "rlhf.discopop_tau"]
NOT_NEGATIVE_OR_NULL = ["rlhf.simpo_gamma", "rlhf.cpo_alpha", "model.aux_loss_coef"]
ABOVE_0_TO_1 = ["generation.top_p", "rlhf.ref_model_mixup_alpha"]
YES_NO = [
    *(
        "data.shuffle",
        "train.recompute",
        "train.resume",
        "parallel.optimizer_shard",
        "parallel.vocab_emb_dp",
        "parallel.sequence_parallel",
        "generation.do_sample",
    ),
    *("rlhf.use_weighting", "rlhf.reference_free", "rlhf.sync_ref_model"),
]
TEXTS = ["output_dir", "model.family", "tokenizer.chat_template"]
PATHS = ["model.load_checkpoint", "tokenizer.path", "data.train", "data.eval", "rlhf.reference_checkpoint"]
TEXTS_OR_NULL = [*PATHS, "train.metric_for_best_model"]
CHOICES = {
    "run_mode": ["train", "eval", "predict"],
    "device.target": ["auto", "CPU", "Ascend"],
    "model.dtype": ["auto", "float32", "float16", "bfloat16"],
    "data.layout": ["padded"],
    "data.overlong": ["drop", "truncate_prompt_left", "truncate_end"],
    "rlhf.algorithm": ["dpo"],
    "rlhf.reference": ["record", "online", "none"],
    "rlhf.f_divergence_type": ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"],
    "rlhf.other_reference": ["refuse", "accept"],
    "optimizer.type": ["adamw"],
    "lr_schedule.type": ["constant", "linear", "cosine"],
}
NOT_WHOLE = ["abc", "1", 1.5, 1.0, True, [1], {}]
NOT_NUMBER = ["abc", "", "nan", float("inf"), 10**400, True, [1.0], {}]
NOT_TEXT = ["", " ", 1, True, [], {"a": 1}]
WRONG = {
    "seed": [*NOT_WHOLE, None, -1, LARGEST_SEED + 1],
    **{key: [*NOT_WHOLE, None, 0, -1] for key in COUNTS},
    **{key: [*NOT_WHOLE, 0, -1] for key in COUNTS_OR_NULL},
    "data.seq_len": [*NOT_WHOLE, 1],
    "lr_schedule.warmup_steps": [*NOT_WHOLE, None, -1],
    "generation.top_k": [*NOT_WHOLE, None, -1],
    "parallel.data_parallel": ["abc", "1", 1.5, True, None, 0],
    **{key: [*NOT_NUMBER, None, 0, -1.0] for key in POSITIVE},
    **{key: [*NOT_NUMBER, 0, -0.1] for key in POSITIVE_OR_NULL},
    **{key: [*NOT_NUMBER, -0.1] for key in NOT_NEGATIVE_OR_NULL},
    "rlhf.ld_alpha": [*NOT_NUMBER, -0.1, 1.1],
    "rlhf.f_alpha_divergence_coef": [*NOT_NUMBER, None, 1, 1.0],
    "train.early_stopping_threshold": [*NOT_NUMBER, None, -0.1],
    "train.greater_is_better": ["true", 1, 0, []],
    "rlhf.loss": ["", " ", None, 1, True, [], {}, {"type": "sigmoid"}],
    "rlhf.label_smoothing": [*NOT_NUMBER, -0.1, 0.5],
    "data.max_rejected": [*NOT_NUMBER, None, -0.1, 1.1],
    "lr_schedule.warmup_ratio": [*NOT_NUMBER, None, -0.1, 1.1],
    "optimizer.weight_decay": [*NOT_NUMBER, None, -0.1],
    **{key: [*NOT_NUMBER, None, 0, 1.1] for key in ABOVE_0_TO_1},
    "optimizer.betas": [0.9, [0.9], [0.9, 1.0], [-0.1, 0.9], [0.9, 0.99, 0.999], ["a", 0.9], None, "0.9, 0.99"],
    **{key: ["true", 1, 0, None, []] for key in YES_NO},
    **{key: [*NOT_TEXT, None] for key in TEXTS},
    **dict.fromkeys(TEXTS_OR_NULL, NOT_TEXT),
    **{key: [choices[0] + "x", 1, None, [choices[0]]] for key, choices in CHOICES.items()},
    "model.config": ["abc", 1, [], {1: 2}, {"a": {1: 2}}, {"a": {1, 2}}],
    "lora": [{"rank": 8}, "null", 0, False],
}


def _tree(key: str, value: object) -> dict:
    section, _, name = key.rpartition(".")
    return {section: {name: value}} if section else {name: value}


def _read(key: str, value: object) -> object:
    checked = check(_tree(key, value), "run.yaml")
    section, _, name = key.rpartition(".")
    return checked[section][name] if section else checked[name]


def test_defaults_are_the_published_ones():
    assert to_dict(Config()) == DEFAULTS


def test_defaults_pass_their_own_check():
    assert build(check(DEFAULTS, "run.yaml")) == Config()


def test_to_dict_survives_json():
    assert json.loads(json.dumps(to_dict(Config()))) == to_dict(Config())


def test_config_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Config().train.steps = 3


def test_every_section_and_leaf_is_described():
    assert set(WRONG) == set(LEAVES)
    assert {item.name for item in fields(Config)} == set(SECTIONS) | {key for key in LEAVES if "." not in key}


@pytest.mark.parametrize(
    ("key", "value"), [pytest.param(key, value, id=f"{key}-{value!r:.20}") for key in WRONG for value in WRONG[key]]
)
def test_a_wrong_value_is_refused_by_name(key, value):
    with pytest.raises(UserError) as caught:
        check(_tree(key, value), "run.yaml")
    sentence = str(caught.value)
    assert sentence.startswith(f"run.yaml: {key} is ")
    assert "\n" not in sentence
    assert len(sentence) < 250


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, 3) for key in [*COUNTS, *COUNTS_OR_NULL]),
        *((key, None) for key in [*COUNTS_OR_NULL, *TEXTS_OR_NULL, *POSITIVE_OR_NULL, *NOT_NEGATIVE_OR_NULL]),
        *((key, None) for key in ("data.seq_len", "rlhf.label_smoothing", "rlhf.ld_alpha", "train.greater_is_better")),
        *((key, 0.5) for key in [*POSITIVE, *POSITIVE_OR_NULL, *NOT_NEGATIVE_OR_NULL, *ABOVE_0_TO_1]),
        *((key, 0.0) for key in [*NOT_NEGATIVE_OR_NULL, "rlhf.ld_alpha", "train.early_stopping_threshold"]),
        *((key, 1.0) for key in [*ABOVE_0_TO_1, "rlhf.ld_alpha"]),
        *((key, value) for key in YES_NO for value in (True, False)),
        *((key, "some text") for key in [*TEXTS, *TEXTS_OR_NULL, "rlhf.loss"]),
        *((key, choice) for key, choices in CHOICES.items() for choice in choices),
        ("seed", LARGEST_SEED),
        ("parallel.data_parallel", 4),
        ("data.seq_len", 2),
        ("data.max_rejected", 0.0),
        ("data.max_rejected", 1.0),
        ("rlhf.label_smoothing", 0.0),
        ("rlhf.f_alpha_divergence_coef", -2.0),
        ("train.greater_is_better", False),
        ("model.config", {"a": {"b": [1, 2.0, "c", None, True]}}),
    ],
)
def test_a_right_value_is_kept(key, value):
    kept = _read(key, value)
    assert kept == value
    assert type(kept) is type(value)


def test_numbers_are_kept_as_floats():
    for given, kept in (("5e-6", 5e-6), ("1E-3", 1e-3), (1, 1.0)):
        found = _read("optimizer.learning_rate", given)
        assert found == kept
        assert type(found) is float


def test_betas_are_kept_as_a_pair_of_floats():
    assert _read("optimizer.betas", [0, "9e-1"]) == (0.0, 0.9)


def test_a_null_section_is_its_defaults():
    assert build(check(dict.fromkeys(SECTIONS), "run.yaml")) == Config()


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_must_be_a_mapping(section):
    with pytest.raises(UserError, match=rf"^run\.yaml: {section} is 5; give a mapping with keys among"):
        check({section: 5}, "run.yaml")


def test_exact_sentences():
    for tree, sentence in (
        ({"train": {"steps": "abc"}}, "run.yaml: train.steps is 'abc'; give a whole number >= 1 or null"),
        (
            {"train": {"global_batch_pair": 4}},
            "run.yaml: train.global_batch_pair is not a key; did you mean train.global_batch_pairs?",
        ),
        (
            {"data": {"layout": "packed"}},
            "run.yaml: data.layout is 'packed', which is not one of padded; this version knows no other",
        ),
        (
            {"rlhf": {"reference": "x"}},
            "run.yaml: rlhf.reference is 'x', which is not one of record, online, none; this version knows no other",
        ),
        (
            {"lora": {"rank": 8}},
            "run.yaml: lora is {'rank': 8}; LoRA is not in this version, so leave the key out",
        ),
    ):
        with pytest.raises(UserError) as caught:
            check(tree, "run.yaml")
        assert str(caught.value) == sentence


def test_a_list_of_losses_is_kept_as_entries():
    given = ["sigmoid", {"type": "sft", "weight": 1, "beta": "5e-2"}]
    kept = _read("rlhf.loss", given)
    assert kept == ({"type": "sigmoid"}, {"type": "sft", "weight": 1.0, "beta": 0.05})
    assert _read("rlhf.loss", kept) == kept


def test_a_list_of_losses_survives_json():
    config = build(check({"rlhf": {"loss": [{"type": "sigmoid"}, {"type": "sft", "weight": 0.1}]}}, "run.yaml"))
    plain = json.loads(json.dumps(to_dict(config)))
    assert plain == to_dict(config)
    assert build(check(plain, "run.yaml")) == config


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        (["sigmoid", 5], "entry 2 is 5; give a mapping such as {type: sft, weight: 0.1}"),
        ([""], "entry 1 has the type ''; give the name of a loss, such as {type: sft, weight: 0.1}"),
        ([{"weight": 1}], "entry 1 has no type; give the name of a loss, such as {type: sft, weight: 0.1}"),
        ([{"type": 1}], "entry 1 has the type 1; give the name of a loss, such as {type: sft, weight: 0.1}"),
        (["sft", {"type": "ipo", "weight": "x"}], "entry 2 (ipo): weight is 'x'; give a number"),
        ([{"type": "ipo", "beta": None}], "entry 1 (ipo): beta is null; give a number"),
        ([{"type": "ipo", "beta": True}], "entry 1 (ipo): beta is true; give a number"),
        ([{"type": "ipo", 1: 2}], "entry 1 (ipo): 1 is not the name of a parameter; write it as text"),
    ],
)
def test_a_wrong_entry_of_a_list_of_losses_is_named(losses, sentence):
    with pytest.raises(UserError) as caught:
        check({"rlhf": {"loss": losses}}, "run.yaml")
    assert str(caught.value) == f"run.yaml: rlhf.loss, {sentence}"


@pytest.mark.parametrize(
    ("tree", "nearest"),
    [
        ({"sed": 1}, "seed"),
        ({"trian": {"steps": 1}}, "train"),
        ({"optimiser": {"learning_rate": 1}}, "optimizer"),
        ({"rlhf": {"betta": 1}}, "rlhf.beta"),
        ({"train": {"betta": 1}}, "rlhf.beta"),
        ({"train": {"learning_rate": 1}}, "optimizer.learning_rate"),
        ({"learning_rate": 1}, "optimizer.learning_rate"),
        ({"generation": {"topk": 1}}, "generation.top_k"),
        ({"optimizer": {"typ": 1}}, "optimizer.type"),
        ({"lr_schedule": {"typ": 1}}, "lr_schedule.type"),
        ({"data": {"trian": 1}}, "data.train"),
    ],
)
def test_an_unknown_key_names_the_nearest(tree, nearest):
    with pytest.raises(UserError) as caught:
        check(tree, "run.yaml")
    assert str(caught.value).endswith(f" is not a key; did you mean {nearest}?")


@pytest.mark.parametrize("tree", [{"zzz": 1}, {True: 1}, {7: 1}, {"train": {None: 1}}])
def test_any_unknown_key_is_refused(tree):
    with pytest.raises(UserError, match="is not a key; did you mean "):
        check(tree, "run.yaml")


def test_a_long_wrong_value_is_shortened():
    with pytest.raises(UserError) as caught:
        check({"train": {"steps": "x" * 1000}}, "run.yaml")
    assert len(str(caught.value)) < 200
