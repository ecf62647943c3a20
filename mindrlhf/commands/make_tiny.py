"""make_tiny_model: write a Hugging Face folder with a small random model and a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindrlhf.commands.flags import Parser, command
from mindrlhf.data.synthetic import preference_rows
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import write_json, write_text

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

HEAD_SIZE = 32
POSITIONS = 4096
CORPUS_ROWS = 1500
BYTES = 256
# The split of Qwen2's tokenizer; longer tokens than this would be whole clauses of our narrow corpus.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LONGEST_TOKEN = 15

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

# What distinguishes the families: `config` is copied into config.json, `biases` are the linear layers that have one.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {
        "config": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "rms_norm_eps": 1.0e-6,
            "rope_theta": 1000000.0,
            "use_sliding_window": False,
            "sliding_window": POSITIONS,
            "max_window_layers": 28,
        },
        "biases": ("q_proj", "k_proj", "v_proj"),
        "specials": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        "roles": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "bos_in_config": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "chat_template": CHATML,
    },
    "llama": {
        "config": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "rms_norm_eps": 1.0e-5,
            "rope_theta": 500000.0,
            "rope_scaling": None,
            "attention_bias": False,
            "mlp_bias": False,
            "pretraining_tp": 1,
        },
        "biases": (),
        "specials": (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        "roles": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|end_of_text|>"},
        "bos_in_config": "<|begin_of_text|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": LLAMA_CHAT,
    },
}
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
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
    )
    return 0


def make_tiny(
    folder: Path, family: str, *, vocab_size: int = 2048, hidden_size: int = 128, layers: int = 4, seed: int = 0
) -> None:
    """Write `FILES` of a random model of `family` to `folder`, the same bytes for the same arguments.

    Raises UserError when the sizes are impossible or `folder` holds other files than `FILES`.
    """
    from mindrlhf.checkpoint.store import save_weights

    _check_sizes(FAMILIES[family], vocab_size, hidden_size, layers)
    _check_folder(folder)
    tokenizer = train_tokenizer(vocab_size, FAMILIES[family]["specials"])
    config = model_config(family, tokenizer, vocab_size, hidden_size, layers)
    weights = random_weights(config, FAMILIES[family]["biases"], seed)

    save_weights(weights, folder / "model.safetensors", for_hugging_face=True)
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(family, tokenizer))
    write_json(folder / "special_tokens_map.json", _special_tokens(family))
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version")}
    write_json(folder / "generation_config.json", {"do_sample": False, **tokens})
    write_json(folder / "config.json", config)
    count = sum(array.size for array in weights.values())
    print(f"{folder}: {family}, {layers} layers of {hidden_size}, {vocab_size} tokens, {count:,} parameters")


def train_tokenizer(vocab_size: int, specials: Sequence[str]) -> Tokenizer:
    """Train a byte-level BPE of at most `vocab_size` tokens on the synthetic corpus; `specials` get the last ids."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def model_config(family: str, tokenizer: Tokenizer, vocab_size: int, hidden_size: int, layers: int) -> dict[str, Any]:
    """config.json of a model of these sizes, with the keys that published checkpoints of the family carry."""
    from importlib.metadata import version

    fields = FAMILIES[family]
    heads = hidden_size // HEAD_SIZE
    return {
        **fields["config"],
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "hidden_act": "silu",
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "use_cache": True,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.token_to_id(fields["bos_in_config"]),
        "eos_token_id": tokenizer.token_to_id(fields["roles"]["eos_token"]),
        "pad_token_id": tokenizer.token_to_id(fields["roles"]["pad_token"]),
        "torch_dtype": "float32",
        "transformers_version": version("transformers"),
    }


def random_weights(config: Mapping[str, Any], biases: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Float32 weights as transformers draws them: normal of initializer_range, norms 1, biases and the pad row 0."""
    import numpy as np

    hidden, inner = config["hidden_size"], config["intermediate_size"]
    narrow = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    linears = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * config["initializer_range"]).astype(np.float32)

    weights = {"model.embed_tokens.weight": normal(config["vocab_size"], hidden)}
    weights["model.embed_tokens.weight"][config["pad_token_id"]] = 0.0
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, shape in linears.items():
            weights[f"{prefix}.{name}.weight"] = normal(*shape)
            if name.split(".")[1] in biases:
                weights[f"{prefix}.{name}.bias"] = np.zeros(shape[0], np.float32)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{name}.weight"] = np.ones(hidden, np.float32)
    weights["model.norm.weight"] = np.ones(hidden, np.float32)
    weights["lm_head.weight"] = normal(config["vocab_size"], hidden)
    return weights


def parser() -> Parser:
    """The command line."""
    flags = command("make_tiny_model.py", __doc__)
    output = flags.add_argument_group("output")
    output.add_argument(
        "--output_path", metavar="DIR", type=Path, required=True, help="folder to write: new, empty or an earlier one"
    )
    model = flags.add_argument_group("model")
    model.add_argument("--family", choices=sorted(FAMILIES), required=True, help="architecture of the model")
    model.add_argument("--vocab_size", metavar="N", type=int, default=2048, help="rows of the embedding")
    model.add_argument("--hidden_size", metavar="N", type=int, default=128, help="a multiple of 64")
    model.add_argument("--layers", metavar="N", type=int, default=4, help="number of layers")
    model.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the weights")
    return flags


def _check_sizes(fields: Mapping[str, Any], vocab_size: int, hidden_size: int, layers: int) -> None:
    smallest = BYTES + len(fields["specials"])
    if vocab_size < smallest:
        raise UserError(f"--vocab_size {vocab_size} is too small: bytes and special tokens alone are {smallest}")
    if hidden_size < 1 or hidden_size % (2 * HEAD_SIZE):
        raise UserError(f"--hidden_size {hidden_size} is not a positive multiple of {2 * HEAD_SIZE}")
    if layers < 1:
        raise UserError(f"--layers {layers} leaves no model: give 1 or more")


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_path {folder} is a file: name a folder")
    foreign = sorted(path.name for path in folder.glob("*") if path.name not in FILES)
    if foreign:
        raise UserError(f"--output_path {folder} holds {foreign[0]}, which is not of a tiny model: name a new folder")


def _texts() -> Iterator[str]:
    for row in preference_rows(CORPUS_ROWS, 0, "corpus"):
        yield "system\nuser\nassistant\n"
        yield from row.values()


def _special_tokens(family: str) -> dict[str, Any]:
    fields = FAMILIES[family]
    return {**fields["roles"], "additional_special_tokens": list(fields["specials"])}


def _tokenizer_config(family: str, tokenizer: Tokenizer) -> dict[str, Any]:
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = {
        str(index): {flag: getattr(token, flag) for flag in flags}
        for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    return {
        **_special_tokens(family),
        "bos_token": FAMILIES[family]["roles"].get("bos_token"),
        "unk_token": None,
        "added_tokens_decoder": added,
        "chat_template": FAMILIES[family]["chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": POSITIONS,
        "split_special_tokens": False,
        "tokenizer_class": FAMILIES[family]["tokenizer_class"],
    }
