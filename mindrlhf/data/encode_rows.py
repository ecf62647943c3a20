"""Raw rows to pairs of ids, in this process or in several, always in order."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Union

from mindrlhf.data.formats import Rejected
from mindrlhf.data.preference import EncodedPair, encode_pair, fit
from mindrlhf.data.row_file import RawRow
from mindrlhf.data.sources import Source
from mindrlhf.data.templates import TemplateError
from mindrlhf.data.tokenizers import ChatTokenizer, load_tokenizer
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.logging import quiet

# What becomes of a row: ids, a reason why there are none, or None where it is overlong.
Outcome = Union[EncodedPair, Rejected, None]

ROWS_PER_TASK = 64
TASKS_AHEAD = 4  # of each process: enough that none waits, few enough that memory stays flat
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


@dataclass(frozen=True)
class RowEncoder:
    """What a row needs to become ids; picklable, each process loads the tokenizer for itself."""

    source: Source
    tokenizer_path: str
    merges_file: str | None
    chat_template: str
    seq_len: int
    overlong: str

    @cached_property
    def tokenizer(self) -> ChatTokenizer:
        """The tokenizer with its chat template."""
        return load_tokenizer(self.tokenizer_path, self.merges_file, self.chat_template)

    def encode(self, row: RawRow) -> Outcome:
        """What becomes of one row. It depends on nothing but the row."""
        preference = self.source.parse(row)
        if isinstance(preference, Rejected):
            return preference
        try:
            return fit(encode_pair(self.tokenizer, preference), self.seq_len, self.overlong)
        except TemplateError as error:
            return Rejected(preference.line, error.reason, error.sentence, preference.raw, preference.file)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "tokenizer"}


def encode_rows(encoder: RowEncoder, rows: Iterable[RawRow], processes: int) -> Iterator[Outcome]:
    """What becomes of each row, in their order, by `processes` processes; by this one where that is 1.

    `UserError` where one of them dies. Only a few tasks for each are under way, so that memory stays flat.
    """
    if processes == 1:
        yield from map(encoder.encode, rows)
        return
    rest = iter(rows)
    # Not forked: MindSpore's threads would be missing, with the locks that they hold.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(encoder,)) as pool:
        pending: deque[Future[list[Outcome]]] = deque()
        try:
            while True:
                while len(pending) < TASKS_AHEAD * processes and (task := list(islice(rest, ROWS_PER_TASK))):
                    pending.append(pool.submit(_encode, task))
                if not pending:
                    return
                yield from pending.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                "a process that tokenizes has died, mostly for want of memory; run again with fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_given: list[RowEncoder] = []  # to a process that tokenizes


def _begin(encoder: RowEncoder) -> None:
    quiet()
    # Ctrl-C is the parent's to answer, and a killed one leaves nobody behind.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    _given.append(encoder)


def _encode(rows: list[RawRow]) -> list[Outcome]:
    (encoder,) = _given
    return [encoder.encode(row) for row in rows]
