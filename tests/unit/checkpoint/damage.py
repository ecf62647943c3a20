"""Ways to damage the output of a run of 8 ranks (dp2 mp2 pp2)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sliced_runs import dense, model, write_rank

from mindrlhf.checkpoint.ckpt_file import CkptFile
from mindrlhf.checkpoint.find import find_weights, rank_file
from mindrlhf.checkpoint.tensors import read_weights
from mindrlhf.parallel.strategy import strategy_path, write_layouts
from mindrlhf.runtime.files import write_json

ARRAYS = model()
STAGES = dense(ARRAYS, 2, 2, 2)
FIRST, LAST = "model.tok_embeddings.weight", "lm_head.weight"
KINDS = {"ours": "safetensors", "theirs": "ckpt"}


def file_of(out: Path, rank: int) -> Path:
    return rank_file(out / "checkpoint_network" / f"rank_{rank}")


def folder_of(out: Path, rank: int) -> Path:
    return out / "checkpoint_network" / f"rank_{rank}"


def flip(path: Path, place: int) -> None:
    alone(path)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def alone(path: Path) -> Path:
    """The file itself, and no link that others share."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    return path


def cut_short(path: Path, length: int) -> None:
    path.write_bytes(alone(path).read_bytes()[:length])


def rewrite(out: Path, rank: int, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """The file of a rank as another program would write it, without a manifest; the others lose theirs too."""
    held = read_alone(file_of(out, rank))
    change(held)
    kind = file_of(out, rank).suffix[1:]
    file_of(out, rank).unlink()
    write_rank(out, rank, held, kind)
    for manifest in out.glob("checkpoint_network/rank_*/manifest.json"):
        manifest.unlink()


def read_alone(path: Path) -> dict[str, np.ndarray]:
    copy = shutil.copy(path, path.parent.parent.parent / f"alone{path.suffix}")
    return read_weights(find_weights(copy))


def edit_manifest(out: Path, rank: int, **words: object) -> None:
    path = folder_of(out, rank) / "manifest.json"
    write_json(path, {**json.loads(path.read_text()), **words})


def copy_rank(out: Path, source: int, target: int) -> None:
    shutil.rmtree(folder_of(out, target), ignore_errors=True)
    shutil.copytree(folder_of(out, source), folder_of(out, target))


def swap(out: Path, one: int, other: int) -> None:
    folder_of(out, one).rename(out / "kept")
    folder_of(out, other).rename(folder_of(out, one))
    (out / "kept").rename(folder_of(out, other))


def boundary(path: Path) -> int:
    """Where a .ckpt file could end between two tensors."""
    opened = CkptFile(path)
    opened.close()
    *_, before, _ = opened.places.values()
    return before[-1][0] + before[-1][1]


def another_stage(out: Path, rank: int, name: str) -> None:
    layouts = {key: layout for key, layout in STAGES[rank // 4].items() if key != name}
    write_layouts(strategy_path(out / "strategy", rank), layouts)


def without(out: Path, name: str) -> None:
    for rank in range(8):
        another_stage(out, rank, name)


def only(out: Path, ranks: range) -> None:
    for rank in range(8):
        if rank not in ranks:
            strategy_path(out / "strategy", rank).unlink()
