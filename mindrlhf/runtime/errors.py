"""What a user's mistake becomes: one sentence, exit code 2, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Callable

from mindrlhf.runtime.interrupts import heed_interrupts

NAMED = 10  # names that a message lists
Shapes = Mapping[str, tuple[int, ...]]
INTERRUPTED = 130  # as the shell says of Ctrl-C
# Absent where an environment was not activated.
PACKAGES = (
    *("mindspore", "mindformers", "safetensors", "transformers", "tokenizers", "sentencepiece"),
    *("numpy", "tqdm", "matplotlib"),
)


class UserError(Exception):
    """A mistake the user can mend. The message is one sentence that names the file, line or key and what to do."""

    exit_code = 2


class BadRecord(UserError):
    """A MindRecord or its sidecar is missing, damaged, or of another run."""


class CorruptCheckpoint(UserError):
    """A checkpoint file does not verify."""


class IncompleteCheckpoint(UserError):
    """A checkpoint lacks tensors, has foreign ones, or some of another shape."""


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Call `main(argv)` as a command: its exit code; what the user can mend is said in one line on stderr.

    argv: the words; None where this process is the command, which then also takes charge of Ctrl-C.
    """
    if argv is None:
        heed_interrupts()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return main(words) or 0
    except UserError as error:
        return _say(str(error), error.exit_code)
    except OSError as error:
        # A folder that is a file, no permission, a full disk: the system's reason, and mostly its file.
        if error.errno is None:
            raise
        place = error.filename2 or error.filename
        reason = error.strerror
        if place and isinstance(error, (FileExistsError, NotADirectoryError)):
            reason = "a file stands where a folder is needed; name another place"
        return _say(f"{place}: {reason}" if place else str(reason), UserError.exit_code)
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        return _say(
            f"this python has no {error.name}; activate the environment that has it, or run pip install -e .",
            UserError.exit_code,
        )
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)


def some(names: Sequence[str]) -> str:
    """The first ten names for a message, and how many more there are."""
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown}, and {len(names) - NAMED} more"


def misfits(
    expected: Shapes, found: Shapes, what: str, ignored: Callable[[str], bool] = lambda name: False
) -> list[str]:
    """What is wrong with tensors of these names and shapes: missing, of another shape, foreign; [] where all is well.

    Clauses for a message. what: the word for what is expected. ignored: names that may be there and mean nothing.
    """
    missing = [name for name in expected if name not in found]
    misshaped = [
        f"{name} is {tuple(found[name])}, the model's {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    foreign = [name for name in found if name not in expected and not ignored(name)]
    clauses = []
    if missing:
        clauses.append(f"{len(missing)} of {len(expected)} {what} missing: {some(missing)}")
    if misshaped:
        clauses.append(f"{len(misshaped)} of another shape: {some(misshaped)}")
    if foreign:
        clauses.append(f"{len(foreign)} not the model's: {some(foreign)}")
    return clauses


def _say(sentence: str, code: int) -> int:
    sys.stdout.flush()
    print(f"error: {' '.join(sentence.splitlines())}", file=sys.stderr, flush=True)
    return code
