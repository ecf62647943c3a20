"""Mistakes, each by the words of docs/mistakes.md: what spoils the workshop, and the command that is then run."""

from __future__ import annotations

import gzip
from typing import Callable

from workshop import ENDINGS, ROWS, Workshop, asking, joining, merging, preprocessing, row, training

from mindrlhf.data.records import read_pairs, write_records
from mindrlhf.data.sidecar import complete_parts, find_parts

Mistake = Callable[[Workshop], list[str]]

GOOD = [row(number) for number in range(ROWS)]


def source(content: bytes, name: str = "in.jsonl") -> Mistake:
    """Preprocess a file of these bytes."""

    def make(shop: Workshop) -> list[str]:
        shop.write(name, content)
        return preprocessing("--src", name)

    return make


def lines(*rows: bytes, end: bytes = b"\n") -> Mistake:
    """Preprocess a file of these lines."""
    return source(b"".join(line + end for line in rows))


def yaml(content: str, **others: str) -> Mistake:
    """Train with a run.yaml of this content, beside yaml files by name."""

    def make(shop: Workshop) -> list[str]:
        for name, text in {"run": content, **others}.items():
            shop.write(f"{name}.yaml", text)
        return training("--config", "run.yaml")

    return make


def plain(argv: list[str]) -> Mistake:
    """Nothing is spoilt: the command itself is the mistake."""
    return lambda shop: argv


def spoilt(spoil: Callable[[Workshop], object], argv: list[str]) -> Mistake:
    """Something is spoilt, then a command that is right is run."""

    def make(shop: Workshop) -> list[str]:
        spoil(shop)
        return argv

    return make


def model_config(**fields: object) -> Mistake:
    """Train from a model whose config.json has other fields; None takes one out."""
    return spoilt(lambda shop: shop.change("model/config.json", **fields), training())


TOO_MANY = "two bad rows of twelve"
# The record is written, and replaces an earlier one; every other mistake leaves all files as they were.
REPLACES = {TOO_MANY}
BINARY = bytes(range(256)) * 8

FILES: dict[str, Mistake] = {
    "no such file": plain(preprocessing("--src", "no.jsonl")),
    "an empty file": source(b""),
    "a file of blank lines": source(b"\n \n\n"),
    "a `.json` file that is broken": source(b'[{"prompt": "a"', "in.json"),
    "a `.json` file that is no array": source(b'{"prompt": "a"}', "in.json"),
    "a file in GBK": source('{"prompt": "你好", "pos_resp": "好", "neg_resp": "不"}\n'.encode("gbk")),
    "a file in UTF-16": source(GOOD[0].decode().encode("utf-16")),
    "a binary file": source(BINARY),
    "a row nested a hundred thousand deep": lines(b"[" * 100_000),
    "a `.gz` file that is cut": source(gzip.compress(b"\n".join(GOOD), mtime=0)[:-20], "in.jsonl.gz"),
    "a `.gz` file that is none": source(b"\n".join(GOOD), "in.jsonl.gz"),
    "a `.csv` file without a column": source(b"prompt,pos_resp\nHi,Hello!\n", "in.csv"),
    "a `.parquet` file that is none": source(b"PAR1" + bytes(100), "in.parquet"),
    "a file of another form": lines(b'{"question": "Hi", "chosen": "a", "rejected": "b"}'),
    TOO_MANY: lines(*GOOD[:10], b'{"prompt": "cut', b'{"prompt": "x"}'),
}

WORK: dict[str, Mistake] = {
    "a byte order mark": source(b"\xef\xbb\xbf" + b"\n".join(GOOD)),
    "lines that end in CRLF": lines(*GOOD, end=b"\r\n"),
    "one row of a megabyte": lines(*GOOD[1:], GOOD[0].replace(b"Question", b"x " * 500_000)),
}

PART = "part-0000-00001.mindrecord"


def _another_runs_part(shop: Workshop) -> None:
    for end in ENDINGS:
        shop.write(f"train.parts/{PART}{end}", shop.read(f"other.parts/{PART}{end}"))


def _doubled_part(shop: Workshop) -> None:
    """The rows of the first part once more, as a second worker would have written them."""
    path, sidecar = complete_parts(find_parts("train.parts"))[0]
    pairs = list(read_pairs([(path, sidecar)]))
    given = {"provenance": sidecar.provenance, "total": ROWS, "overlong": 0, "rejected": {}}
    write_records("train.parts/part-0001-00000.mindrecord", pairs, span=sidecar.rows, **given)


