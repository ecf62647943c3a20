"""tools/convert_weight.py: weights from Hugging Face's form into MindFormers', and back."""

from __future__ import annotations

import argparse
import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from mindrlhf.commands.flags import Parser, boolean, command
from mindrlhf.runtime.errors import UserError, some

if TYPE_CHECKING:
    import numpy as np

    from mindrlhf.checkpoint.find import Weights
    from mindrlhf.checkpoint.hf_folder import Put
    from mindrlhf.checkpoint.tensor_file import Spec
    from mindrlhf.models import ModelFamily

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# Names of --model in earlier commands, and of models that are of a family of another name.
MODELS = {
    "baichuan": "baichuan2",
    "glm": "glm4",
    "glm-n": "glm4",
    "glm4-9b": "glm4",
    "llama2": "llama",
    "llama3": "llama",
    "mistral": "llama",
    "qwen2_5": "qwen2",
    "qwen2.5": "qwen2",
    "qwen3-moe": "qwen3_moe",
    "yi": "llama",
}
FORMATS = (".ckpt", ".safetensors")
FOREIGN = (".bin", ".pt", ".pth")


def parser() -> Parser:
    """The command line."""
    flags = command(
        "convert_weight.py",
        "Convert the weights of a Hugging Face folder into a checkpoint of MindFormers' names, or back.",
        "A checkpoint is OUTPUT_PATH itself where it ends in .ckpt or .safetensors, else "
        "OUTPUT_PATH/checkpoint_network/rank_0/checkpoint_0.safetensors. config.json, generation_config.json and the "
        "tokenizer's files are copied beside it, so that --load_checkpoint OUTPUT_PATH needs nothing else. "
        "--load_checkpoint takes the Hugging Face folder too, without this step.",
    )
    weights = flags.add_argument_group("weights")
    weights.add_argument(
        "--input_path", metavar="PATH", help="a Hugging Face folder; with --reversed True a merged checkpoint"
    )
    weights.add_argument(
        "--output_path",
        metavar="PATH",
        help="a file .ckpt or .safetensors, or a folder; with --reversed True a Hugging Face folder",
    )
    weights.add_argument(
        "--reversed", type=boolean, default=False, metavar="BOOL", help="from MindFormers to Hugging Face"
    )
    weights.add_argument("--dtype", choices=sorted(DTYPES), help="of what is written; the source's where not given")
    weights.add_argument(
        "--model",
        metavar="FAMILY",
        help=f"the family; read from config.json where not given; also {', '.join(sorted(MODELS))}",
    )
    older = flags.add_argument_group("older spellings")
    torch_help = "what is in Hugging Face's form: the input, with --reversed True the output"
    older.add_argument("--torch_ckpt_dir", metavar="PATH", help=torch_help)
    older.add_argument("--torch_ckpt_path", metavar="PATH", help=torch_help)
    older.add_argument(
        "--mindspore_ckpt_path",
        metavar="PATH",
        help="what is in MindFormers' form: the output, with --reversed True the input",
    )
    return flags


def main(argv: Sequence[str]) -> int:
    """Run the command; raises `UserError` for a wrong input."""
    options = parser().parse_args(argv)
    source, target = _paths(options)

    from mindrlhf.runtime.logging import quiet, world

    quiet()
    if world() > 1:
        raise UserError("a conversion runs in one process; run it without the launcher")
    done = convert(source, target, model=options.model, dtype=options.dtype, reverse=options.reversed)
    if done.ignored:
        print(f"left out {len(done.ignored)} tensor(s) that mean nothing to this model: {some(done.ignored)}")
    print(f"converted {done.tensors} tensors of {done.family}: {done.size / 2**20:.1f} MiB of {done.dtype}")
    print(f"wrote  {done.path}")
    print(f"beside {', '.join(done.carried)}")
    return 0


def _paths(options: argparse.Namespace) -> tuple[str, str]:
    """Input and output, each given once under one of its names."""
    theirs, ours = ["--torch_ckpt_dir", "--torch_ckpt_path"], ["--mindspore_ckpt_path"]
    sides = [("--input_path", theirs, ours), ("--output_path", ours, theirs)]
    found = []
    for name, forward, backward in sides:
        spelled = [name, *(backward if options.reversed else forward)]
        given = [flag for flag in spelled if getattr(options, flag[2:]) is not None]
        if not given:
            raise UserError(f"convert_weight.py: {name} is missing; see convert_weight.py --help")
        if len(given) > 1:
            raise UserError(f"convert_weight.py: {' and '.join(given)} are the same; give one of them")
        found.append(getattr(options, given[0][2:]))
    return found[0], found[1]


@dataclass(frozen=True)
class Converted:
    """What a conversion did. ignored: names of tensors that were left out; carried: of files copied beside."""

    path: Path
    family: str
    tensors: int
    size: int
    dtype: str
    ignored: list[str]
    carried: list[str]


