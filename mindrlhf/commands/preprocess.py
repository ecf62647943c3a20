"""tools/dpo_preprocess.py: a preference file becomes a MindRecord of pairs, on any number of workers; --merge joins."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindrlhf import __version__
from mindrlhf.commands.flags import OVERRIDES, Parser, boolean, command, parse, read_config
from mindrlhf.config.schema import Config
from mindrlhf.data.formats import DATASET_TYPES
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import require_writable
from mindrlhf.runtime.logging import log, quiet, world

if TYPE_CHECKING:
    from mindrlhf.data.formats import Rejected
    from mindrlhf.data.records import Pair
    from mindrlhf.runtime.device import Device
    from mindrlhf.trainers.reference import ReferenceScorer

# Batches in a block whose rows are sorted by length, where --save_interval does not say.
BLOCK_BATCHES = 64
KEYS = {
    "tokenizer": "tokenizer.path",
    "seq_len": "data.seq_len",
    "max_rejected": "data.max_rejected",
    "load_checkpoint": "model.load_checkpoint",
}


def parser() -> Parser:
    """The command line."""
    flags = command("dpo_preprocess.py", __doc__, OVERRIDES, KEYS)
    files = flags.add_argument_group("files")
    files.add_argument(
        "--src",
        metavar="PATH",
        required=True,
        help="preference file (.jsonl or .json); with --merge the folder of parts",
    )
    files.add_argument(
        "--dst",
        metavar="FILE",
        required=True,
        help="MindRecord X.mindrecord to write; parts go to the folder X.parts beside it",
    )
    files.add_argument(
        "--merge",
        type=boolean,
        nargs="?",
        const=True,
        default=False,
        metavar="True|False",
        help="join the parts in --src into --dst and do no more",
    )
    files.add_argument("--config", metavar="FILE", help="yaml of the run; without it all keys have their defaults")
    data = flags.add_argument_group("data")
    data.add_argument("--dataset_type", choices=sorted(DATASET_TYPES), help="form of the rows; needed")
    data.add_argument("--tokenizer", metavar="PATH", help="Hugging Face folder, tokenizer.json or vocab.json; needed")
    data.add_argument("--merges_file", metavar="FILE", help="merges of a vocab.json; else the merges.txt beside it")
    data.add_argument("--seq_len", metavar="N", type=int, help="most tokens of prompt and response together; needed")
    data.add_argument(
        "--max_rejected", metavar="SHARE", type=float, help="share of bad rows above which the exit code is 2"
    )
    data.add_argument(
        "--save_interval",
        metavar="N",
        type=int,
        help="close a part every N batches; else several workers every 64, and one worker writes no parts",
    )
    reference = flags.add_argument_group("reference log-probs")
    reference.add_argument("--load_checkpoint", metavar="PATH", help="weights of the reference")
    reference.add_argument(
        "--auto_trans_ckpt",
        type=boolean,
        metavar="True|False",
        help="accepted and of no effect: any checkpoint is laid out as needed",
    )
    return flags


def main(argv: Sequence[str]) -> int:
    """Run the command; 0, or UserError."""
    quiet()
    words, overrides = parse(parser(), argv)
    config = read_config(words, overrides, KEYS)
    if words.merge:
        from mindrlhf.data.merge import merge

        if world() > 1:
            raise UserError("--merge joins the parts in one process; run it without the launcher")

        merge(words.src, words.dst, max_rejected=config.data.max_rejected, log=log)
        return 0
    _need(words, config)
    from mindrlhf.trainers.setup import setup_device

    Preprocessing(words, config, setup_device(config, one_model_each=True)).run()
    return 0


def _need(words: argparse.Namespace, config: Config) -> None:
    if words.dataset_type is None:
        raise UserError(f"--dataset_type is missing; give one of {', '.join(sorted(DATASET_TYPES))}")
    if config.tokenizer.path is None:
        raise UserError(
            "no tokenizer is named; give --tokenizer a Hugging Face folder, a tokenizer.json or a vocab.json"
        )
    if config.data.seq_len is None:
        raise UserError("--seq_len is missing; give the most tokens of prompt and response together")
    if config.data.seq_len < 2:
        raise UserError(f"--seq_len is {config.data.seq_len}; a prompt and a response need 2 tokens at least")
    if words.save_interval is not None and words.save_interval < 1:
        raise UserError(f"--save_interval is {words.save_interval}; give a whole number of batches, 1 or more")
    from mindrlhf.data.sidecar import check_destination

    check_destination(words.dst)
    if not words.dst.endswith(".mindrecord"):
        raise UserError(f"--dst is {words.dst}; a MindRecord's name ends in .mindrecord")


@dataclass
class Tally:
    """What became of the rows of a part: pairs to write, how many were too long, what was rejected."""

    pairs: list[Pair] = field(default_factory=list)
    overlong: int = 0
    rejected: Counter[str] = field(default_factory=Counter)


class Preprocessing:
    """One worker's share: the rank-th contiguous slice of the rows, read, encoded and scored in blocks."""

    def __init__(self, words: argparse.Namespace, config: Config, device: Device) -> None:
        from mindrlhf.data.formats import count_rows
        from mindrlhf.data.tokenizers import load_tokenizer

        self.words, self.config, self.device = words, config, device
        require_writable(Path(words.dst).parent)
        self.seq_len: int = config.data.seq_len or 0
        assert config.tokenizer.path is not None
        self.tokenizer = load_tokenizer(config.tokenizer.path, words.merges_file)
        self.total = count_rows(words.src)
        share = [self.total * rank // device.world for rank in (device.rank, device.rank + 1)]
        self.start, self.stop = share
        self.rejected: list[Rejected] = []
        self.scorer = self._scorer()
        self.provenance = self._provenance()

    def _scorer(self) -> ReferenceScorer | None:
        if self.config.rlhf.reference == "none":
            return None
        from mindrlhf.trainers.policy import find_source
        from mindrlhf.trainers.reference import ReferenceScorer

        return ReferenceScorer(self.config, self.device, find_source(self.config), self.seq_len)

    def _provenance(self) -> dict[str, Any]:
        from mindrlhf.runtime.files import sha256_file

        return {
            "version": __version__,
            "dataset_sha256": sha256_file(self.words.src),
            "dataset_type": self.words.dataset_type,
            "tokenizer_path": str(Path(self.tokenizer.path).resolve()),
            "tokenizer_hash": self.tokenizer.tokenizer_hash,
            "template_hash": self.tokenizer.template_hash,
            "seq_len": self.seq_len,
            "overlong": self.config.data.overlong,
            "reference": self.config.rlhf.reference,
            **(self.scorer.provenance if self.scorer else {}),
        }

    def run(self) -> None:
        """Write the parts of this worker, or the whole file where there is one worker and no --save_interval."""
        from mindrlhf.data import records
        from mindrlhf.runtime.progress import Progress

        whole = self.device.world == 1 and self.words.save_interval is None
        if not whole:
            records.clear_parts(self.words.dst, self.device.rank, self.device.world)
        progress = Progress("preprocess", self.stop - self.start, unit="row")
        every = self._block_pairs()
        tally, begin, part = Tally(), self.start, 0
        for stop, block in self._blocks(every, progress):
            tally.pairs += self.scorer.score(block.pairs) if self.scorer else block.pairs
            tally.overlong += block.overlong
            tally.rejected += block.rejected
            if not whole:
                self._write(records.part_path(self.words.dst, self.device.rank, part), tally, (begin, stop))
                tally, begin, part = Tally(), stop, part + 1
        progress.close()
        self._finish(whole, tally)

    def _block_pairs(self) -> int:
        from mindrlhf.trainers.reference import PAIRS_PER_BATCH

        return PAIRS_PER_BATCH * (self.words.save_interval or BLOCK_BATCHES)

    def _blocks(self, pairs_per_block: int, progress: Any) -> Iterator[tuple[int, Tally]]:
        """(row behind the last, what became of its rows); blocks have `pairs_per_block` pairs, the last fewer."""
        from mindrlhf.data.formats import Rejected, read_rows

        block, row = Tally(), self.start
        for row, preference in enumerate(
            read_rows(self.words.src, self.words.dataset_type, self.start, self.stop), start=self.start
        ):
            outcome = preference if isinstance(preference, Rejected) else self._encode(row, preference)
            if isinstance(outcome, Rejected):
                self.rejected.append(outcome)
                block.rejected[outcome.reason] += 1
            elif outcome is None:
                block.overlong += 1
            else:
                block.pairs.append(outcome)
            progress.advance(f"{len(self.rejected)} rejected")
            if len(block.pairs) == pairs_per_block:
                yield row + 1, block
                block = Tally()
        if block.pairs or block.overlong or block.rejected:
            yield self.stop, block

    def _encode(self, row: int, preference: Any) -> Any:
        """Pair, None where it is overlong, or Rejected."""
        from mindrlhf.data.formats import Rejected
        from mindrlhf.data.preference import encode_pair, fit
        from mindrlhf.data.records import Pair
        from mindrlhf.data.templates import TemplateError

        try:
            encoded = fit(encode_pair(self.tokenizer, preference), self.seq_len, self.config.data.overlong)
        except TemplateError as error:
            return Rejected(preference.line, error.reason, error.sentence, preference.raw)
        return encoded and Pair(row, encoded.prompt_ids, encoded.chosen_ids, encoded.rejected_ids)

    def _write(self, path: Path, tally: Tally, rows: tuple[int, int]) -> None:
        from mindrlhf.data.records import write_records

        write_records(
            path,
            tally.pairs,
            provenance=self.provenance,
            span=rows,
            total=self.total,
            overlong=tally.overlong,
            rejected=dict(tally.rejected),
        )

    def _finish(self, whole: bool, tally: Tally) -> None:
        from mindrlhf.data import merge, records

        folder = records.part_folder(self.words.dst)
        file = merge.rejected_file(self.words.dst) if whole else folder / merge.worker_rejected(self.device.rank)
        lines = merge.write_rejected(file, self.rejected)
        if not whole:
            self.device.leave()
            log(f"parts: {folder}; join them with --merge True --src {folder} --dst {self.words.dst}")
            return
        counts = (self.total, len(tally.pairs), tally.overlong, tally.rejected)
        merge.require_written(*counts, lines)
        self._write(Path(self.words.dst), tally, (0, self.total))
        log(f"{self.words.dst}: {merge.accounting(*counts)}")
        limit = self.config.data.max_rejected
        merge.judge(rejected=tally.rejected, total=self.total, max_rejected=limit, rejected_file=lines)
