"""Entry of the command; see mindrlhf/commands/make_tiny.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mindrlhf.commands.make_tiny import main
from mindrlhf.runtime.errors import run

if __name__ == "__main__":
    raise SystemExit(run(main))
