"""tools/transform_checkpoint.py: a checkpoint of one parallel layout into that of another, or into a single one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindrlhf.commands.flags import Parser, command
from mindrlhf.runtime.errors import IncompleteCheckpoint, UserError, some

if TYPE_CHECKING:
    from mindrlhf.checkpoint.rank_slices import RankSlices
    from mindrlhf.models import ModelFamily
    from mindrlhf.models.hf_weights import Group

FORMATS = ("safetensors", "ckpt", "hf")
ADAPTER = "lora"  # in the names of tensors that a config.json does not know


def parser() -> Parser:
    """The command line."""
    flags = command(
        "transform_checkpoint.py",
        "Join the checkpoints that the ranks of one run wrote into one that a single device can load, or cut them for "
        "the ranks of another layout.",
        "The result is DST_CHECKPOINT/checkpoint_network/rank_K/checkpoint_0.<ending>, with config.json, "
        "generation_config.json and the tokenizer's files carried along, the new layout's strategy beside it in "
        "DST_CHECKPOINT/strategy, and tensors.json, which has the sha256 of every whole tensor. With --format hf "
        "DST_CHECKPOINT is a Hugging Face folder. What was written is read back and compared.",
    )
    source = flags.add_argument_group("source")
    source.add_argument(
        "--src_checkpoint",
        required=True,
        metavar="PATH",
        help="the run's checkpoint_network, which holds rank_0, ...; or a whole checkpoint to be cut",
    )
    source.add_argument(
        "--src_strategy",
        metavar="DIR",
        help="the run's strategy, which holds ckpt_strategy_rank_0.ckpt, ...; the one beside the checkpoint_network "
        "where not given, and none for a whole checkpoint",
    )
    target = flags.add_argument_group("destination")
    target.add_argument(
        "--dst_checkpoint", required=True, metavar="DIR", help="the folder to write; created where it does not exist"
    )
    target.add_argument(
        "--dst_strategy",
        metavar="DIR",
        help="the strategy of the layout to write, as --only_save_strategy True leaves it; one rank holds everything "
        "where not given",
    )
    target.add_argument("--format", choices=FORMATS, help="of what is written; the source's where not given")
    target.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="that move tensors; as many as cores and memory suggest where not given",
    )
    return flags


def main(argv: Sequence[str]) -> int:
    """Run the command; raises `UserError` for a wrong input."""
    options = parser().parse_args(argv)

    from mindrlhf.runtime.logging import quiet, world

    quiet()
    if world() > 1:
        raise UserError("a merge runs in one process; run it without the launcher")
    if options.processes is not None and options.processes < 1:
        raise UserError(f"transform_checkpoint.py: --processes is {options.processes}; give 1 or more")
    if options.format == "hf":
        if options.dst_strategy:
            raise UserError("transform_checkpoint.py: --format hf writes whole tensors; leave --dst_strategy out")
        said = _hugging_face(options)
    else:
        said = _transform(options)
    print("\n".join(said))
    return 0


def _transform(options: argparse.Namespace) -> list[str]:
    """Into a file for each rank; what is to be said."""
    from mindrlhf.checkpoint.merge import transform

    done = transform(
        options.src_checkpoint,
        options.dst_checkpoint,
        src_strategy=options.src_strategy,
        dst_strategy=options.dst_strategy,
        kind=options.format,
        processes=options.processes,
        check=require_model,
    )
    size = f"{done.tensors} tensors, {done.size / 2**20:.1f} MiB"
    if done.targets == 1:
        first = f"merged {done.sources} rank(s): {size}"
    else:
        first = f"cut for {done.targets} ranks out of {done.sources}: {size}"
    folder = f" and {done.targets - 1} more in {done.path.parent.parent}" if done.targets > 1 else ""
    return [first, f"wrote  {done.path}{folder}", _beside(done.carried)]


def _beside(carried: Sequence[str]) -> str:
    return f"beside {', '.join(carried) or 'no config.json and no tokenizer: the source has none'}"


def _hugging_face(options: argparse.Namespace) -> list[str]:
    """Into a Hugging Face folder; what is to be said."""
    from mindrlhf.checkpoint.find import find_weights
    from mindrlhf.checkpoint.merge import table_of
    from mindrlhf.checkpoint.rank_manifest import digest
    from mindrlhf.checkpoint.scan_all import require_own_slices, scan_all
    from mindrlhf.checkpoint.sources import open_source, source_weights
    from mindrlhf.checkpoint.store import TENSORS
    from mindrlhf.commands.convert import convert
    from mindrlhf.runtime.files import write_json

    weights = source_weights(options.src_checkpoint, options.src_strategy)
    source, beside = open_source(options.src_checkpoint, options.src_strategy)
    if not (beside / "config.json").is_file():
        raise UserError(f"{beside / 'config.json'} does not exist, by which --format hf knows the model; copy it there")
    require_model(source, beside)
    require_own_slices(source, scan_all(source, (), options.processes, "verify"))
    sha256: dict[str, str] = {}
    done = convert(
        weights, options.dst_checkpoint, reverse=True, wrote=lambda name, array: sha256.update({name: digest(array)})
    )
    written, _ = open_source(find_weights(done.path).folder)
    found = {scanned.name: scanned.sha256 for scanned in scan_all(written, (), options.processes, "read back")}
    wrong = sorted(name for name in sha256.keys() | found.keys() if sha256.get(name) != found.get(name))
    if wrong:
        raise IncompleteCheckpoint(f"{done.path} reads back otherwise than written: {some(wrong)}; is the disk sound?")
    write_json(done.path / TENSORS, table_of(written.table, sha256))
    ranks = len(source.files) if source.strategy.source != beside else 1
    return [
        f"merged {ranks} rank(s): {done.tensors} tensors of {done.family}, {done.size / 2**20:.1f} MiB of {done.dtype}",
        f"wrote  {done.path}",
        _beside(done.carried),
    ]


def require_model(source: RankSlices, beside: Path) -> None:
    """Raise `IncompleteCheckpoint` where tensors that the config.json beside the source asks for are missing or of
    another shape; warn of others. Parts of an adapter and an optimizer's states are not its business."""
    from mindrlhf.commands.conversion import in_ms
    from mindrlhf.models.hf_weights import are_ms
    from mindrlhf.runtime.errors import misfits
    from mindrlhf.runtime.logging import warn

    found = _model_beside(beside)
    states = source.strategy.states
    shapes = {n: spec.shape for n, spec in source.table.items() if ADAPTER not in n.lower() and n not in states}
    if not found or not shapes:
        return
    family, hf_config = found
    groups: Sequence[Group] = list(family.tensors(hf_config))
    theirs = not are_ms(groups, shapes)
    expected = {name: shape for group in (groups if theirs else in_ms(groups)) for name, shape in group.hf.items()}
    wrong = misfits(expected, {name: shape for name, shape in shapes.items() if name in expected}, "tensors")
    if wrong:
        raise IncompleteCheckpoint(f"{source.path} does not fit {beside / 'config.json'}: {'; '.join(wrong)}")
    foreign = [name for name in shapes if name not in expected and not (theirs and family.ignored(name, hf_config))]
    if foreign:
        warn(f"{beside / 'config.json'} knows nothing of {len(foreign)} tensors, which are kept: {some(foreign)}")


def _model_beside(folder: Path) -> tuple[ModelFamily, Mapping[str, Any]] | None:
    """The family and the config of the model whose config.json lies there, None where it is none that we know."""
    from mindrlhf.models import family_of
    from mindrlhf.trainers.architecture import read_json_object

    file = folder / "config.json"
    hf_config = read_json_object(file)
    if not hf_config:
        return None
    try:
        return family_of(hf_config, str(file)), hf_config
    except UserError:
        return None
