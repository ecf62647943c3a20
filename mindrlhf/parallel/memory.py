"""What a device holds while it trains, in bytes, from sizes alone: no MindSpore, no weights, no device.

Shape letters: R rows, S tokens of a row, T scored tokens of a row, H hidden, N heads, D head size, I inner width, V
vocabulary, E experts; t = R S / cp tokens that a device works on in one pass; b bytes of an element that products read.

It counts what lives from a forward pass to its backward pass and from step to step, and the largest of what comes and
goes. Gradients grow while activations shrink, so that their sum errs on the high side; what the allocator loses between
blocks, and the buffers of the runtime and of communication, are not in it: a plan keeps a reserve for these.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mindrlhf.config.schema import Config
from mindrlhf.parallel.layout import Layout, ModelShape
from mindrlhf.parallel.parameters import FLOAT32, PLAIN, Slice, Traits, stage_slices, vocabulary_parts
from mindrlhf.runtime.errors import UserError

ROWS_PER_PAIR = 2
CHUNK = 512  # scored tokens that meet the vocabulary at once, of cells/scoring.py
ADAM_STATES = 2
COMPUTE_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Work:
    """What a step computes.

    pairs: of a global batch. seq_length: S. scored: T. micro_pairs: pairs per worker and pass, None for one pass.
    compute_bytes: b. recompute: whether the backward pass computes every layer anew. reference_bytes: bytes of an
    element of a frozen copy of the model that is held too, 0 where there is none. evaluates: whether the run evaluates
    too. balances: whether it minimises a router's load-balance loss too.
    """

    pairs: int
    seq_length: int
    scored: int
    micro_pairs: int | None = None
    compute_bytes: int = 2
    recompute: bool = False
    reference_bytes: int = 0
    evaluates: bool = False
    balances: bool = False

    @classmethod
    def of(cls, config: Config, seq_length: int, scored: int | None = None) -> Work:
        """The work of a run on Ascend, on rows of `seq_length` tokens, `scored` of them (all, if None) to be scored."""
        compute_bytes = COMPUTE_BYTES[config.model.dtype]
        # A reference that follows the policy is kept as exact as the policy.
        reference_bytes = FLOAT32 if config.rlhf.sync_ref_model else compute_bytes
        return cls(
            pairs=config.train.global_batch_pairs,
            seq_length=seq_length,
            scored=seq_length if scored is None else scored,
            micro_pairs=config.train.micro_batch_pairs,
            compute_bytes=compute_bytes,
            recompute=config.train.recompute,
            reference_bytes=reference_bytes if config.rlhf.reference == "online" else 0,
            evaluates=bool(config.data.eval),
            balances=bool(config.model.aux_loss_coef),
        )

    @property
    def beside(self) -> str | None:
        """What a run does beside training, which it cannot in a pipeline; None where it is nothing."""
        if self.reference_bytes:
            return "rlhf.reference=online"
        return "--eval_dataset" if self.evaluates else "model.aux_loss_coef" if self.balances else None

    def passes(self, layout: Layout) -> int:
        """Forward passes of a step: micro-batches of a pipeline, or of an accumulated step."""
        if layout.semi_auto or not self.micro_pairs:
            return layout.micro_batch_num
        return self.pairs // layout.data_parallel // self.micro_pairs

    def rows(self, layout: Layout) -> int:
        """R: rows that a device works on in one pass."""
        return ROWS_PER_PAIR * self.pairs // layout.data_parallel // self.passes(layout)

    def check(self, layout: Layout) -> None:
        """UserError where a step under `layout` cannot be cut so."""
        layout.check_batch(self.pairs)
        share = self.pairs // layout.data_parallel
        if not self.micro_pairs:
            return
        if share % self.micro_pairs:
            raise UserError(
                f"train.micro_batch_pairs is {self.micro_pairs}, which must divide the {share} pairs of each of "
                f"{layout.data_parallel} workers"
            )
        if layout.semi_auto and share != self.micro_pairs:
            raise UserError(
                f"train.micro_batch_pairs is {self.micro_pairs}, and a step of several passes is not supported with "
                f"model_parallel, context_parallel, pipeline_stage or optimizer_shard"
            )


@dataclass(frozen=True)
class StageMemory:
    """What each device of a pipeline stage holds, in bytes.

    parameters: elements of the slices it owns. weights: these, in float32. copies: weights gathered or cast for the
    products, from the forward pass to the backward pass. optimizer: both moments of AdamW. reference: the frozen copy.
    """

    stage: int
    layers: int
    parameters: int
    weights: int
    copies: int
    gradients: int
    optimizer: int
    activations: int
    reference: int

    @property
    def total(self) -> int:
        """All of it."""
        parts = (self.weights, self.copies, self.gradients, self.optimizer, self.activations, self.reference)
        return sum(parts)


def estimate(shape: ModelShape, layout: Layout, work: Work, traits: Traits = PLAIN) -> tuple[StageMemory, ...]:
    """The memory of a device of every pipeline stage. The layout fits the model and the work."""
    return tuple(_stage(shape, layout, work, traits, stage) for stage in range(layout.pipeline_stage))


def _stage(shape: ModelShape, layout: Layout, work: Work, traits: Traits, stage: int) -> StageMemory:
    layers = shape.layers // layout.pipeline_stage
    layer, beside = stage_slices(shape, layout, traits, work.compute_bytes, stage)
    held = layers * _held(layer) + _held(beside)
    return StageMemory(
        stage=stage,
        layers=layers,
        parameters=held,
        weights=FLOAT32 * held,
        copies=_copies(shape, layout, work, traits, layer, layers, stage),
        gradients=FLOAT32 * _gradients(layout, work, layer, beside, layers),
        optimizer=FLOAT32 * ADAM_STATES * held,
        activations=_activations(shape, layout, work, traits, stage),
        reference=work.reference_bytes * held,
    )


def _held(slices: Iterable[Slice]) -> int:
    return sum(item.held for item in slices)


def _copies(
    shape: ModelShape, layout: Layout, work: Work, traits: Traits, layer: list[Slice], layers: int, stage: int
) -> int:
    """Bytes of weights as the products read them: of a matrix W (n,k) of the compute type, both passes read W.

    A part that optimizer_shard divides is gathered, after its cast, and kept for the backward pass; one that is whole
    is cast. A recomputed layer does either once more, so that one layer's are there at a time. The embedding's table is
    not read again, and weights that are float32 anyhow are read where they lie.
    """
    total = (1 if work.recompute else layers) * sum(_copied(item) for item in layer)
    if stage == layout.pipeline_stage - 1:
        head = shape.vocab * shape.hidden // vocabulary_parts(shape, layout, traits)
        total += head * work.compute_bytes * (work.compute_bytes < FLOAT32 or layout.optimizer_shard)
        if traits.normalised_head:
            # The rows in float32, gathered, and once more divided by their lengths.
            total += head * FLOAT32 * (2 if layout.optimizer_shard else 1)
        elif shape.tied and layout.pipeline_stage > 1:
            # Sent by the first stage in every step.
            total += head * FLOAT32
    return total


def _copied(item: Slice) -> int:
    if item.shards == 1 and item.gathered_bytes == FLOAT32:
        return 0
    return item.whole * item.gathered_bytes


def _gradients(layout: Layout, work: Work, layer: list[Slice], beside: list[Slice], layers: int) -> int:
    """Elements: one set, all of which the norm needs before the update, and what passes before the last have summed.

    A pipeline sums before optimizer_shard divides (MindSpore's optimizer_level level1, the default).
    """
    held = layers * _held(layer) + _held(beside)
    if layout.pipeline_stage > 1:
        return held + sum(layers * item.whole for item in layer) + sum(item.whole for item in beside)
    return 2 * held if work.passes(layout) > 1 else held


def _activations(shape: ModelShape, layout: Layout, work: Work, traits: Traits, stage: int) -> int:
    """Bytes: of the layers for every micro-batch in flight, of one layer computed anew, of mask and head.

    Of pipeline stage i, pp - i micro-batches are in flight (1F1B: Narayanan et al., arXiv 2104.04473, section 2.2).
    A recomputed layer keeps its input alone, b t H (Korthikanti et al., arXiv 2205.05198, section 5).
    """
    rows = work.rows(layout)
    tokens, b = rows * work.seq_length // layout.context_parallel, work.compute_bytes
    split = layout.model_parallel if splits_sequence(shape, layout) else 1
    full = layer_activations(shape, layout, traits, tokens, b)
    layers = shape.layers // layout.pipeline_stage
    kept = layers * (b * tokens * shape.hidden // split if work.recompute else full)
    mask = tokens * work.seq_length
    if traits.alibi:
        mask += b * mask * shape.heads // layout.model_parallel
    total = min(work.passes(layout), layout.pipeline_stage - stage) * (kept + mask)
    if work.recompute:
        total += full
    if stage == layout.pipeline_stage - 1:
        total += _head_activations(shape, layout, work, traits, tokens // split)
    return total


def splits_sequence(shape: ModelShape, layout: Layout) -> bool:
    """Whether hidden states between matrices are divided; GPTModel asks it of experts beside divided matrices."""
    return layout.sequence_parallel or (shape.experts > 0 and layout.model_parallel > 1)


def layer_activations(shape: ModelShape, layout: Layout, traits: Traits, tokens: int, b: int) -> int:
    """Bytes of one layer that its backward pass reads, for t = `tokens`, its own ones under context_parallel.

    After Korthikanti et al., arXiv 2205.05198, section 4, with RMSNorm in float32, grouped queries, flash attention,
    SwiGLU and no dropout; mp = model_parallel:

        two norms      2 (4 + b) t H          their inputs in float32, their outputs, which the matrices multiply
        q, k, v        b t (N + 2 Nkv) D / mp
        attention      2 b t N D / mp         its output for itself, and with heads merged for the next matrix
        softmax        64 t N / mp            largest value and sum of each row, 8 float32 each
        MLP            4 b t I / mp           gate, silu(gate), up, their product
        query and key norms                   4 t (N + Nkv) D / mp
        keys and values of the whole rows     2 b t (cp - 1) Nkv D / mp

    Sequence parallel: 2 4 t H / mp + 2 b t H, the outputs being gathered. A mixture of experts, k of E per token, has
    t / mp (8 E + k b (4 H + 4 I)) in place of its MLP: the router's logits and probabilities in float32, tokens before
    and after the exchange, both ways, as if every expert had as many.
    """
    mp, hidden = layout.model_parallel, shape.hidden
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    total = b * tokens * (3 * queries + 2 * keys * layout.context_parallel) // mp + 64 * tokens * shape.heads // mp
    if traits.qk_norm:
        total += FLOAT32 * tokens * (queries + keys) // mp
    if splits_sequence(shape, layout):
        gathered = 1 if shape.experts else 2
        total += 2 * FLOAT32 * tokens * hidden // mp + b * tokens * hidden * gathered
        total += b * tokens * hidden * (2 - gathered) // mp
    else:
        total += 2 * (FLOAT32 + b) * tokens * hidden
    if shape.experts:
        per_choice = b * (4 * hidden + 4 * shape.intermediate)
        return total + tokens * (2 * FLOAT32 * shape.experts + shape.experts_per_token * per_choice) // mp
    return total + 4 * b * tokens * shape.intermediate // mp


def _head_activations(shape: ModelShape, layout: Layout, work: Work, traits: Traits, tokens: int) -> int:
    """Bytes from the last layer to the loss: the final norm, scored states, one chunk of logits (cells/scoring.py).

    A chunk of n tokens: without semi-auto parallel its logits in the compute type, in float32, and the softmax's two,
    and beside them the head's gradient twice, an update being no sum in place. Else logits, centred, exponentials, the
    target's row and its product, and of these the gradients. The head's product in the backward pass is anew.
    """
    rows, b = work.rows(layout), work.compute_bytes
    width = shape.vocab // vocabulary_parts(shape, layout, traits)
    states = (FLOAT32 + b) * tokens * shape.hidden + (FLOAT32 + b) * rows * work.scored * shape.hidden
    if layout.context_parallel > 1:
        states += b * rows * work.seq_length * shape.hidden  # of whole rows, from which the scored are taken
    if layout.semi_auto:
        chunk = rows * min(-(-work.scored // layout.context_parallel), max(1, CHUNK // rows))
        return states + chunk * width * (b + 5 * FLOAT32) + width * shape.hidden * b
    chunk = min(rows * work.scored, CHUNK)
    return states + chunk * width * (2 * b + 2 * FLOAT32) + 2 * FLOAT32 * width * shape.hidden
