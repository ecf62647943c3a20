"""make_preference_data: write a synthetic preference set in CValues form, Chinese and English mixed.

corpus.jsonl warms a model up (loss sft on pos_resp, which is polite in half of its rows and rude in the others),
train.jsonl and held_out.jsonl prefer the polite answer. No prompt of one file is in another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mindrlhf.commands.flags import Parser, command
from mindrlhf.data.synthetic import preference_rows
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import write_text


def parser() -> Parser:
    """The command line."""
    flags = command("make_preference_data.py", __doc__)
    output = flags.add_argument_group("output")
    output.add_argument(
        "--output_path", metavar="DIR", type=Path, required=True, help="folder to write the three files to"
    )
    rows = flags.add_argument_group("rows")
    rows.add_argument("--pairs", metavar="N", type=int, default=480, help="rows of train.jsonl")
    rows.add_argument("--held_out", metavar="N", type=int, default=64, help="rows of held_out.jsonl")
    rows.add_argument("--corpus", metavar="N", type=int, default=1500, help="rows of corpus.jsonl")
    rows.add_argument("--seed", metavar="N", type=int, default=0, help="another seed, other rows")
    return flags


def main(argv: Sequence[str]) -> int:
    """Parse the command line and write the three files."""
    arguments = parser().parse_args(argv)
    counts = {"corpus": arguments.corpus, "train": arguments.pairs, "held_out": arguments.held_out}
    if arguments.output_path.exists() and not arguments.output_path.is_dir():
        raise UserError(f"--output_path {arguments.output_path} is a file: name a folder")
    for split, count in counts.items():
        if count < 1:
            raise UserError(f"{split}.jsonl would have {count} rows: give a number of 1 or more")
    for split, count in counts.items():
        rows = preference_rows(count, arguments.seed, split)
        path = arguments.output_path / f"{split}.jsonl"
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        print(f"{path}: {count} rows")
    return 0
