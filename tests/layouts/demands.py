"""What a layout demands of parameters, told by their names alone, and of what is sent: written apart from the code that
is tested."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
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
STATES = ("adam_m.", "adam_v.", "accu_grads.")


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
    """Of a parameter on `rank`, whose stage is data_parallel x context_parallel x model_parallel workers in a row."""
    model = layout.model_parallel  # type: ignore[attr-defined]
    workers = layout.data_parallel * layout.context_parallel * model  # type: ignore[attr-defined]
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


def reductions(names: Iterable[str], full: Mapping[str, Sequence[int]], layout: object, rank: int) -> dict[str, list]:
    """Parameter -> [kind, ranks] of the one sum of its gradient over workers; left out where no other holds a copy.

    full: parameter -> its shape, undivided.
    """
    rules = {name: demand(name, full[name], layout, rank) for name in names}
    return {
        name: ["ReduceScatter" if rule.shared > 1 else "AllReduce", list(rule.group)]
        for name, rule in rules.items()
        if len(rule.group) > 1
    }


def redistributions(layout: object, stage: int, layers: int, routed: bool) -> tuple[int, int, int]:
    """How many gathers between operators a stage of `layers` needs: (of figures of pairs, of rows along the sequence,
    of numbers of scored tokens). The second have a gradient each, of the last every other.

    Of the outputs, log-probs and figures, over data_parallel; in a pipeline its last stage has only the first. Where
    the sequence is divided, as always with experts (`routed`) over model_parallel, before every matrix whose rows are
    (q, k and v; of a dense layer gate and up) and the head; under context_parallel also for keys and values of every
    layer, for the hidden states from which the scored are taken, and in each chunk for their log-probs and mean logits.
    """
    data, model, stages = layout.data_parallel, layout.model_parallel, layout.pipeline_stage  # type: ignore[attr-defined]
    last = stage == stages - 1
    outputs = 0 if not last or data == 1 else 2 if stages == 1 else 1
    divided = layout.sequence_parallel or (routed and model > 1)  # type: ignore[attr-defined]
    sequences = layers * (1 if routed else 2) + last if divided else 0
    long = layout.context_parallel > 1  # type: ignore[attr-defined]
    return outputs, sequences + long * (2 * layers + last), 2 * (long and last)


def beside_parameters(collectives: Sequence[Mapping], shapes: Sequence[Sequence[int]]) -> list[Mapping]:
    """What is sent that is no parameter and no gradient of one; `shapes`: of parameters, on a worker."""
    return [one for one in collectives if one["sent"] not in shapes and one["received"] not in shapes]
