"""Raw rows to pairs of ids, in this process or in several, always in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Union

from mindrlhf.data.formats import Preference, Rejected, Text
from mindrlhf.data.preference import EncodedPair, encode_pair, fit
from mindrlhf.data.row_file import RawRow
from mindrlhf.data.sources import Source
from mindrlhf.data.templates import TemplateError
from mindrlhf.data.tokenizers import ChatTokenizer, load_tokenizer
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.helpers import Helper, start_helpers
from mindrlhf.runtime.logging import quiet

# What becomes of a row: ids, a reason why there are none, or None where it is overlong.
Outcome = Union[EncodedPair, Rejected, None]

Task = list[RawRow]

ROWS_PER_TASK = 64
BYTES_PER_TASK = 1 << 20
TASKS_AHEAD = 4  # of each process: enough that none waits, few enough that memory stays flat


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
        if self.overlong == "drop" and _characters(preference) > self._most_characters:
            return None
        try:
            return fit(encode_pair(self.tokenizer, preference), self.seq_len, self.overlong)
        except TemplateError as error:
            return Rejected(preference.line, error.reason, error.sentence, preference.raw, preference.file)

    @cached_property
    def _most_characters(self) -> int:
        """More than any pair that fits can have: a row of megabytes is not tokenized to find that it is overlong.

        Four times the longest token for each of its tokens, since a tokenizer may compose or drop characters.
        """
        return 4 * self.seq_len * self.tokenizer.longest_token

    def __getstate__(self) -> dict[str, object]:
        made = ("tokenizer", "_most_characters")
        return {name: value for name, value in self.__dict__.items() if name not in made}


def _characters(preference: Preference) -> int:
    """Of the prompt and the longer answer, blanks at the ends left out."""
    return _length(preference.prompt) + max(_length(preference.chosen), _length(preference.rejected))


def _length(text: Text) -> int:
    return len(text.strip()) if isinstance(text, str) else sum(len(turn["content"].strip()) for turn in text)


def encode_rows(encoder: RowEncoder, rows: Iterable[RawRow], processes: int) -> Iterator[Outcome]:
    """What becomes of each row, in their order, by `processes` processes; by this one where that is 1.

    `UserError` where one of them dies. Only a few tasks for each are under way, so that memory stays flat.
    """
    if processes == 1:
        yield from map(encoder.encode, rows)
        return
    with ExitStack() as stack:
        helpers = start_helpers(_serve, encoder, processes, stack, doing="tokenizes", fewer="fewer --workers")
        turn = cycle(helpers)
        waiting: deque[Helper] = deque()
        for task in tasks(rows):
            if len(waiting) == TASKS_AHEAD * processes:
                yield from waiting.popleft().receive()
            helper = next(turn)
            helper.send(task)
            waiting.append(helper)
        while waiting:
            yield from waiting.popleft().receive()


def tasks(rows: Iterable[RawRow]) -> Iterator[Task]:
    """The rows in lists of ROWS_PER_TASK, shorter where these would be long."""
    task: Task = []
    size = 0
    for row in rows:
        task.append(row)
        size += len(row.data)
        if len(task) == ROWS_PER_TASK or size >= BYTES_PER_TASK:
            yield task
            task, size = [], 0
    if task:
        yield task


def _serve(pipe: Connection, encoder: RowEncoder) -> None:
    """What a helper does until its parent is gone."""
    quiet()
    received: SimpleQueue[Task] = SimpleQueue()
    # It takes tasks in while one is done, so that the parent, sending, never waits for one that waits for it.
    Thread(target=_receive_all, args=(pipe, received), daemon=True).start()
    while True:
        done: list[Outcome] | UserError
        try:
            done = [encoder.encode(row) for row in received.get()]
        except UserError as error:
            done = error
        try:
            pipe.send(done)
        except ConnectionError:
            return


def _receive_all(pipe: Connection, received: SimpleQueue[Task]) -> None:
    with suppress(EOFError, ConnectionError):
        while True:
            received.put(pipe.recv())
    os._exit(0)  # in the middle of a task, too
