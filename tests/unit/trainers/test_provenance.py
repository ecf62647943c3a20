"""What a record says of itself against what a run is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mindrlhf.config.load import load_config
from mindrlhf.config.schema import Config, build
from mindrlhf.runtime.errors import UserError
from mindrlhf.trainers import provenance
from mindrlhf.trainers.registry import LossSettings, loss_settings

SIGMOID, SFT = (loss_settings(load_config(None, [f"rlhf.loss={name}"])) for name in ("sigmoid", "sft"))


@dataclass
class Records:
    """As much of PairRecords as is looked at."""

    path: str = "x.mindrecord"
    has_reference: bool = True
    max_token: int = 9
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass
class Tokenizer:
    """Likewise of a tokenizer."""

    tokenizer_hash: str = "t"
    template_hash: str = "c"
    template_name: str = "its own"
    path: str = "model"


MADE = {"tokenizer_hash": "t", "template_hash": "c", "reference_fingerprint": "f", "template": "qwen"}


def config(**rlhf: str) -> Config:
    return build({"rlhf": rlhf, "model": {"load_checkpoint": "weights"}})


def test_the_same_tokenizer_and_template_pass() -> None:
    provenance.check_record(Records(provenance=MADE), Tokenizer(), SIGMOID, vocabulary=10)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("records", "tokenizer", "loss", "words"),
    [
        (Records(provenance=MADE), Tokenizer(tokenizer_hash="u"), SIGMOID, "another tokenizer"),
        (
            Records(provenance=MADE),
            Tokenizer(template_hash="d"),
            SIGMOID,
            r"another chat template \(qwen\) than that of model \(its own\)",
        ),
        (Records(provenance=MADE, has_reference=False), Tokenizer(), SIGMOID, "holds no reference log-probs"),
        (Records(provenance=MADE, max_token=10), Tokenizer(), SIGMOID, "the token 10, and the model knows 10"),
    ],
)
def test_what_does_not_fit_is_refused(records: Any, tokenizer: Any, loss: LossSettings, words: str) -> None:
    with pytest.raises(UserError, match=words):
        provenance.check_record(records, tokenizer, loss, vocabulary=10)


def test_a_loss_without_reference_needs_none_in_the_record() -> None:
    records: Any = Records(provenance=MADE, has_reference=False)
    provenance.check_record(records, None, SFT, vocabulary=10)


def test_the_reference_is_known_by_its_fingerprint(capsys: pytest.CaptureFixture[str]) -> None:
    records: Any = Records(provenance=MADE)
    assert provenance.check_reference(records, "f", config(), SIGMOID) is True
    with pytest.raises(UserError, match=r"other weights than weights.*other_reference=accept"):
        provenance.check_reference(records, "g", config(), SIGMOID)
    assert provenance.check_reference(records, "g", config(other_reference="accept"), SIGMOID) is False
    # A loss that reads no reference does not mind which one it is.
    assert provenance.check_reference(records, "g", config(), SFT) is False
    capsys.readouterr()
    unknown: Any = Records(provenance={})
    assert provenance.check_reference(unknown, "f", config(), SIGMOID) is False
    assert capsys.readouterr().err.startswith("warning: x.mindrecord does not say")


def test_the_tokenizer_of_a_run_is_the_first_found(
    tmp_path: Path, tiny_folder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    named, model, recorded, empty = tiny_folder("qwen2"), tiny_folder("llama"), tiny_folder("qwen2"), tmp_path
    records: Any = Records(provenance={"tokenizer_path": str(recorded)})
    with_path = build({"tokenizer": {"path": str(named)}})
    assert provenance.find_tokenizer(with_path, model, records).path == named
    assert provenance.find_tokenizer(Config(), model, records).path == model
    assert provenance.find_tokenizer(Config(), empty, records).path == recorded
    gone: Any = Records(provenance={"tokenizer_path": str(tmp_path / "gone")})
    assert provenance.find_tokenizer(Config(), empty, gone) is None
    assert "no tokenizer found" in capsys.readouterr().err
