"""run_dpo.py: train on preference records, evaluate a checkpoint alone, or let a model answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mindrlhf.commands.flags import OVERRIDES, Parser, boolean, command, parse
from mindrlhf.config.load import load_config
from mindrlhf.config.schema import Config
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.logging import log, quiet


def parser() -> Parser:
    """The command line of all three run modes."""
    flags = command("run_dpo.py", __doc__, OVERRIDES)
    run = flags.add_argument_group("run")
    run.add_argument("--config", help="yaml of the run")
    run.add_argument("--run_mode", choices=("train", "eval", "predict"), help="what to do; without it the yaml's")
    run.add_argument("--load_checkpoint", help="Hugging Face folder, output folder or weight file to start from")
    run.add_argument("--auto_trans_ckpt", type=boolean, help="accepted; any checkpoint is laid out as needed")
    run.add_argument("--vocab_file", help="tokenizer: Hugging Face folder, tokenizer.json or vocab.json")
    train = flags.add_argument_group("train and eval")
    train.add_argument("--train_dataset", help="MindRecord or folder of parts to train on")
    train.add_argument("--eval_dataset", help="MindRecord evaluated before the first and after the last step")
    train.add_argument(
        "--resume", type=boolean, nargs="?", const=True, help="go on from the newest checkpoint under output_dir"
    )
    predict = flags.add_argument_group("predict")
    predict.add_argument("--predict_data", nargs="+", help="questions, or one .txt or .jsonl file with one a line")
    predict.add_argument("--predict_output", help="file for the answers, one JSON object a line")
    return flags


def main(argv: Sequence[str]) -> int:
    """Run the command; 0, or UserError."""
    quiet()
    words, overrides = parse(parser(), argv)
    flags = {
        "run_mode": words.run_mode,
        "model.load_checkpoint": words.load_checkpoint,
        "tokenizer.path": words.vocab_file,
        "data.train": words.train_dataset,
        "data.eval": words.eval_dataset,
        "train.resume": words.resume,
    }
    config = load_config(words.config, overrides, flags)
    if config.run_mode == "predict":
        from mindrlhf.commands.predict import predict

        predict(config, words.predict_data, words.predict_output)
        return 0
    if words.predict_data or words.predict_output:
        raise UserError(f"--predict_data and --predict_output go with --run_mode predict, not {config.run_mode}")
    (_train if config.run_mode == "train" else _evaluate)(config)
    return 0


def _train(config: Config) -> None:
    from mindrlhf.trainers.dpo import DPOTrainer
    from mindrlhf.trainers.loop import train
    from mindrlhf.trainers.setup import setup_device

    if not config.data.train:
        raise UserError("nothing to train on; give --train_dataset a MindRecord that tools/dpo_preprocess.py wrote")
    device = setup_device(config)
    train(DPOTrainer(config, device), config, device)


def _evaluate(config: Config) -> None:
    from mindrlhf.runtime.metrics import MetricsWriter
    from mindrlhf.trainers.dpo import DPOTrainer
    from mindrlhf.trainers.setup import setup_device

    if not config.data.eval:
        raise UserError("nothing to evaluate on; give --eval_dataset a MindRecord that tools/dpo_preprocess.py wrote")
    device = setup_device(config)
    figures = DPOTrainer(config, device).evaluate() or {}
    for name, value in figures.items():
        log(f"eval_{name:<28} {value:.6g}")
    if device.rank == 0:
        path = Path(config.output_dir) / "eval_metrics.jsonl"
        MetricsWriter(path).write({"step": 0, **{f"eval_{name}": value for name, value in figures.items()}})
        log(f"figures: {path}")
    device.leave()
