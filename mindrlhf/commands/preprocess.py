"""tools/dpo_preprocess.py: a preference file becomes a MindRecord of pairs, on any number of workers; --merge joins."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindrlhf import __version__
from mindrlhf.commands.flags import OVERRIDES, Parser, boolean, command, parse, read_config
from mindrlhf.config.schema import Config
from mindrlhf.data.formats import DATASET_TYPES
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import require_writable
from mindrlhf.runtime.logging import log, quiet, warn, world

if TYPE_CHECKING:
    from mindrlhf.data.data_config import DataConfig
    from mindrlhf.data.encode_rows import Outcome
    from mindrlhf.data.parts import Block, Span
    from mindrlhf.runtime.device import Device
    from mindrlhf.runtime.progress import Progress
    from mindrlhf.trainers.reference import ReferenceScorer

# Batches in a block whose rows are sorted by length, and in a part, where --save_interval does not say.
BLOCK_BATCHES = 64
# In a part whose pairs need no model: these are quick to make again, and writing a part takes a tenth of a second.
LIGHT_PART_BATCHES = 1024
# ms-swift's words for what bad rows do, and the share of them that is no error; None is that of the yaml.
STRATEGIES: dict[str, float | None] = {"none": None, "discard": 1.0, "error": 0.0, "warning": 1.0}
KEYS = {
    "tokenizer": "tokenizer.path",
    "seq_len": "data.seq_len",
    "max_rejected": "data.max_rejected",
    "load_checkpoint": "model.load_checkpoint",
}


def parser() -> Parser:
    """The command line."""
    flags = command("dpo_preprocess.py", __doc__, OVERRIDES, KEYS)
    _add_files(flags)
    data = flags.add_argument_group("data")
    data.add_argument("--dataset_type", choices=sorted(DATASET_TYPES), help="form of the rows of --src without :FORMAT")
    data.add_argument(
        "--map_keys", metavar="FIELD=COLUMN,...", help="names that the files have for fields of the format; or JSON"
    )
    data.add_argument(
        "--tokenizer", metavar="PATH", help="Hugging Face folder, tokenizer.json, tokenizer.model or vocab.json; needed"
    )
    data.add_argument("--merges_file", metavar="FILE", help="merges of a vocab.json; else the merges.txt beside it")
    data.add_argument("--seq_len", metavar="N", type=int, help="most tokens of prompt and response together; needed")
    data.add_argument(
        "--max_rejected", metavar="SHARE", type=float, help="share of bad rows above which the exit code is 2"
    )
    data.add_argument(
        "--check_dataset_strategy",
        choices=STRATEGIES,
        help="discard: drop bad rows, however many; warning: that, and say so; error: end at the first; none: end with "
        "exit code 2 above --max_rejected (default: none)",
    )
    work = flags.add_argument_group("work")
    work.add_argument(
        "--workers", metavar="N", type=int, help="processes that tokenize, of each launched worker; else 1"
    )
    work.add_argument(
        "--save_interval",
        metavar="N",
        type=int,
        help="close a part every N batches; else several launched workers every 64 (1024 without a reference model), "
        "and one writes no parts",
    )
    work.add_argument("--log_interval", metavar="N", type=int, help="say how far it is every N rows")
    reference = flags.add_argument_group("reference log-probs")
    reference.add_argument("--load_checkpoint", metavar="PATH", help="weights of the reference")
    reference.add_argument(
        "--auto_trans_ckpt",
        type=boolean,
        metavar="True|False",
        help="accepted and of no effect: any checkpoint is laid out as needed",
    )
    return flags


def _add_files(flags: Parser) -> None:
    files = flags.add_argument_group("files")
    files.add_argument(
        "--src",
        metavar="WORD",
        nargs="+",
        help="preference files, each PATH_OR_GLOB[:FORMAT][#COUNT][@WEIGHT] or NAME:SUBSET of a known set; with "
        "--merge the folder of parts; needed",
    )
    files.add_argument(
        "--dst", metavar="FILE", help="MindRecord X.mindrecord to write; parts go to the folder X.parts; needed"
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
    files.add_argument("--data_config", metavar="FILE", help="yaml of the data set in MindSpeed-RL's words; flags win")


def main(argv: Sequence[str]) -> int:
    """Run the command; 0, or UserError."""
    quiet()
    words, overrides = parse(parser(), argv)
    if words.data_config:
        from mindrlhf.data.data_config import read_data_config

        overrides = _take_over(words, read_data_config(words.data_config), overrides)
    config = read_config(words, overrides, KEYS)
    _need(words, config)
    if words.merge:
        from mindrlhf.data.merge import merge

        merge(words.src[0], words.dst, log=log, **_tolerance(words, config))
        return 0
    from mindrlhf.trainers.setup import setup_device

    Preprocessing(words, config, setup_device(config)).run()
    return 0


def _take_over(words: argparse.Namespace, said: DataConfig, overrides: list[str]) -> list[str]:
    """Give the flags that are not there the values of --data_config; the overrides, with its chat template first."""
    for name in ("src", "dst", "dataset_type", "tokenizer", "merges_file", "seq_len", "workers", "log_interval"):
        if getattr(words, name) is None:
            value = getattr(said, name)
            setattr(words, name, list(value) or None if name == "src" else value)
    words.map_keys = words.map_keys or said.map_keys
    return [f"tokenizer.chat_template={said.chat_template}", *overrides] if said.chat_template else overrides


def _need(words: argparse.Namespace, config: Config) -> None:
    """UserError for what is missing or cannot be, before anything is loaded."""
    if not words.src:
        raise UserError("--src is missing; give preference files, or with --merge the folder of parts")
    if not words.dst:
        raise UserError("--dst is missing; give the MindRecord to write")
    from mindrlhf.data.sidecar import check_destination

    check_destination(words.dst)
    if not words.dst.endswith(".mindrecord"):
        raise UserError(f"--dst is {words.dst}; a MindRecord's name ends in .mindrecord")
    strategy = words.check_dataset_strategy or "none"
    if strategy != "none" and words.max_rejected is not None:
        raise UserError(f"--max_rejected and --check_dataset_strategy {strategy} contradict each other; give one")
    if words.merge:
        if world() > 1:
            raise UserError("--merge joins the parts in one process; run it without the launcher")
        if len(words.src) > 1:
            raise UserError(f"--merge joins the parts of one folder, and --src names {len(words.src)}; give one")
    else:
        _need_to_tokenize(words, config)


def _need_to_tokenize(words: argparse.Namespace, config: Config) -> None:
    if config.tokenizer.path is None:
        raise UserError(
            "no tokenizer is named; give --tokenizer a Hugging Face folder, or its tokenizer.json, tokenizer.model or "
            "vocab.json"
        )
    if config.data.seq_len is None:
        raise UserError("--seq_len is missing; give the most tokens of prompt and response together")
    for name, unit in (("workers", "processes"), ("save_interval", "batches"), ("log_interval", "rows")):
        value = getattr(words, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; give a whole number of {unit}, 1 or more")
    if config.rlhf.reference == "record" and not config.rlhf.reference_free and not config.model.load_checkpoint:
        raise UserError(
            "no weights are named for the reference log-probs; give --load_checkpoint, or set rlhf.reference=none"
        )
    from mindrlhf.data.source_words import read_words

    read_words(words.src, words.dataset_type)
    if not Path(config.tokenizer.path).exists():
        raise UserError(f"the tokenizer {config.tokenizer.path} does not exist; give --tokenizer one that does")


def _tolerance(words: argparse.Namespace, config: Config) -> dict[str, Any]:
    """What `judge` is to do about bad rows."""
    strategy = words.check_dataset_strategy or "none"
    share = STRATEGIES[strategy]
    return {
        "max_rejected": config.data.max_rejected if share is None else share,
        "warn": warn if strategy == "warning" else None,
    }


class Preprocessing:
    """One worker's share: the rank-th contiguous slice of the rows, read, encoded and scored in blocks.

    rows of the source -> ids, by several processes -> blocks of pairs -> reference log-probs -> parts, or one record
    """

    def __init__(self, words: argparse.Namespace, config: Config, device: Device) -> None:
        from mindrlhf.data.encode_rows import RowEncoder
        from mindrlhf.data.map_keys import read_map_keys
        from mindrlhf.data.sources import Source

        self.words, self.config, self.device = words, config, device
        given = words.map_keys
        map_keys = read_map_keys(given) if isinstance(given, str) else given
        self.source = Source(words.src, words.dataset_type, map_keys)
        assert config.tokenizer.path is not None
        self.encoder = RowEncoder(
            self.source,
            config.tokenizer.path,
            words.merges_file,
            config.tokenizer.chat_template,
            config.data.seq_len or 0,
            config.data.overlong,
        )
        self.tokenizer = self.encoder.tokenizer
        self.scorer = self._scorer()
        self.rejected = 0

    def _scorer(self) -> ReferenceScorer | None:
        rlhf = self.config.rlhf
        if rlhf.reference != "record" or rlhf.reference_free:
            return None
        from mindrlhf.trainers.policy import find_source
        from mindrlhf.trainers.reference import ReferenceScorer

        return ReferenceScorer(self.config, self.device, find_source(self.config), self.encoder.seq_len)

    def _provenance(self) -> dict[str, Any]:
        return {
            "version": __version__,
            "dataset_sha256": self.source.sha256,
            "dataset_files": [Path(file).name for file in self.source.files],
            "tokenizer_path": str(Path(self.tokenizer.path).resolve()),
            "tokenizer_hash": self.tokenizer.tokenizer_hash,
            "template": self.tokenizer.template_name,
            "template_hash": self.tokenizer.template_hash,
            "seq_len": self.encoder.seq_len,
            "overlong": self.encoder.overlong,
            # A record without serves a run with a reference online as well as one without.
            "reference": "record" if self.scorer else "none",
            **(self.scorer.provenance if self.scorer else {}),
        }

    def run(self) -> None:
        """Write the parts of this worker, or the whole record where there is one worker and no --save_interval."""
        require_writable(Path(self.words.dst).parent)
        if self.device.world > 1 or self.words.save_interval is not None:
            self._write_parts()
        else:
            self._write_record()

    def _write_parts(self) -> None:
        import numpy as np

        from mindrlhf.data.parts import Parts
        from mindrlhf.runtime.progress import Progress

        device = self.device
        parts = Parts(self.words.dst, device.rank, device.world, self.source.total, self._provenance())
        # Nobody clears before all have looked.
        kept, rows = device.all_sum(np.array([len(parts.kept), parts.kept_rows], np.float64)).astype(int).tolist()
        parts.clear()
        if parts.replaced:
            log(f"{parts.folder} holds parts of another run ({parts.replaced}); they are replaced")
        if kept:
            log(f"continuing: {rows} of {parts.total} rows are done and kept, in {kept} parts")
        progress = Progress("preprocess", parts.stop - parts.start, parts.kept_rows, unit="row")
        for span in parts.missing():
            for block in self._blocks(span, progress, self._part_batches()):
                parts.add(block)
        progress.close()
        device.leave()
        log(f"parts: {parts.folder}; join them with --merge True --src {parts.folder} --dst {self.words.dst}")

    def _write_record(self) -> None:
        from mindrlhf.data import merge
        from mindrlhf.data.records import clear_temporary, write_records
        from mindrlhf.data.rejected import RejectedLines, rejected_file
        from mindrlhf.data.spool import Spool
        from mindrlhf.runtime.progress import Progress

        dst, total = Path(self.words.dst), self.source.total
        clear_temporary(dst)
        spool, lines = Spool(dst.parent), RejectedLines(rejected_file(dst))
        overlong, rejected = 0, Counter[str]()
        progress = Progress("preprocess", total, unit="row")
        try:
            for block in self._blocks((0, total), progress, BLOCK_BATCHES):
                spool.add(block.pairs)
                lines.add(block.lines)
                overlong += block.overlong
                rejected += block.reasons
            progress.close()
        except BaseException:
            lines.discard()
            raise
        bad = lines.finish()
        counts = (total, spool.sizes.pairs, overlong, rejected)
        merge.require_written(*counts, bad)
        write_records(
            dst,
            spool,
            sizes=spool.sizes,
            provenance=self._provenance(),
            span=(0, total),
            total=total,
            overlong=overlong,
            rejected=rejected,
        )
        log(f"{dst}: {merge.accounting(*counts)}")
        merge.judge(rejected=rejected, total=total, rejected_file=bad, **_tolerance(self.words, self.config))

    def _blocks(self, span: Span, progress: Any, batches: int) -> Iterator[Block]:
        """What becomes of the rows of a span, reference log-probs included."""
        from mindrlhf.data.encode_rows import encode_rows
        from mindrlhf.data.parts import blocks
        from mindrlhf.trainers.reference import PAIRS_PER_BATCH

        made = encode_rows(self.encoder, self.source.raw(*span), self.words.workers or 1)
        outcomes = _told(made, span[0], self.words.log_interval, progress) if self.words.log_interval else made
        for block in blocks(outcomes, span[0], PAIRS_PER_BATCH * batches):
            if self.scorer:
                block.pairs = self.scorer.score(block.pairs)
            self.rejected += len(block.rejected)
            if block.rejected and self.words.check_dataset_strategy == "error":
                bad = block.rejected[0]
                file = bad.file or self.source.files[0]
                raise UserError(f"{file} line {bad.line}: {bad.sentence}; mend it, or take it out")
            progress.advance(f"{self.rejected} rejected", block.stop - block.start)
            yield block

    def _part_batches(self) -> int:
        return self.words.save_interval or (BLOCK_BATCHES if self.scorer else LIGHT_PART_BATCHES)


def _told(outcomes: Iterator[Outcome], start: int, every: int, progress: Progress) -> Iterator[Outcome]:
    """The same, with a line every `every` rows."""
    for row, outcome in enumerate(outcomes, start + 1):
        if row % every == 0:
            progress.say(f"row {row}")
        yield outcome
