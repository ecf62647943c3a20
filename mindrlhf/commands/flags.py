"""What the command lines share: booleans, and key=value words at the end."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import NoReturn

from mindrlhf.config.load import split_overrides
from mindrlhf.runtime.errors import UserError

OVERRIDES = "key=value words at the end override the yaml (rlhf.beta=0.2)"


class Parser(argparse.ArgumentParser):
    """Says a wrong flag as a `UserError`, in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As argparse's, but a word that is no flag is said with what was meant."""
        found, unknown = self.parse_known_args(args, namespace)
        if not unknown:
            return found
        flag, _, value = unknown[0].partition("=")
        key = flag.lstrip("-")
        if self.epilog == OVERRIDES and split_overrides([f"{key}="])[0]:
            raise UserError(f"{self.prog}: {flag} is a key of the yaml; write {key}={value or '...'}")
        nearest = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        if nearest:
            raise UserError(f"{self.prog}: unrecognized argument {flag}; did you mean {nearest[0]}?")
        self.error(f"unrecognized argument {unknown[0]}")


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
