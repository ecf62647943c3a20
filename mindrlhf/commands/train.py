"""run_dpo.py: train on preference records, evaluate a checkpoint alone, or let a model answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mindrlhf.commands.flags import OVERRIDES, Parser, boolean, command, parse, read_config
from mindrlhf.config.schema import Config
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.logging import log, quiet, warn

PAIRS_FILE = "eval.jsonl"
KEYS = {
    "run_mode": "run_mode",
    "load_checkpoint": "model.load_checkpoint",
    "vocab_file": "tokenizer.path",
    "train_dataset": "data.train",
    "eval_dataset": "data.eval",
    "resume": "train.resume",
}


def parser() -> Parser:
    """The command line of all three run modes."""
    flags = command("run_dpo.py", __doc__, OVERRIDES, KEYS)
    run = flags.add_argument_group("run")
    run.add_argument("--config", metavar="FILE", help="yaml of the run; without it all keys have their defaults")
    run.add_argument("--run_mode", choices=("train", "eval", "predict"), help="what to do")
    run.add_argument(
        "--load_checkpoint", metavar="PATH", help="Hugging Face folder, output folder or weight file to start from"
    )
    run.add_argument(
        "--auto_trans_ckpt",
        type=boolean,
        metavar="True|False",
        help="accepted and of no effect: any checkpoint is laid out as needed",
    )
    run.add_argument(
        "--vocab_file",
        metavar="PATH",
        help="tokenizer: Hugging Face folder, tokenizer.json, tokenizer.model or vocab.json; else the checkpoint's",
    )
    train = flags.add_argument_group("train and eval")
    train.add_argument("--train_dataset", metavar="PATH", help="MindRecord or folder of parts to train on")
    train.add_argument(
        "--eval_dataset", metavar="PATH", help="MindRecord to evaluate on, before the first and after the last step"
    )
    train.add_argument(
        "--resume",
        type=boolean,
        nargs="?",
        const=True,
        metavar="True|False",
        help="go on from the newest step under output_dir",
    )
    layout = flags.add_argument_group("layout")
    layout.add_argument(
        "--only_save_strategy",
        type=boolean,
        nargs="?",
        const=True,
        metavar="True|False",
        help="compile, write the layout of every rank under output_dir/strategy, and leave; needs no data, no weights",
    )
    layout.add_argument(
        "--dry_run_world_size", type=int, metavar="N", help="on a machine without NPUs: compile for N workers"
    )
    layout.add_argument("--dry_run_ranks", metavar="RANKS", help="write for these ranks alone, such as 0,4-7; else all")
    predict = flags.add_argument_group("predict")
    predict.add_argument(
        "--predict_data",
        nargs="+",
        metavar="TEXT",
        help="questions, or one .txt or .jsonl file with one a line; needed with --run_mode predict",
    )
    predict.add_argument(
        "--predict_output", metavar="FILE", help="file for the answers, one JSON object a line; else printed alone"
    )
    return flags


def main(argv: Sequence[str]) -> int:
    """Run the command; 0, or UserError."""
    quiet()
    words, overrides = parse(parser(), argv)
    config = read_config(words, overrides, KEYS)
    if words.only_save_strategy:
        if config.run_mode != "train":
            raise UserError(f"--only_save_strategy goes with run_mode train, not {config.run_mode}")
        from mindrlhf.commands.only_strategy import only_save_strategy

        only_save_strategy(config, words.dry_run_world_size, words.dry_run_ranks)
        return 0
    if words.dry_run_world_size is not None or words.dry_run_ranks is not None:
        raise UserError("--dry_run_world_size and --dry_run_ranks go with --only_save_strategy True")
    if config.run_mode == "predict":
        from mindrlhf.commands.predict import predict

        predict(config, words.predict_data, words.predict_output)
        return 0
    if words.predict_data or words.predict_output:
        raise UserError(f"--predict_data and --predict_output go with --run_mode predict, not {config.run_mode}")
    (_train if config.run_mode == "train" else _evaluate)(config)
    return 0


def _train(config: Config) -> None:
    from mindrlhf.trainers.best import Best
    from mindrlhf.trainers.dpo import DPOTrainer
    from mindrlhf.trainers.loop import train
    from mindrlhf.trainers.setup import setup_training

    if not config.data.train:
        raise UserError("nothing to train on; give --train_dataset a MindRecord that tools/dpo_preprocess.py wrote")
    if config.train.eval_steps and not config.data.eval:
        warn("train.eval_steps is set, and there is nothing to evaluate on; give --eval_dataset")
    Best.of(config)  # refuses what cannot be, before the model is built
    device, layout = setup_training(config)
    train(DPOTrainer(config, device, layout), config, device)


def _evaluate(config: Config) -> None:
    from mindrlhf.runtime.files import replacing
    from mindrlhf.runtime.metrics import MetricsWriter, finite
    from mindrlhf.trainers.dpo import DPOTrainer
    from mindrlhf.trainers.setup import setup_training

    if not config.data.eval:
        raise UserError("nothing to evaluate on; give --eval_dataset a MindRecord that tools/dpo_preprocess.py wrote")
    device, layout = setup_training(config)
    trainer = DPOTrainer(config, device, layout)
    output = Path(config.output_dir)
    if device.rank == 0:
        with replacing(output / PAIRS_FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
            figures = trainer.evaluate(lambda row: print(json.dumps(finite(row)), file=file)) or {}
    else:
        figures = trainer.evaluate(lambda row: None) or {}
    for name, value in figures.items():
        log(f"eval_{name:<28} {value:.6g}")
    if device.rank == 0:
        path = output / "eval_metrics.jsonl"
        MetricsWriter(path).write({"step": 0, **{f"eval_{name}": value for name, value in figures.items()}})
        log(f"figures: {path}, of each pair: {output / PAIRS_FILE}")
    device.leave()