def convert(
    source: str | Path | Weights,
    target: str | Path,
    *,
    model: str | None = None,
    dtype: str | None = None,
    reverse: bool = False,
    wrote: Callable[[str, np.ndarray], None] | None = None,
) -> Converted:
    """Convert the weights at `source`; the flags of the command say what the arguments mean.

    wrote: called with every tensor that was written.
    Raises `UserError` where tensors are missing, foreign or of another shape, and leaves nothing behind then.
    """
    from mindrlhf.checkpoint.destination import no_folder_left, require_room
    from mindrlhf.checkpoint.find import Weights, find_weights
    from mindrlhf.checkpoint.tensors import Tensors
    from mindrlhf.commands.conversion import check, constants, move, plan, specs_of
    from mindrlhf.models import BuildOptions
    from mindrlhf.trainers.architecture import read_json_object

    output = Path(target)
    weights = source if isinstance(source, Weights) else find_weights(source)
    config_file = weights.folder / "config.json"
    hf_config = read_json_object(config_file)
    if not hf_config:
        raise UserError(f"{config_file} does not exist; put the model's config.json there, which has its shapes")
    family = _family(model, hf_config, config_file)
    family.from_hf_config(hf_config, BuildOptions(seq_length=1))
    path = _place(output, reverse)
    if output.is_dir() and output.samefile(weights.folder):
        raise UserError(f"{output} is the source, which the result would hide; give another destination")
    for file in weights.files:
        if path in (file, file.parent) or (path.exists() and (path.samefile(file) or path.samefile(file.parent))):
            raise UserError(f"{output} would replace its source {weights}; give another destination")
    groups = list(family.tensors(hf_config))
    with Tensors(weights) as opened:
        ignored = check(groups, opened.specs, family, hf_config, reverse, str(weights))
        steps = list(plan(groups, opened, dtype and DTYPES[dtype], reverse))
        if reverse:
            steps += constants(family, hf_config, steps[0].dtype)
        specs = specs_of(steps)
        size = sum(spec.nbytes for spec in specs.values())
        require_room(path, size)
        target_of = _hugging_face if reverse else _mindformers
        with no_folder_left(path), target_of(path, specs, weights.folder, hf_config) as (put, carry):
            move(steps, opened, put, wrote)
            carried = carry()
    dtypes = sorted({spec.dtype for spec in specs.values()})
    return Converted(path, family.name, len(specs), size, "/".join(dtypes), ignored, carried)


def _place(output: Path, reverse: bool) -> Path:
    """The file of a checkpoint, or the folder of Hugging Face's form."""
    from mindrlhf.checkpoint.store import network_file

    if reverse and output.suffix in FORMATS + FOREIGN:
        raise UserError(f"{output} would be a file, and Hugging Face's form is a folder of safetensors; name a folder")
    if output.suffix in FOREIGN:
        raise UserError(f"{output} ends as PyTorch's files do; end it in .ckpt or .safetensors, or name a folder")
    return output if reverse or output.suffix in FORMATS else network_file(output, 0)


def _family(model: str | None, hf_config: Mapping[str, Any], config_file: Path) -> ModelFamily:
    """The family of config.json, else the one of --model; UserError where they differ."""
    from mindrlhf.models import chosen_family, families, family_of

    known = families()
    if model is None:
        return family_of(hf_config, str(config_file))
    name = MODELS.get(model.lower(), model.lower())
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *MODELS], n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"--model is {model!r}, and the families are {', '.join(sorted(known))}{meant}")
    return chosen_family(name, hf_config, str(config_file), f"--model {model}")


Target = tuple["Put", Callable[[], list[str]]]


@contextlib.contextmanager
def _mindformers(path: Path, specs: Mapping[str, Spec], beside: Path, _: Mapping[str, Any]) -> Iterator[Target]:
    """One file under MindFormers' names: what writes a tensor of it, and what copies the files of `beside`."""
    from mindrlhf.checkpoint import store
    from mindrlhf.checkpoint.ckpt_file import CkptWriter
    from mindrlhf.checkpoint.safetensors_file import SafetensorsWriter
    from mindrlhf.runtime.files import replacing

    in_network = path.parent.parent.name == store.NETWORK
    folder = path.parent.parent if in_network else path.parent
    if not in_network:
        store.refuse_other_files(beside, folder)
    elif folder.is_dir() and any(rank > 0 for rank in store.rank_folders(folder)):
        raise UserError(f"{folder} holds the ranks of a run; give another destination")
    _sweep(path.parent, path.name)
    if in_network:
        # They describe what is about to be replaced.
        store.remove_manifest(path.parent)
        (folder / store.TENSORS).unlink(missing_ok=True)
    with replacing(path) as temporary:
        writer = CkptWriter(temporary) if path.suffix == ".ckpt" else SafetensorsWriter(temporary, specs)
        complete = False
        try:
            yield writer.put, lambda: store.carry_files(beside, folder, clear=in_network)
            complete = True
        finally:
            writer.close(complete=complete)
    if in_network:
        path.with_suffix(".ckpt").unlink(missing_ok=True)


@contextlib.contextmanager
def _hugging_face(
    folder: Path, specs: Mapping[str, Spec], beside: Path, hf_config: Mapping[str, Any]
) -> Iterator[Target]:
    """A Hugging Face folder, likewise; its config.json says which dtype was written."""
    from mindrlhf.checkpoint.hf_folder import hugging_face_folder, refuse_weights
    from mindrlhf.checkpoint.store import carry_files
    from mindrlhf.runtime.files import write_json

    refuse_weights(folder)
    _sweep(folder, "model*.safetensors")
    sizes: dict[str, int] = {}
    for spec in specs.values():
        sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.nbytes
    most = max(sizes, key=lambda dtype: sizes[dtype])
    # transformers writes "dtype" since 4.56 and reads both.
    words = {key: most for key in ("torch_dtype", "dtype") if key in hf_config} or {"torch_dtype": most}

    def carry() -> list[str]:
        names = carry_files(beside, folder)
        write_json(folder / "config.json", {**hf_config, **words})
        return names

    with hugging_face_folder(folder, specs) as put:
        yield put, carry


def _sweep(folder: Path, name: str) -> None:
    """Remove the temporary files that a killed conversion to the same place left."""
    for leftover in folder.glob(f".{name}.*.tmp"):
        leftover.unlink()
