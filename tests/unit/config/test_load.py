"""Includes, files, flags and overrides: who wins, and what is an override."""

from __future__ import annotations

import pytest

from mindrlhf.config.load import load_config, merge, split_overrides
from mindrlhf.config.schema import Config


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
def test_a_wrong_override_is_named(write, word, sentence, refusal):
    assert refusal(write("run.yaml", ""), [word]) == sentence


def test_broken_yaml_in_an_override_is_named(write, refusal):
    assert refusal(write("run.yaml", ""), ["rlhf.loss=[a"]).startswith("the override rlhf.loss=[a: line 1 is not")


def test_a_wrong_flag_is_named_as_it_was_typed(write, refusal):
    flags = {"data.seq_len": 1}
    typed = refusal(write("run.yaml", ""), (), flags, {"data.seq_len": "--seq_len"})
    assert typed == "--seq_len is 1; give a whole number >= 2"
    assert refusal("run.yaml", (), flags) == "the flag for data.seq_len is 1; give a whole number >= 2"


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