RECORDS: dict[str, Mistake] = {
    "no such record": plain(training("--train_dataset", "no.mindrecord")),
    "a preference file in place of a record": plain(training("--train_dataset", "in.jsonl")),
    "a flipped bit": spoilt(lambda shop: shop.flip("train.mindrecord"), training()),
    "a record that is cut": spoilt(lambda shop: shop.cut("train.mindrecord"), training()),
    "a record without its `.json`": spoilt(lambda shop: shop.remove("train.mindrecord.json"), training()),
    "a record whose `.json` is broken": spoilt(lambda shop: shop.cut("train.mindrecord.json"), training()),
    "a record whose `.json` is nested a hundred thousand deep": spoilt(
        lambda shop: shop.write("train.mindrecord.json", "[" * 100_000), training()
    ),
    "a record without its `.db`": spoilt(lambda shop: shop.remove("train.mindrecord.db"), training()),
    "a record that was renamed": spoilt(
        lambda shop: shop.move("train.mindrecord", "mine.mindrecord"), training("--train_dataset", "mine.mindrecord")
    ),
    "a part that is missing": spoilt(
        lambda shop: shop.remove(*(f"train.parts/{PART}{end}" for end in ENDINGS)), merging()
    ),
    "training on parts of which one is missing": spoilt(
        lambda shop: shop.remove(*(f"train.parts/{PART}{end}" for end in ENDINGS)),
        training("--train_dataset", "train.parts"),
    ),
    "a doubled part": spoilt(_doubled_part, merging()),
    "a part of another run": spoilt(_another_runs_part, merging()),
    "a damaged part": spoilt(lambda shop: shop.flip(f"train.parts/{PART}"), merging()),
    "a folder without parts": plain(merging("--src", "model")),
    "another tokenizer than the record's": spoilt(
        lambda shop: shop.change("model/tokenizer_config.json", eos_token="<|im_start|>"), training()
    ),
    "another chat template than the record's": spoilt(
        lambda shop: shop.change("model/tokenizer_config.json", chat_template="{{ messages[0]['content'] }}"),
        training(),
    ),
    "a record without reference log-probs": plain(training("--train_dataset", "plain.mindrecord")),
    "another reference than the weights training starts from": plain(training()),
}


FLAGS: dict[str, Mistake] = {
    "no flag at all, preprocessing": plain(["tools/dpo_preprocess.py"]),
    "no flag at all, training": plain(["run_dpo.py"]),
    "an unknown flag": plain(training("--fast")),
    "a misspelt flag": plain(training("--train_datset", "x")),
    "a flag without its value": plain(training("--eval_dataset")),
    "text where a number belongs": plain(preprocessing("--seq_len", "long")),
    "a number out of range": plain(preprocessing("--seq_len", "1")),
    "neither True nor False": plain(training("--resume", "maybe")),
    "a flag given twice": plain([*preprocessing(), "--dst", "more.mindrecord"]),
    "a word that is none of those known": plain(preprocessing("--dataset_type", "cvalue")),
    "a key of the yaml as a flag": plain(training("--output_dir", "out")),
    "no form of the rows": plain(preprocessing(without="--dataset_type")),
    "no tokenizer": plain(preprocessing(without="--tokenizer")),
    "a tokenizer that is not there": plain(preprocessing("--tokenizer", "no")),
    "a folder without a tokenizer": plain(preprocessing("--tokenizer", "trained")),
    "no `--seq_len`": plain(preprocessing(without="--seq_len")),
    "a part of no batches": plain(preprocessing("--save_interval", "0")),
    "a destination that is no `.mindrecord`": plain(preprocessing("--dst", "out.json")),
    "a destination that is a folder": plain(preprocessing("--dst", "model")),
    "a destination below a file": plain(preprocessing("--dst", "in.jsonl/out.mindrecord")),
    "questions while training": plain(training("--predict_data", "Why?")),
    "no question": plain(["run_dpo.py", "--run_mode", "predict", "--load_checkpoint", "model"]),
    "an empty question": plain(asking("")),
    "a file of questions with a broken line": spoilt(
        lambda shop: shop.write("questions.jsonl", '{"prompt": "Why?"}\n{"prompt": "Wh'),
        asking("questions.jsonl"),
    ),
    "a folder as the file for answers": plain(asking("Why?", "--predict_output", "model")),
    "nothing to evaluate on": plain(["run_dpo.py", "--run_mode", "eval", "--load_checkpoint", "model"]),
}

