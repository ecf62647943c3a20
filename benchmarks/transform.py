"""How fast tools/transform_checkpoint.py moves a checkpoint, and in how much memory, beside ms.transform_checkpoints.

    python benchmarks/transform.py [--gb 2] [--rounds 1] [--processes 1 2] [--folder /tmp]

A safetensors checkpoint of float16 tensors of a 7B model's shapes, cut for 8 ranks (dp2 mp4), is merged into one file
and resharded to dp4 mp2, by ours and by MindSpore's on the same files, in turns. MB are those of the whole tensors.
Peak memory is what all processes hold together above the first one's after its imports; ours verifies every sha256,
reads the result back and syncs it to the disk, MindSpore does none of this.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

HIDDEN, INNER, VOCABULARY = 4096, 11008, 32000
COLUMNS = ("wo", "w2")  # split along their second axis


def shapes(size: float) -> dict[str, tuple[int, ...]]:
    """Tensors of a model of about `size` GB of float16."""
    found: dict[str, tuple[int, ...]] = {
        "model.tok_embeddings.embedding_weight": (VOCABULARY, HIDDEN),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    layer = 0
    while 2 * sum(rows * (columns[0] if columns else 1) for rows, *columns in found.values()) < size * 1e9:
        at = f"model.layers.{layer}"
        found |= {f"{at}.attention.{name}.weight": (HIDDEN, HIDDEN) for name in ("wq", "wk", "wv", "wo")}
        found |= {f"{at}.feed_forward.{name}.weight": (INNER, HIDDEN) for name in ("w1", "w3")}
        found |= {f"{at}.feed_forward.w2.weight": (HIDDEN, INNER), f"{at}.ffn_norm.weight": (HIDDEN,)}
        layer += 1
    return found


def write_sources(folder: Path, size: float) -> None:
    """The whole checkpoint, both strategies, and the slices of 8 ranks."""
    import numpy as np

    from mindrlhf.checkpoint.merge import transform
    from mindrlhf.checkpoint.safetensors_file import SafetensorsWriter
    from mindrlhf.checkpoint.tensor_file import Spec
    from mindrlhf.parallel.strategy import TensorLayout, write_stages

    found = shapes(size)
    path = folder / "whole" / "model.safetensors"
    path.parent.mkdir()
    writer = SafetensorsWriter(path, {name: Spec("float16", shape) for name, shape in found.items()})
    random = np.random.default_rng(0)
    for name, shape in found.items():
        writer.put(name, random.random(shape, np.float32).astype(np.float16))
    writer.close()
    for dp, mp in ((2, 4), (4, 2)):
        layouts = {}
        for name, shape in found.items():
            axis = None if len(shape) == 1 else int(any(f".{column}." in name for column in COLUMNS))
            layouts[name] = TensorLayout((dp, mp), tuple((0,) if k == axis else () for k in range(len(shape))))
        write_stages(folder / f"dp{dp}mp{mp}", [layouts])
    transform(path, folder / "cut", dst_strategy=folder / "dp2mp4")


def held(pids: Sequence[int]) -> int:
    """Bytes that processes hold, what they share counted once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [each for child in task.read_text(encoding="ascii").split() for each in family(int(child))]
        except OSError:
            continue
    return found


def one(argv: Sequence[str]) -> None:
    """One transform in this process: prints seconds and peak memory as JSON."""
    who, what, processes, source, target, before, after = argv
    import mindspore
    import tqdm  # noqa: F401  (of our progress bar; memory counts after imports)

    from mindrlhf.checkpoint.merge import transform
    from mindrlhf.parallel.strategy import strategy_path

    base, peak, done = held([os.getpid()]), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, held(family(os.getpid())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    destination = after if what == "reshard" else None
    if who == "ours":
        transform(source, target, src_strategy=before, dst_strategy=destination, processes=int(processes))
    else:
        files = [str(strategy_path(folder, 0)) if folder else None for folder in (before, destination)]
        mindspore.transform_checkpoints(
            f"{source}/checkpoint_network",
            target,
            "checkpoint_",
            *files,
            process_num=int(processes),
            output_format="safetensors",
        )
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    print(json.dumps({"seconds": seconds, "peak": peak - base}))


def equal(ours: Path, theirs: Path) -> bool:
    """Whether every rank holds the same bits."""
    from safetensors.numpy import load_file

    for folder in sorted((ours / "checkpoint_network").glob("rank_*")):
        (one_file,), (other_file,) = folder.glob("*.safetensors"), (theirs / folder.name).glob("*.safetensors")
        one_rank, other_rank = load_file(one_file), load_file(other_file)
        if one_rank.keys() != other_rank.keys():
            return False
        if any(one_rank[name].tobytes() != other_rank[name].tobytes() for name in one_rank):
            return False
    return True


def main() -> None:
    """Write the sources, run everything in turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", default=tempfile.gettempdir())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_sources(folder, options.gb)
        size = sum(file.stat().st_size for file in (folder / "whole").iterdir())
        print(f"{size / 1e9:.2f} GB, largest tensor {VOCABULARY * HIDDEN * 2 / 1e6:.0f} MB, 8 ranks dp2 mp4")
        cases = [
            (what, processes, who)
            for _ in range(options.rounds)
            for what in ("merge", "reshard")
            for processes in options.processes
            for who in ("ours", "mindspore")
        ]
        for what, processes, who in cases:
            target = folder / f"{who}-{what}-{processes}"
            shutil.rmtree(target, ignore_errors=True)
            words = [
                who,
                what,
                str(processes),
                *(str(folder / name) for name in ("cut", target.name, "dp2mp4", "dp4mp2")),
            ]
            run = subprocess.run(
                [sys.executable, __file__, "--one", *words], capture_output=True, text=True, check=True, timeout=1800
            )
            found = json.loads(run.stdout.splitlines()[-1])
            seconds, peak = found["seconds"], found["peak"]
            print(
                f"{what:8} {who:10} {processes} process(es): {seconds:6.1f} s, {size / 1e6 / seconds:5.0f} MB/s, "
                f"peak {peak / 1e6:5.0f} MB ({peak / size:.2f} of the checkpoint)",
                flush=True,
            )
            if who == "mindspore":
                ours = folder / f"ours-{what}-{processes}"
                print(f"{what:8} the same bits on every rank: {equal(ours, target)}", flush=True)
                shutil.rmtree(ours)
                shutil.rmtree(target)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2:])
    else:
        main()
