"""make_tiny_model: write a Hugging Face folder with a small random model and a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindrlhf.commands.flags import Parser, command
from mindrlhf.commands.tiny_tokenizer import Voice, smallest, voice_of, write_tokenizer
from mindrlhf.models import ModelFamily, families, get_family
from mindrlhf.models.family import TINY_HEAD
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import write_json

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

# Every file that a tiny model may have; which of them depends on the family.
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
)


def main(argv: Sequence[str]) -> int:
    """Parse the command line and write the folder."""
    arguments = parser().parse_args(argv)
    make_tiny(
        arguments.output_path,
        arguments.family,
        vocab_size=arguments.vocab_size,
        hidden_size=arguments.hidden_size,
        layers=arguments.layers,
        seed=arguments.seed,
        variant=arguments.variant,
    )
    return 0


def make_tiny(
    folder: Path,
    family: str,
    *,
    vocab_size: int = 2048,
    hidden_size: int = 128,
    layers: int = 4,
    seed: int = 0,
    variant: str | None = None,
) -> None:
    """Write files of `FILES` of a random model of `family` to `folder`, the same bytes for the same arguments.

    variant: a published form of the family other than its usual one. Raises UserError when the sizes are impossible,
    the variant is unknown, or `folder` holds other files than `FILES`.
    """
    from mindrlhf.checkpoint.store import save_weights

    known = get_family(family)
    voice = voice_of(known.tokenizer_kind, known.template)
    _check_sizes(smallest(known.tokenizer_kind, voice), vocab_size, hidden_size, layers)
    _check_folder(folder)
    shapes = _shapes(known, vocab_size, hidden_size, layers, variant)
    tokenizer, written = write_tokenizer(folder, known.tokenizer_kind, voice, vocab_size, "auto_map" in shapes)
    config = {**shapes, **_more_words(voice, tokenizer)}
    weights = random_weights(_tensors(known, config), config, seed)
    weights.update({name: array.astype("float32") for name, array in known.constants(config).items()})

    save_weights(weights, folder / "model.safetensors", for_hugging_face=True)
    tokens = {key: value for key, value in config.items() if key.endswith("_token_id")}
    turns = {key: tokenizer.token_to_id(token) for key, token in voice.in_generation.items()}
    told = {"do_sample": False, **tokens, **turns, "transformers_version": config["transformers_version"]}
    write_json(folder / "generation_config.json", told)
    write_json(folder / "config.json", config)
    for name in set(FILES) - written - {"model.safetensors", "generation_config.json", "config.json"}:
        (folder / name).unlink(missing_ok=True)
    count = sum(array.size for array in weights.values())
    what = f"{family}, {variant}" if variant else family
    print(f"{folder}: {what}, {layers} layers of {hidden_size}, {vocab_size} tokens, {count:,} parameters")


def _shapes(family: ModelFamily, vocab_size: int, hidden_size: int, layers: int, variant: str | None) -> dict[str, Any]:
    shapes = family.tiny_config(vocab_size, hidden_size, layers)
    if variant is None:
        return shapes
    if variant not in family.tiny_variants:
        others = ", ".join(family.tiny_variants) or "none"
        raise UserError(f"--variant {variant!r} is not known of {family.name}; its variants: {others}")
    return family.tiny_variants[variant](shapes)


def _more_words(voice: Voice, tokenizer: Tokenizer) -> dict[str, Any]:
    """What config.json says besides the shapes: ids of special tokens, and how it was saved."""
    from importlib.metadata import version

    end = voice.roles["eos_token"]
    return {
        "use_cache": True,
        "bos_token_id": None if voice.bos is None else tokenizer.token_to_id(voice.bos),
        "eos_token_id": [tokenizer.token_to_id(token) for token in voice.ends] or tokenizer.token_to_id(end),
        "pad_token_id": tokenizer.token_to_id(voice.roles["pad_token"]),
        "torch_dtype": "float32",
        "transformers_version": version("transformers"),
    }


def _tensors(family: ModelFamily, config: Mapping[str, Any]) -> Iterable[tuple[str, tuple[int, ...]]]:
    return (item for group in family.tensors(config) for item in group.hf.items())


def random_weights(
    tensors: Iterable[tuple[str, tuple[int, ...]]], config: Mapping[str, Any], seed: int
) -> dict[str, np.ndarray]:
    """Float32 weights as transformers draws them: normal of initializer_range, norms 1, biases and the pad row 0."""
    import numpy as np

    rng = np.random.default_rng(seed)
    deviation = config.get("initializer_range", 0.02)
    weights = {}
    for name, shape in tensors:
        if len(shape) == 1:
            weights[name] = np.full(shape, 0.0 if name.endswith(".bias") else 1.0, np.float32)
        else:
            weights[name] = (rng.standard_normal(shape) * deviation).astype(np.float32)
        if "embed" in name:
            weights[name][config["pad_token_id"]] = 0.0
    return weights


def parser() -> Parser:
    """The command line."""
    flags = command("make_tiny_model.py", __doc__)
    output = flags.add_argument_group("output")
    output.add_argument(
        "--output_path", metavar="DIR", type=Path, required=True, help="folder to write: new, empty or an earlier one"
    )
    model = flags.add_argument_group("model")
    model.add_argument("--family", choices=sorted(families()), required=True, help="architecture of the model")
    others = [f"{name}: {', '.join(each.tiny_variants)}" for name, each in families().items() if each.tiny_variants]
    variants = "; ".join(others)
    model.add_argument("--variant", metavar="NAME", help=f"another published form of the family ({variants})")
    model.add_argument("--vocab_size", metavar="N", type=int, default=2048, help="rows of the embedding")
    model.add_argument("--hidden_size", metavar="N", type=int, default=128, help="a multiple of 64")
    model.add_argument("--layers", metavar="N", type=int, default=4, help="number of layers")
    model.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the weights")
    return flags


def _check_sizes(fewest: int, vocab_size: int, hidden_size: int, layers: int) -> None:
    if vocab_size < fewest:
        raise UserError(f"--vocab_size {vocab_size} is too small: bytes and special tokens alone are {fewest}")
    if hidden_size < 1 or hidden_size % (2 * TINY_HEAD):
        raise UserError(f"--hidden_size {hidden_size} is not a positive multiple of {2 * TINY_HEAD}")
    if layers < 1:
        raise UserError(f"--layers {layers} leaves no model: give 1 or more")


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_path {folder} is a file: name a folder")
    foreign = sorted(path.name for path in folder.glob("*") if path.name not in FILES)
    if foreign:
        raise UserError(f"--output_path {folder} holds {foreign[0]}, which is not of a tiny model: name a new folder")
