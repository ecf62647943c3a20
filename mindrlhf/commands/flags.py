"""What the command lines share: wrong words said in one sentence, booleans, and key=value words at the end."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NoReturn

from mindrlhf.config import schema
from mindrlhf.config.load import load_config, split_overrides
from mindrlhf.config.schema import Config
from mindrlhf.runtime.errors import UserError

OVERRIDES = "key=value words at the end override the yaml (rlhf.beta=0.2)"
TYPES = {"int": "a whole number", "float": "a number"}


class Help(argparse.HelpFormatter):
    """Says of every flag what it is where it is not given."""

    def __init__(self, prog: str, keys: Mapping[str, str]) -> None:
        super().__init__(prog, max_help_position=28, width=100)
        self.keys = keys

    def _get_help_string(self, action: argparse.Action) -> str:
        said = (action.help or "").replace("%", "%%")
        if action.required:
            return f"{said} (required)"
        if action.dest in self.keys:
            section, _, name = self.keys[action.dest].rpartition(".")
            default = getattr(getattr(Config(), section) if section else Config(), name)
            value = "" if default is None else f", {default}"
            return f"{said} (default: {self.keys[action.dest]} of the yaml{value})"
        unsaid = action.default is None or action.default is argparse.SUPPRESS
        return said if unsaid else f"{said} (default: {action.default})"


class Parser(argparse.ArgumentParser):
    """Says a wrong flag as a `UserError`, in one sentence, without the usage."""

    def format_help(self) -> str:
        """The usage has what must be given, and the groups have the rest."""
        needed = [
            f"{action.option_strings[0]} {action.metavar or '{' + ','.join(action.choices or ()) + '}'}"
            for action in self._actions
            if action.required
        ]
        self.usage = " ".join(
            ["%(prog)s", *needed, "[flags]", *(["[key=value ...]"] if self.epilog == OVERRIDES else [])]
        )
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {self._said(message) or f'{message}; see {self.prog} --help'}")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As argparse's, but no flag may stand twice, and a word that is no flag is said with what was meant."""
        words = list(args or ())
        self._refuse_repeated(words)
        # Before argparse, which of a misspelt flag that is required says that it is missing.
        for word in words:
            if word.startswith("--") and len(word) > 2 and " " not in word and self._flag(word) is None:
                self._refuse_unknown(word)
        found, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self._refuse_unknown(unknown[0])
        return found

    def _flag(self, word: str) -> str | None:
        """The flag that a word of the command line is, if it is one."""
        flag = word.partition("=")[0]
        return flag if flag in self._option_string_actions else None

    def _refuse_unknown(self, word: str) -> NoReturn:
        flag, equals, value = word.partition("=")
        key = flag.lstrip("-")
        if self.epilog == OVERRIDES and split_overrides([f"{key}="])[0]:
            raise UserError(f"{self.prog}: {flag} is a key of the yaml; write {key}={value or '...'}")
        nearest = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        if nearest:
            raise UserError(f"{self.prog}: unrecognized argument {flag}; did you mean {nearest[0]}?")
        if self.epilog == OVERRIDES and equals and key == flag:
            raise schema.unknown_key(key, f"the override {word}")
        self.error(f"unrecognized argument {word}")

    def _refuse_repeated(self, words: Sequence[str]) -> None:
        """argparse would silently keep the last."""
        given = list(map(self._flag, words))
        for flag in filter(None, given):
            if given.count(flag) > 1:
                raise UserError(f"{self.prog}: {flag} is given {given.count(flag)} times; give it once")

    def _said(self, message: str) -> str | None:
        """argparse's sentence in our words, which are the same under every Python; None for one not known here."""
        if found := re.fullmatch(r"the following arguments are required: (.*)", message):
            *others, last = found[1].split(", ")
            flags = f"{', '.join(others)} and {last} are" if others else f"{last} is"
            return f"{flags} missing; see {self.prog} --help"
        found = re.fullmatch(r"argument (\S+): (.*)", message, re.DOTALL)
        if not found:
            return None
        flag, problem = found.groups()
        if re.fullmatch(r"expected (one|at least one) argument", problem):
            return f"{flag} has no value; give it one"
        if wrong := re.fullmatch(r"invalid (int|float) value: (.*)", problem, re.DOTALL):
            return f"{flag} is {wrong[2]}; give {TYPES[wrong[1]]}"
        if wrong := re.match(r"invalid choice: ('(?:.*)'|\"(?:.*)\") \(", problem, re.DOTALL):
            return f"{flag} is {wrong[1]}; {self._offer(flag, wrong[1][1:-1])}"
        return f"{flag} {problem}" if problem.startswith("is ") else None

    def _offer(self, flag: str, word: str) -> str:
        choices = [str(choice) for choice in self._option_string_actions[flag.partition("/")[0]].choices or ()]
        nearest = difflib.get_close_matches(word, choices, n=1)
        known = ", ".join(choices)
        return f"did you mean {nearest[0]}? There are {known}" if nearest else f"give one of {known}"


def boolean(word: str) -> bool:
    """argparse type: True or False as a word, in any case."""
    if word.lower() in ("true", "1", "yes"):
        return True
    if word.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"is '{word}'; give True or False")


def command(
    prog: str, description: str | None, epilog: str | None = None, keys: Mapping[str, str] | None = None
) -> Parser:
    """A parser whose help shows defaults; `keys` as in `read_config`: the default of such a flag is the yaml's."""
    return Parser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=partial(Help, keys=keys or {}),
        allow_abbrev=False,
    )


def parse(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the words that override the yaml."""
    overrides, rest = split_overrides(list(argv))
    return parser.parse_args(rest), overrides


def read_config(words: argparse.Namespace, overrides: Sequence[str], keys: Mapping[str, str]) -> Config:
    """The configuration of a command: --config, then its flags, then its overrides.

    `keys`: a flag, without its dashes, -> the key of the yaml that it sets; errors name the flag.
    """
    given = {key: getattr(words, flag) for flag, key in keys.items()}
    spelled = {key: f"--{flag}" for flag, key in keys.items()}
    return load_config(words.config, overrides, given, spelled)
