"""What a command line says of a word that is no flag."""

from __future__ import annotations

import pytest

from mindrlhf.commands.flags import parse
from mindrlhf.commands.train import parser as run_dpo
from mindrlhf.commands.transform import parser as transform
from mindrlhf.runtime.errors import UserError


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--train_datset", "x"], "unrecognized argument --train_datset; did you mean --train_dataset?"),
        (["--train_datset=x"], "unrecognized argument --train_datset; did you mean --train_dataset?"),
        (["--output_dir", "out"], "--output_dir is a key of the yaml; write output_dir=..."),
        (["--train.epochs=2"], "--train.epochs is a key of the yaml; write train.epochs=2"),
        (["-1+2=?"], "unrecognized argument -1+2=?; see run_dpo.py --help"),
    ],
)
def test_an_unknown_flag_is_said_with_what_was_meant(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(run_dpo(), words)
    assert str(caught.value) == f"run_dpo.py: {sentence}"


def test_a_command_without_a_yaml_offers_no_key() -> None:
    given = ["--src_checkpoint=a", "--src_strategy=b", "--dst_checkpoint=c"]
    with pytest.raises(UserError, match=r"unrecognized argument --seed; see transform_checkpoint\.py"):
        transform().parse_args([*given, "--seed"])


def test_known_flags_and_overrides_are_read() -> None:
    words, overrides = parse(run_dpo(), ["--train_dataset", "x", "rlhf.beta=0.2"])
    assert (words.train_dataset, overrides) == ("x", ["rlhf.beta=0.2"])
