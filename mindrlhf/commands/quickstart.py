"""The whole pipeline on a small model: data, warm-up, reference log-probs, DPO, merge, answers before and after."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindrlhf.commands.flags import Parser, command
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "scripts" / "msrun_launcher.sh"
WORKERS = 2
SEQ_LEN = 97  # rows of 96 tokens; a few pairs are longer, and counted
CORPUS = 1200  # rows of the warm-up
QUESTIONS = 4
LEAST_ACCURACY = 0.6
SHARE = "eval_logps/accuracies_per_token"


def parser() -> Parser:
    """The command line."""
    flags = command("quickstart.py", __doc__)
    output = flags.add_argument_group("output")
    output.add_argument(
        "--output_path", metavar="DIR", default="quickstart_output", help="folder for everything it makes"
    )
    return flags


@dataclass(frozen=True)
class Stage:
    """One command of the pipeline: `workers` 0 is a plain process, else the launcher's number."""

    name: str
    words: tuple[str, ...]
    workers: int = 0

    def argv(self) -> list[str]:
        """What is run."""
        if self.workers:
            return ["bash", str(LAUNCHER), shlex.join(self.words), str(self.workers)]
        return [sys.executable, *self.words]


@dataclass(frozen=True)
class Commands:
    """The commands that a user would type, on the files under `out`."""

    out: Path

    def path(self, name: str) -> str:
        """A file or folder of this run."""
        return str(self.out / name)

    def tool(self, name: str, *words: str) -> tuple[str, ...]:
        """tools/`name`.py."""
        return (str(ROOT / "tools" / f"{name}.py"), *words)

    def preprocess(self, name: str, *more: str) -> tuple[str, ...]:
        """data/`name`.jsonl -> `name`.mindrecord."""
        files = ("--src", self.path(f"data/{name}.jsonl"), "--dst", self.path(f"{name}.mindrecord"))
        form = ("--dataset_type", "cvalues", "--tokenizer", self.path("model"), "--seq_len", str(SEQ_LEN))
        return self.tool("dpo_preprocess", "--config", _yaml("dpo"), *files, *form, *more)

    def run(self, yaml: str, checkpoint: str, *more: str) -> tuple[str, ...]:
        """run_dpo.py from `checkpoint`."""
        given = ("--config", _yaml(yaml), "--load_checkpoint", self.path(checkpoint))
        return (str(ROOT / "run_dpo.py"), *given, *more)

    def predict(self, answers: str, checkpoint: str) -> tuple[str, ...]:
        """Answer the questions."""
        asked = ("--predict_data", self.path("questions.jsonl"), "--predict_output", self.path(f"{answers}.jsonl"))
        return self.run("dpo", checkpoint, "--run_mode", "predict", *asked)

    def merge_parts(self, name: str) -> tuple[str, ...]:
        """`name`.parts -> `name`.mindrecord."""
        files = ("--src", self.path(f"{name}.parts"), "--dst", self.path(f"{name}.mindrecord"))
        return self.tool("dpo_preprocess", "--merge", "True", *files)


def _yaml(name: str) -> str:
    return str(ROOT / "model_configs" / "tiny" / f"{name}.yaml")


def stages(out: Path) -> list[Stage]:
    """The pipeline in its order."""
    do = Commands(out)
    reference = ("--load_checkpoint", do.path("warm"))
    corpus = ("--train_dataset", do.path("corpus.mindrecord"), f"output_dir={do.path('warm')}")
    pairs = ("--train_dataset", do.path("train.mindrecord"), "--eval_dataset", do.path("held_out.mindrecord"))
    model = ("--family", "qwen2", "--output_path", do.path("model"))
    data = ("--output_path", do.path("data"), "--corpus", str(CORPUS))
    ranks = (
        f"--src_checkpoint={do.path('dpo/checkpoint_network')}",
        f"--src_strategy={do.path('dpo/strategy')}",
        f"--dst_checkpoint={do.path('merged')}",
    )
    return [
        Stage("make a model", do.tool("make_tiny_model", *model)),
        Stage("make the data", do.tool("make_preference_data", *data)),
        Stage("prepare the corpus", do.preprocess("corpus", "rlhf.reference=none")),
        Stage("warm up (sft)", do.run("warmup", "model", *corpus), WORKERS),
        Stage("answers before", do.predict("answers_before", "warm")),
        Stage("reference log-probs", do.preprocess("train", *reference), WORKERS),
        Stage("merge the parts", do.merge_parts("train")),
        Stage("held-out pairs", do.preprocess("held_out", *reference)),
        Stage("align (dpo)", do.run("dpo", "warm", *pairs, f"output_dir={do.path('dpo')}"), WORKERS),
        Stage("merge the ranks", do.tool("transform_checkpoint", *ranks)),
        Stage("answers after", do.predict("answers_after", "merged")),
    ]


