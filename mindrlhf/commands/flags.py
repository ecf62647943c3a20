"""What the command lines share: booleans, and key=value words at the end."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from mindrlhf.config.load import split_overrides
from mindrlhf.runtime.errors import UserError

OVERRIDES = "key=value words at the end override the yaml (rlhf.beta=0.2)"


class Parser(argparse.ArgumentParser):
    """Says a wrong flag as a `UserError`, in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def boolean(word: str) -> bool:
    """argparse type: True or False as a word, in any case."""
    if word.lower() in ("true", "1", "yes"):
        return True
    if word.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"'{word}' is not True or False")


def command(prog: str, description: str | None, epilog: str | None = None) -> Parser:
    """A parser whose help shows defaults."""
    return Parser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )


def parse(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the words that override the yaml."""
    overrides, rest = split_overrides(list(argv))
    return parser.parse_args(rest), overrides
