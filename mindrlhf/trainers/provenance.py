"""What a record says of itself, held against what training is given."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from mindrlhf.config.schema import Config
from mindrlhf.data.records import PairRecords
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.logging import log, warn

if TYPE_CHECKING:
    from mindrlhf.data.tokenizers import ChatTokenizer
    from mindrlhf.trainers.registry import LossSettings


def open_records(path: str | None) -> PairRecords:
    """The records at `path`; UserError where none is named."""
    if not path:
        raise UserError("no records are named; give --train_dataset a MindRecord that tools/dpo_preprocess.py wrote")
    return PairRecords(path)


def find_tokenizer(config: Config, model_folder: Path, records: PairRecords) -> ChatTokenizer | None:
    """The first of: tokenizer.path (--vocab_file), the model's folder, the path in the record; None with a warning."""
    from mindrlhf.data.tokenizers import holds_tokenizer, load_tokenizer

    template = config.tokenizer.chat_template
    if config.tokenizer.path:
        return load_tokenizer(config.tokenizer.path, chat_template=template)
    if holds_tokenizer(model_folder):
        return load_tokenizer(model_folder, chat_template=template)
    place = Path(records.provenance["tokenizer_path"])
    # It need not be there any more, nor complete without the flags it was given with.
    with contextlib.suppress(UserError):
        return load_tokenizer(place, chat_template=template)
    warn("no tokenizer found, so the record's cannot be compared; give --vocab_file")
    return None


def check_record(records: PairRecords, tokenizer: ChatTokenizer | None, loss: LossSettings, vocabulary: int) -> None:
    """UserError where the record was made by another tokenizer or template, or lacks what the loss needs."""
    require_known_token(records.max_token, vocabulary, str(records.path))
    if tokenizer is not None:
        if records.provenance["tokenizer_hash"] != tokenizer.tokenizer_hash:
            raise UserError(
                f"{records.path} was made with another tokenizer than {tokenizer.path}; preprocess again, or give "
                f"--vocab_file the one it was made with"
            )
        if records.provenance["template_hash"] != tokenizer.template_hash:
            raise UserError(
                f"{records.path} was made with another chat template ({records.provenance.get('template', 'unknown')}) "
                f"than that of {tokenizer.path} ({tokenizer.template_name}); preprocess again, or set "
                f"tokenizer.chat_template to the one it was made with"
            )
    if loss.reference == "record" and loss.objective.needs_reference and not records.has_reference:
        raise UserError(
            f"{records.path} holds no reference log-probs, which rlhf.loss={loss.objective.name} needs; preprocess "
            f"again without rlhf.reference=none, or set rlhf.reference=online (and to evaluate alone "
            f"rlhf.reference_checkpoint, what training started from)"
        )


def require_known_token(token: int, vocabulary: int, source: str) -> None:
    """UserError where the model has no embedding for a token, which the device would not tell."""
    if token >= vocabulary:
        raise UserError(
            f"{source} has the token {token}, and the model knows {vocabulary} tokens; "
            f"prepare the data with the tokenizer of this model"
        )


def check_reference(records: PairRecords, fingerprint: str, config: Config, loss: LossSettings) -> bool:
    """Whether the record's reference is known to be the weights training starts from.

    Another one is a UserError unless rlhf.other_reference is accept.
    """
    if loss.reference != "record" or not records.has_reference or not loss.objective.needs_reference:
        return False
    theirs = records.provenance.get("reference_fingerprint")
    if theirs is None:
        warn(f"{records.path} does not say which weights its reference log-probs come from; they are not compared")
        return False
    if theirs == fingerprint:
        return True
    if config.run_mode == "train" and config.rlhf.other_reference == "refuse":
        raise UserError(
            f"the reference log-probs of {records.path} come from other weights than {config.model.load_checkpoint}; "
            f"preprocess again with these, or set rlhf.other_reference=accept if that is meant"
        )
    log(f"the reference of {records.path} is other weights than those loaded; rewards are measured against it")
    return False