def main(argv: Sequence[str]) -> int:
    """Run every stage; 1 where the model did not learn, UserError where a stage fails."""
    out = Path(parser().parse_args(argv).output_path).resolve()
    if out.exists() and any(out.iterdir()) and not (out / "seconds.json").exists():
        raise UserError(f"{out} exists and is not a former quickstart's; give another --output_path")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    seconds: dict[str, float] = {}
    _write_seconds(out, seconds)
    for stage in stages(out):
        print(f"\n== {stage.name}\n$ {_typed(stage)}", flush=True)
        began = time.perf_counter()
        code = subprocess.run(stage.argv(), check=False).returncode
        seconds[stage.name] = round(time.perf_counter() - began, 1)
        _write_seconds(out, seconds)
        if code:
            raise UserError(f"the stage '{stage.name}' ended with exit code {code}; what it said stands above")
        if stage.name == "make the data":
            _choose_questions(out)
    return report(out, seconds)


def _write_seconds(out: Path, seconds: dict[str, float]) -> None:
    """By this file a later quickstart knows that the folder may be replaced."""
    (out / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")


def _typed(stage: Stage) -> str:
    argv = stage.argv()
    return shlex.join(["python" if word == sys.executable else word for word in argv]).replace(f"{ROOT}/", "")


def _choose_questions(out: Path) -> None:
    """The first held-out questions of each language, in turn."""
    rows = _rows(out / "data" / "held_out.jsonl")
    english = [row["prompt"] for row in rows if row["prompt"].isascii()]
    chinese = [row["prompt"] for row in rows if not row["prompt"].isascii()]
    chosen = [question for pair in zip(chinese, english) for question in pair][:QUESTIONS]
    lines = [json.dumps({"prompt": question}, ensure_ascii=False) for question in chosen]
    (out / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def report(out: Path, seconds: dict[str, float]) -> int:
    """Print what the run came to; 0 where the model learned the preference, else 1."""
    rows = read_metrics(out / "dpo" / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "eval_loss" in row]
    before, after = evaluations[0], evaluations[-1]
    print(f"\n{'':34}{'before':>10}{'after':>10}")
    print(f"{'held-out: chosen likelier per token':<36}{before[SHARE]:>8.3f}{after[SHARE]:>10.3f}")
    for name, key in (("reward accuracy", "eval_rewards/accuracies"), ("reward margin", "eval_rewards/margins")):
        print(f"{'held-out: ' + name:<34}{'':>10}{after[key]:>10.3f}")
    print(f"{'training loss, first and last step':<34}{steps[0]['loss']:>10.4f}{steps[-1]['loss']:>10.4f}\n")
    for name, value in seconds.items():
        print(f"{name:<34}{value:>10.1f} s")
    print(f"{'together':<34}{sum(seconds.values()):>10.1f} s\n")
    for old, new in zip(_rows(out / "answers_before.jsonl"), _rows(out / "answers_after.jsonl")):
        print(f"question: {old['prompt']}\n  before: {old['answer']}\n  after:  {new['answer']}\n")
    print(f"curves: {out / 'dpo' / 'curves.png'}")
    if Path(sys.prefix).parent == ROOT:
        print(f"to run these commands yourself: source {Path(sys.prefix) / 'bin' / 'activate'}")
    if after[SHARE] > before[SHARE] and after["eval_rewards/accuracies"] >= LEAST_ACCURACY:
        return 0
    print("error: the model did not learn the preference", file=sys.stderr)
    return 1


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
