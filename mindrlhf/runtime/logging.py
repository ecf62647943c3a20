"""The console belongs to us: what MindSpore, MindFormers and transformers say stays away unless the user asks for it.

A variable that the user has set wins: `GLOG_v` (MindSpore), `LOG_MF_PATH` (MindFormers), `TRANSFORMERS_VERBOSITY`,
`PYTHONWARNINGS` or `python -W` (Python's warnings).
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import shutil
import sys
import tempfile
import uuid
import warnings

GLOG = "GLOG_v"
GLOG_LEVEL = "4"
SCRATCH_PREFIX = "mindrlhf-scratch-"
ENVIRONMENT = {
    GLOG: GLOG_LEVEL,
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    # Unset, tokenizers warns at every fork after its first use.
    "TOKENIZERS_PARALLELISM": "false",
}
# MindFormers' log, MindSpore's dumps of failed graphs and its kernels: by default they go to the user's folder.
SCRATCH_VARIABLES = ("LOG_MF_PATH", "MS_OM_PATH", "MS_COMPILER_CACHE_PATH")


def quiet() -> None:
    """Keep the console and the current folder clean. To be called before mindspore or transformers is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    missing = [name for name in SCRATCH_VARIABLES if name not in os.environ]
    if missing:
        # Not made here: msrun's scheduler ends without exit hooks, and would leave it behind.
        scratch = os.path.join(tempfile.gettempdir(), SCRATCH_PREFIX + uuid.uuid4().hex)
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        os.environ.update(dict.fromkeys(missing, scratch))
    if os.environ.get(GLOG) == GLOG_LEVEL:
        _silence(f"ME.mindspore.log.{os.getpid()}")
    # A child process finds the variable set by its parent: the name of the folder tells that it was not the user.
    if os.path.basename(os.environ["LOG_MF_PATH"]).startswith(SCRATCH_PREFIX):
        _silence("mindformers" + os.environ["LOG_MF_PATH"])
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    if not sys.warnoptions:
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)


def mute_teardown() -> None:
    """Drop what the cluster's threads print on stderr, at any log level, while the interpreter ends.

    To be called once mindspore is imported: exit hooks run last in, first out, and this one must precede MindSpore's.
    """
    if os.environ.get(GLOG) == GLOG_LEVEL:
        atexit.register(_close_stderr)


def _close_stderr() -> None:
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _silence(logger: str) -> None:
    """Drop every record of a logger. Both libraries set level and handlers when they wake; a filter survives that."""
    logging.getLogger(logger).addFilter(_refuse)


def _refuse(record: logging.LogRecord) -> bool:
    return False


def world() -> int:
    """Number of workers, as msrun sets it; 1 outside msrun."""
    return int(os.environ.get("MS_WORKER_NUM", "1"))


def rank() -> int:
    """This worker's number from 0. A `RANK_ID` left over in the environment of a single process does not count."""
    return int(os.environ.get("RANK_ID", "0")) if world() > 1 else 0


def log(message: str) -> None:
    """One line to stdout, of rank 0 alone."""
    if rank() == 0:
        print(message, flush=True)


def warn(message: str) -> None:
    """One line "warning: ..." to stderr, of rank 0 alone."""
    if rank() == 0:
        sys.stdout.flush()
        print(f"warning: {message}", file=sys.stderr, flush=True)


@functools.cache
def warn_once(message: str) -> None:
    """`warn`, but the same message is said once per process."""
    warn(message)
