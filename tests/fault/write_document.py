"""Write the tables of docs/mistakes.md anew, for a sentence that was changed on purpose; read the difference."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mistakes import ODDITIES, TABLE, WORK, Mistake
from workshop import DOCUMENT, Workshop, ended, fill

from mindrlhf.commands.make_tiny import make_tiny
from mindrlhf.runtime.logging import quiet


def rows(cases: Mapping[str, Mistake], good: Path) -> str:
    """A table of what is said in each case."""
    lines = []
    for name, case in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder) / "here"
            shutil.copytree(good, here)
            os.chdir(here)
            lines.append(f"| {name} | `{ended(case(Workshop(here)))[1]}` |\n")
            os.chdir(good)
    return "".join(lines)


def main() -> None:
    """Keep what stands before the first table, and replace all tables."""
    head = DOCUMENT.read_text(encoding="utf-8").partition("\n## ")[0]
    with tempfile.TemporaryDirectory() as folder:
        good = Path(folder) / "good"
        good.mkdir()
        make_tiny(Path(folder) / "model", "qwen2", vocab_size=300, hidden_size=64, layers=1)
        os.chdir(good)
        fill(good, Path(folder) / "model")
        text = head
        for section, cases in TABLE.items():
            text += f"\n## {section}\n\n| Mistake | What is said |\n|---|---|\n{rows(cases, good)}"
        text += f"\n## {ODDITIES}\n\n| Oddity | The last line |\n|---|---|\n{rows(WORK, good)}"
        os.chdir(folder)
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    quiet()
    main()
