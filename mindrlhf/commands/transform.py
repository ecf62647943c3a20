"""tools/transform_checkpoint.py: one checkpoint out of those of many ranks."""

from __future__ import annotations

from collections.abc import Sequence

from mindrlhf.commands.flags import Parser, command
from mindrlhf.runtime.errors import UserError


def parser() -> Parser:
    """The command line."""
    flags = command(
        "transform_checkpoint.py",
        "Join the checkpoints that the ranks of one run wrote into one that a single device can load.",
        "The result is DST_CHECKPOINT/checkpoint_network/rank_0/checkpoint_0.<ending of the source>, with "
        "config.json, generation_config.json and the tokenizer's files carried along.",
    )
    source = flags.add_argument_group("source")
    source.add_argument(
        "--src_checkpoint", required=True, metavar="DIR", help="the run's checkpoint_network, which holds rank_0, ..."
    )
    source.add_argument(
        "--src_strategy",
        required=True,
        metavar="DIR",
        help="the run's strategy, which holds ckpt_strategy_rank_0.ckpt, ...",
    )
    target = flags.add_argument_group("destination")
    target.add_argument(
        "--dst_checkpoint", required=True, metavar="DIR", help="the folder to write; created where it does not exist"
    )
    return flags


def main(argv: Sequence[str]) -> int:
    """Run the command; raises `UserError` for a wrong input."""
    options = parser().parse_args(argv)

    from mindrlhf.runtime.logging import quiet, world

    quiet()
    if world() > 1:
        raise UserError("a merge runs in one process; run it without the launcher")
    from mindrlhf.checkpoint.merge import merge

    merged = merge(options.src_checkpoint, options.src_strategy, options.dst_checkpoint)
    print(f"merged {merged.ranks} rank(s): {merged.tensors} tensors, {merged.size / 2**20:.1f} MiB")
    print(f"wrote  {merged.path}")
    print(f"beside {', '.join(merged.carried) or 'no config.json and no tokenizer: the source has none'}")
    return 0
