"""Train, evaluate or query a model on preferences; see --help."""

from mindrlhf.commands.train import main
from mindrlhf.runtime.errors import run

if __name__ == "__main__":
    raise SystemExit(run(main))
