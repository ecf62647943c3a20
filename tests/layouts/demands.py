"""What a layout demands of each parameter, told by its name alone: written apart from the code that is tested."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Outputs are divided along axis 0, inputs along axis 1: Megatron-LM, arXiv 1909.08053, section 3.
DIVIDED = (
    (r"model\.tok_embeddings\.embedding_weight|lm_head\.weight", "vocabulary", 0),
    (r".*\.attention\.w[qkv]\.(weight|bias)|.*\.feed_forward\.w[13]\.weight", "model", 0),
    (r".*\.attention\.wo\.weight|.*\.feed_forward\.w2\.weight", "model", 1),
    (r"embedding\.word_embeddings\.weight|output_layer\.weight", "model", 0),
    (r".*\.linear_qkv\.(weight|bias)|.*\.linear_fc1\.weight", "model", 0),
    (r".*\.linear_proj\.weight|.*\.linear_fc2\.weight", "model", 1),
    (r".*\.experts\.weight[12]", "experts", 0),
)
WHOLE = re.compile(r".*norm.*\.weight|.*\.router\.weight")
# MindFormers' older classes keep these on every worker whatever the optimizer does.
NEVER_SHARED = re.compile(r"model\..*norm.*\.weight|model\..*\.bias")


@dataclass(frozen=True)
class Demand:
    """axis: which one is divided (None: none), into `parts`; shared: into how many more parts axis 0 is divided among
    the workers that hold the same; group: these workers, of the one that was compiled."""

    axis: int | None
    parts: int
    shared: int
    group: tuple[int, ...]

    def local(self, shape: Sequence[int], shared: bool = True) -> list[int]:
        """What one worker holds of a parameter of that shape, or what it computes with."""
        found = list(shape)
        if self.axis is not None:
            found[self.axis] //= self.parts
        found[0] //= self.shared if shared else 1
        return found

    @property
    def copies(self) -> int:
        """How many workers hold the very same elements."""
        return len(self.group) // self.shared


def demand(name: str, shape: Sequence[int], layout: object, rank: int) -> Demand:
    """Of a parameter on `rank`, whose stage is data_parallel x model_parallel workers in a row."""
    data, model = layout.data_parallel, layout.model_parallel  # type: ignore[attr-defined]
    workers = data * model
    axis, parts = None, 1
    for pattern, over, found in DIVIDED:
        if re.fullmatch(pattern, name):
            whole = over == "vocabulary" and layout.vocab_emb_dp  # type: ignore[attr-defined]
            parts = 1 if whole else layout.expert_parallel if over == "experts" else model  # type: ignore[attr-defined]
            axis = None if parts == 1 else found
            break
    else:
        assert WHOLE.fullmatch(name), f"no rule for {name}"
    first = rank // workers * workers
    group = tuple(other for other in range(first, first + workers) if (other - rank) % parts == 0)
    rows = shape[0] // parts if axis == 0 else shape[0]
    divides = layout.optimizer_shard and rows % len(group) == 0  # type: ignore[attr-defined]
    return Demand(axis, parts, len(group) if divides and not NEVER_SHARED.fullmatch(name) else 1, group)
