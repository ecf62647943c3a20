"""What convert_weight.py writes loads in transformers and gives our logits; what transformers saves is read by us.

transformers has no class for Baichuan2 and for GLM-4's older form (ChatGLMModel): their published folders bring their
own code, which nothing here runs. Their logits are compared with PyTorch in tests/golden.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_models import arrays_of, bits, config_of, converted, hf_folder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mindspore import Tensor, nn, ops  # noqa: E402

from mindrlhf.cells.scoring import SegmentMask  # noqa: E402
from mindrlhf.checkpoint.find import find_weights  # noqa: E402
from mindrlhf.checkpoint.store import load_parameters, read_weights  # noqa: E402
from mindrlhf.models import BuildOptions, get_family  # noqa: E402

LENGTH, ROWS = 32, 2
CLOSE = 2e-5
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"rope_scaling": LLAMA3}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {}),
    ("qwen3", {"tie_word_embeddings": True}),
    ("qwen3_moe", {}),
    ("glm4", {}),
]


class Logits(nn.Cell):
    """(input_ids, position_ids, segment_ids (R,S)) -> logits (R,S,V)."""

    def __init__(self, backbone: nn.Cell, head: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.backbone, self.head, self.mask = backbone, head, SegmentMask(LENGTH)

    def construct(self, input_ids, position_ids, segment_ids):  # type: ignore[no-untyped-def]
        return ops.matmul(self.backbone(input_ids, position_ids, self.mask(segment_ids)), self.head().T)


def ours(name: str, place: Path, ids: np.ndarray) -> np.ndarray:
    family, weights = get_family(name), find_weights(place)
    config = json.loads((weights.folder / "config.json").read_text())
    model = family.build(family.from_hf_config(config, BuildOptions(seq_length=LENGTH)))
    arrays = family.hf_to_ms(read_weights(weights), config)
    load_parameters({parameter.name: parameter for parameter in model.get_parameters()}, arrays, place)
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    logits = Logits(family.backbone(model), family.head(model)).set_train(False)
    return logits(Tensor(ids), Tensor(positions), Tensor(np.ones_like(ids))).asnumpy()


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize(
    ("name", "words"), MODELS, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_an_export_loads_in_transformers_with_our_logits(tmp_path: Path, name: str, words: dict[str, Any]) -> None:
    source = hf_folder(tmp_path / "hf", name, **words)
    merged = converted(source, tmp_path / "ms.ckpt")
    back = converted(merged, tmp_path / "back", "--reversed", "True")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        back, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert model.dtype == torch.float32
    assert type(model).__name__ == json.loads((source / "config.json").read_text())["architectures"][0]
    ids = np.random.default_rng(0).integers(0, 96, (ROWS, LENGTH)).astype(np.int32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids).long()).logits.numpy()
    for place in (merged, source, back):
        difference = np.abs(ours(name, place, ids) - theirs).max() / np.abs(theirs).max()
        print(f"{name} {words}: {difference:.1e}")
        assert difference < CLOSE


@pytest.mark.parametrize(("dtype", "word"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_an_export_in_16_bits_loads_in_them(tmp_path: Path, dtype: str, word: str) -> None:
    merged = converted(hf_folder(tmp_path / "hf", "qwen2"), tmp_path / "ms", "--dtype", dtype)
    back = converted(merged, tmp_path / "back", "--reversed", "True")
    model = transformers.AutoModelForCausalLM.from_pretrained(back, torch_dtype="auto")
    assert model.dtype == getattr(torch, word)
    source = arrays_of("qwen2", config_of("qwen2"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, torch.from_numpy(source[name]).to(tensor.dtype)), name


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(("name", "words"), [("qwen2", {"tie_word_embeddings": True}), ("qwen3_moe", {}), ("glm4", {})])
def test_what_transformers_saves_is_converted(tmp_path: Path, name: str, words: dict[str, Any], safe: bool) -> None:
    source = hf_folder(tmp_path / "hf", name, **words)
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    model.save_pretrained(tmp_path / "saved", max_shard_size="200KB", safe_serialization=safe)
    weights = find_weights(tmp_path / "saved")
    assert (weights.format, len(weights.files) > 1) == ("safetensors" if safe else "bin", True)
    expected = bits(converted(source, tmp_path / "direct"))
    assert bits(converted(tmp_path / "saved", tmp_path / "ms")) == expected
    assert bits(converted(tmp_path / "ms", tmp_path / "back", "--reversed", "True")) == bits(source)


@pytest.mark.parametrize("source", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("target", ["float32", "bfloat16", "float16"])
def test_numbers_are_rounded_as_torch_rounds_them(source: str, target: str) -> None:
    from mindrlhf.commands.conversion import rounded

    random = np.random.default_rng(1)
    words = np.concatenate([random.integers(0, 1 << 32, 1 << 16), np.arange(0x38000000, 0x47000000, 0x800)])
    drawn = torch.from_numpy(words.astype(np.uint32).view(np.float32).copy())
    values = drawn.nan_to_num(0.0).to(getattr(torch, source))
    if target == "float16":
        values = values[values.float().abs() < 65504]
    expected = values.to(getattr(torch, target))
    given = values.float().numpy().astype(np.dtype(source))
    found = rounded(given, target, "x")
    assert np.array_equal(found.astype(np.float32), expected.float().numpy())
    assert np.array_equal(np.signbit(found.astype(np.float32)), np.signbit(expected.float().numpy()))
