"""A live line of progress on rank 0."""

from __future__ import annotations

import sys

from mindrlhf.runtime.logging import rank


class Progress:
    """Counts `total` things; the line shows how many are done, the text given last, and the time left."""

    def __init__(self, name: str, total: int, start: int = 0, unit: str = "step") -> None:
        from tqdm import tqdm

        self.bar = tqdm(
            total=total,
            initial=start,
            desc=name,
            unit=unit,
            file=sys.stdout,
            disable=rank() != 0,
            dynamic_ncols=True,
            mininterval=0.5,
            bar_format="{desc} {n_fmt}/{total_fmt} {unit}s{postfix} [{elapsed}<{remaining}]",
        )

    def advance(self, text: str = "", count: int = 1) -> None:
        """`count` more are done; `text` is what to show beside them."""
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(count)

    def say(self, message: str) -> None:
        """A line of its own above the live one."""
        if not self.bar.disable:
            self.bar.write(message, file=sys.stdout)

    def close(self) -> None:
        """Leave the last state standing on a line of its own."""
        self.bar.refresh()
        self.bar.close()
