"""Entry of the command; see mindrlhf/commands/plan.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mindrlhf.commands.plan import main
from mindrlhf.runtime.errors import run

if __name__ == "__main__":
    raise SystemExit(run(main))
