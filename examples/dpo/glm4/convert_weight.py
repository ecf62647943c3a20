"""Hugging Face weights to MindSpore, and back; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from mindrlhf.commands.convert import main
from mindrlhf.runtime.errors import run

if __name__ == "__main__":
    raise SystemExit(run(main))