YAML: dict[str, Mistake] = {
    "no such yaml": plain(training("--config", "no.yaml")),
    "broken yaml": yaml("train:\n  steps: [1\n"),
    "a tab": yaml("train:\n\tsteps: 1\n"),
    "yaml that is no mapping": yaml("- train\n- steps\n"),
    "an unknown key": yaml("train: {step: 10}\n"),
    "an unknown section": yaml("trian: {steps: 10}\n"),
    "a value of a wrong type": yaml("train: {steps: many}\n"),
    "a value out of range": yaml("optimizer: {learning_rate: -1.0}\n"),
    "a key given twice": yaml("seed: 1\nseed: 2\n"),
    "a file that includes itself": yaml("include: other.yaml\n", other="include: run.yaml\n"),
    "an include that is not there": yaml("include: no.yaml\n"),
    "a Python object": yaml("seed: !!python/object/apply:os.getcwd []\n"),
    "an unknown key at the end of a command": plain(training("train.step=10")),
    "a wrong value at the end of a command": plain(training("rlhf.beta=-1")),
    "an entry of a list of losses without a type": yaml("rlhf: {loss: [sigmoid, {weight: 0.1}]}\n"),
}


def _sharded(shop: Workshop) -> None:
    shop.remove("model/model.safetensors")
    shop.write("model/model.safetensors.index.json", '{"weight_map": {"lm_head.weight": "model-00001.safetensors"}}')


CHECKPOINTS: dict[str, Mistake] = {
    "no such checkpoint": plain(training("--load_checkpoint", "no")),
    "a folder without weights": plain(training("--load_checkpoint", "train.parts")),
    "weights that are cut": spoilt(lambda shop: shop.cut("model/model.safetensors"), training()),
    "weights of a run with a flipped bit": spoilt(
        lambda shop: shop.flip("own/model.safetensors"), training("--load_checkpoint", "own")
    ),
    "weights of another shape": model_config(intermediate_size=352),
    "weights of a deeper model": model_config(num_hidden_layers=2),
    "no config.json": spoilt(lambda shop: shop.remove("model/config.json"), training()),
    "a broken config.json": spoilt(lambda shop: shop.cut("model/config.json"), training()),
    "a config.json nested a hundred thousand deep": spoilt(
        lambda shop: shop.write("model/config.json", "[" * 100_000), training()
    ),
    "a generation_config.json that is broken": spoilt(
        lambda shop: shop.cut("model/generation_config.json"), asking("Why?")
    ),
    "a tokenizer.json that is broken": spoilt(lambda shop: shop.write("model/tokenizer.json", "{"), training()),
    "an unknown architecture": model_config(architectures=["MambaForCausalLM"]),
    "the index of shards, and a shard that is missing": spoilt(_sharded, training()),
    "no step to resume from that is whole": spoilt(
        lambda shop: shop.write("output/checkpoint/step-3/manifest.json", "{}"),
        training("--resume", "True", "rlhf.other_reference=accept"),
    ),
    "a config.json without a size": model_config(hidden_size=None),
    "a rank that is missing": spoilt(lambda shop: shop.remove("trained/checkpoint_network/rank_1"), joining()),
    "ranks of different saves": spoilt(
        lambda shop: shop.flip_last("trained/checkpoint_network/rank_1/checkpoint_0.safetensors"), joining()
    ),
    "no strategy": spoilt(lambda shop: shop.remove("trained/strategy"), joining()),
    "a merge onto its own source": plain(joining("--dst_checkpoint", "trained")),
}

SETTINGS: dict[str, Mistake] = {
    "rows shorter than the record's": plain(training("data.seq_len=32")),
    "a batch that does not divide": plain(training("train.global_batch_pairs=8", "train.micro_batch_pairs=3")),
    "an unknown loss": plain(training("rlhf.loss=sigmoidd")),
    "a parameter that the loss does not have": plain(training("rlhf.loss=sft", "rlhf.beta=0.2")),
    "no reference for a loss that needs one": plain(training("rlhf.reference=none")),
    "an unknown loss in a list": plain(training("rlhf.loss=[sigmoid, {type: sfft, weight: 0.1}]")),
    "a misspelt parameter in a list of losses": plain(training("rlhf.loss=[sigmoid, {type: sft, wieght: 0.1}]")),
    "a reference followed that is not online": plain(training("rlhf.sync_ref_model=true")),
    "an online reference that is not there": plain(
        training("rlhf.reference=online", "rlhf.reference_checkpoint=absent")
    ),
    "an unknown chat template": plain(training("tokenizer.chat_template=chatmll")),
    "early stopping without evaluations": plain(training("train.early_stopping_patience=2")),
    "bfloat16 on a CPU": plain(training("model.dtype=bfloat16")),
    "tensor parallel on a CPU": plain(training("parallel.model_parallel=2")),
    "more workers than there are": plain(training("parallel.data_parallel=2")),
    "an unknown key of the model": plain(training("model.config.hidden_sise=64")),
    "rows longer than the model's positions": plain(training("data.seq_len=100000")),
}

ODDITIES = "What is odd and works"
TABLE = {
    "Preference files": FILES,
    "Records": RECORDS,
    "Flags": FLAGS,
    "Yaml": YAML,
    "Checkpoints": CHECKPOINTS,
    "Settings": SETTINGS,
}
