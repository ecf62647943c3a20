"""What a command line says of words that are wrong."""

from __future__ import annotations

import pytest

from mindrlhf.commands.flags import parse, read_config
from mindrlhf.commands.make_tiny import parser as make_tiny
from mindrlhf.commands.train import parser as run_dpo
from mindrlhf.commands.transform import parser as transform
from mindrlhf.models import families
from mindrlhf.runtime.errors import UserError

FAMILIES = ", ".join(sorted(families()))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--train_datset", "x"], "unrecognized argument --train_datset; did you mean --train_dataset?"),
        (["--train_datset=x"], "unrecognized argument --train_datset; did you mean --train_dataset?"),
        (["--output_dir", "out"], "--output_dir is a key of the yaml; write output_dir=..."),
        (["--train.epochs=2"], "--train.epochs is a key of the yaml; write train.epochs=2"),
        (["--train_dataset", "x", "--fast"], "unrecognized argument --fast; see run_dpo.py --help"),
        (["output_dirr=x"], "the override output_dirr=x: output_dirr is not a key; did you mean output_dir?"),
        (["-1+2=?"], "unrecognized argument -1+2=?; see run_dpo.py --help"),
    ],
)
def test_an_unknown_flag_is_said_with_what_was_meant(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(run_dpo(), words)
    assert str(caught.value).removeprefix("run_dpo.py: ") == sentence


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            [],
            "--src_checkpoint and --dst_checkpoint are missing; see transform_checkpoint.py --help",
        ),
        (
            ["--src_checkpoint", "a", "--src_strategy=b"],
            "--dst_checkpoint is missing; see transform_checkpoint.py --help",
        ),
        (["--src_chekpoint", "a"], "unrecognized argument --src_chekpoint; did you mean --src_checkpoint?"),
        (["--src_strategy", "a", "--src_strategy=b"], "--src_strategy is given 2 times; give it once"),
        (["--src_strategy"], "--src_strategy has no value; give it one"),
    ],
)
def test_what_is_missing_misspelt_or_given_twice_is_said(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        transform().parse_args(words)
    assert str(caught.value) == f"transform_checkpoint.py: {sentence}"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--layers", "x"], "--layers is 'x'; give a whole number"),
        (["--layers", "1.5"], "--layers is '1.5'; give a whole number"),
        (["--family", "lama"], f"--family is 'lama'; did you mean llama? There are {FAMILIES}"),
        (["--family", "gpt (2)"], f"--family is 'gpt (2)'; give one of {FAMILIES}"),
        (["--family", "it's"], f'--family is "it\'s"; give one of {FAMILIES}'),
    ],
)
def test_a_wrong_value_is_said_with_those_that_are_right(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        make_tiny().parse_args([*words, "--output_path", "x"])
    assert str(caught.value) == f"make_tiny_model.py: {sentence}"


@pytest.mark.parametrize(
    ("word", "value"), [("True", True), ("yes", True), ("1", True), ("FALSE", False), ("no", False)]
)
def test_booleans_are_words(word: str, value: bool) -> None:
    assert run_dpo().parse_args(["--resume", word]).resume is value


def test_another_word_is_no_boolean() -> None:
    with pytest.raises(UserError, match=r"^run_dpo\.py: --resume is 'maybe'; give True or False$"):
        run_dpo().parse_args(["--resume", "maybe"])


def test_a_question_may_look_like_a_flag_where_it_has_blanks() -> None:
    words, _ = parse(run_dpo(), ["--predict_data", "--what is this?", "a--b"])
    assert words.predict_data == ["--what is this?", "a--b"]


def test_a_wrong_value_for_a_key_of_the_yaml_names_the_flag() -> None:
    words, overrides = parse(run_dpo(), ["--train_dataset", ""])
    with pytest.raises(UserError, match=r"^--train_dataset is ''; give text"):
        read_config(words, overrides, {"train_dataset": "data.train"})


def test_a_command_without_a_yaml_offers_no_key() -> None:
    given = ["--src_checkpoint=a", "--src_strategy=b", "--dst_checkpoint=c"]
    with pytest.raises(UserError, match=r"unrecognized argument --seed; see transform_checkpoint\.py"):
        transform().parse_args([*given, "--seed"])


def test_known_flags_and_overrides_are_read() -> None:
    words, overrides = parse(run_dpo(), ["--train_dataset", "x", "rlhf.beta=0.2"])
    assert (words.train_dataset, overrides) == ("x", ["rlhf.beta=0.2"])
