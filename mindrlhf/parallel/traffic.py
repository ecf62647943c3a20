"""What devices send one another in a step, and how long a step takes: an estimate from sizes and published peaks.

Shape letters as in `memory`; t = R S / cp here counts a worker's tokens of the whole step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from mindrlhf.parallel.layout import Layout, ModelShape
from mindrlhf.parallel.memory import CHUNK, ROWS_PER_PAIR, Work, splits_sequence
from mindrlhf.parallel.parameters import FLOAT32, PLAIN, Slice, Traits, stage_slices, vocabulary_parts

OPTIMIZER_PASSES = 7  # AdamW reads weight, gradient and moments, writes weight and moments
BACKWARD = 2  # products of a backward pass to one of the forward pass
ATTENTION_BACKWARD = 2.5  # flash attention computes its products anew: 5 to 2 (arXiv 2205.14135, section 3)


@dataclass(frozen=True)
class Profile:
    """A device and its links; the defaults are nominal values of an Atlas 800T A2 (Ascend 910B), measured on none.

    flops: of 16-bit products a second. efficiency: the share of them that training reaches. memory_bandwidth,
    node_bandwidth, network_bandwidth: bytes a second of a device's memory, and one way to the others of its node (HCCS)
    and of other nodes (RoCE). link_efficiency: the share of these that collectives reach. latency: seconds of a
    collective. hidden: the share of the weights' and gradients' traffic that passes while the device computes.
    """

    flops: float = 376e12
    efficiency: float = 0.45
    memory_bandwidth: float = 1.6e12
    node_devices: int = 8
    node_bandwidth: float = 196e9
    network_bandwidth: float = 25e9
    link_efficiency: float = 0.7
    latency: float = 20e-6
    hidden: float = 0.5


ATLAS_A2 = Profile()


@dataclass(frozen=True)
class Traffic:
    """`count` collectives of one kind over groups of `group` ranks, `stride` apart.

    payload: bytes of the full tensors of all of them: what an AllGather gives, a ReduceScatter takes, an AllReduce
    sums, a device sends in an AlltoAll or a Send. `what`: tensors, weights or gradients, for the report. overlaps: none
    of the computing that follows at once waits for it.
    """

    kind: str
    what: str
    group: int
    stride: int
    count: int
    payload: int
    overlaps: bool = False

    @property
    def moved(self) -> float:
        """Bytes that a device sends, by ring or pairwise."""
        if self.kind == "Send":
            return self.payload
        rounds = 2 if self.kind == "AllReduce" else 1
        return rounds * self.payload * (self.group - 1) / self.group

    def seconds(self, profile: Profile) -> float:
        """The time of all of them, one after the other.

        Where a group spans nodes, k of its ranks in each, sums and copies pass within the nodes first, and each rank's
        1/k of the payload between the nodes; what goes from rank to rank passes the network but for its own node's.
        """
        within = profile.node_bandwidth * profile.link_efficiency
        between = profile.network_bandwidth * profile.link_efficiency
        near = min(self.group, max(1, profile.node_devices // self.stride))
        wait = self.count * profile.latency
        if self.kind == "Send":
            return wait + self.payload / (within if self.stride < profile.node_devices else between)
        if near == self.group:
            return wait + self.moved / within
        if self.kind == "AlltoAll":
            share = self.payload / self.group
            return wait + share * (near - 1) / within + share * (self.group - near) / between
        nodes = self.group / near
        rounds = 2 if self.kind == "AllReduce" else 1
        inside, across = (near - 1) / near / within, (nodes - 1) / nodes / near / between
        return wait + rounds * self.payload * (inside + across)


@dataclass(frozen=True)
class StageTime:
    """A step of one pipeline stage.

    useful: products of the policy's forward and backward pass that no other device repeats. Seconds: computing,
    waiting (for collectives), updating.
    """

    stage: int
    collectives: tuple[Traffic, ...]
    useful: float
    computing: float
    waiting: float
    overlapping: float
    updating: float

    @property
    def moved(self) -> float:
        """Bytes that a device sends."""
        return sum(item.moved for item in self.collectives)


@dataclass(frozen=True)
class StepTime:
    """A step: its stages, its seconds, and which share of the devices' peak the useful products are."""

    stages: tuple[StageTime, ...]
    seconds: float
    share_of_peak: float

    @property
    def moved(self) -> float:
        """Bytes that a device of the busiest stage sends."""
        return max(stage.moved for stage in self.stages)


def step_time(
    shape: ModelShape,
    layout: Layout,
    work: Work,
    traits: Traits = PLAIN,
    profile: Profile = ATLAS_A2,
) -> StepTime:
    """The time of a step. The layout fits the model and the work.

    The slowest stage sets the pace of a pipeline, which idles (pp - 1) / (m + pp - 1) of its time with m micro-batches
    (Narayanan et al., arXiv 2104.04473, section 2.2).
    """
    stages = tuple(_Stage(shape, layout, work, traits, profile, stage).time() for stage in range(layout.pipeline_stage))
    parts = work.passes(layout) if layout.pipeline_stage > 1 else 1
    fill = (parts + layout.pipeline_stage - 1) / parts
    paced = fill * max(stage.computing + stage.waiting for stage in stages)
    seconds = paced + max(stage.overlapping + stage.updating for stage in stages)
    useful = sum(stage.useful for stage in stages) * layout.per_stage
    return StepTime(stages, seconds, useful / (seconds * profile.flops * layout.world))


@dataclass(frozen=True)
class _Stage:
    shape: ModelShape
    layout: Layout
    work: Work
    traits: Traits
    profile: Profile
    stage: int

    @cached_property
    def rows(self) -> int:
        return ROWS_PER_PAIR * self.work.pairs // self.layout.data_parallel

    @cached_property
    def layers(self) -> int:
        return self.shape.layers // self.layout.pipeline_stage

    @cached_property
    def is_last(self) -> bool:
        return self.stage == self.layout.pipeline_stage - 1

    @cached_property
    def tokens(self) -> int:
        """t."""
        return self.rows * self.work.seq_length // self.layout.context_parallel

    @cached_property
    def states(self) -> int:
        """Bytes of t hidden states in the compute type."""
        return self.tokens * self.shape.hidden * self.work.compute_bytes

    @cached_property
    def forward(self) -> int:
        """How often a layer's forward pass is computed: a recomputed layer and a frozen copy pass once more each."""
        return 1 + self.work.recompute + (self.work.reference_bytes > 0)

    @cached_property
    def calls(self) -> int:
        """How often a layer is passed, forward and backward, in a step."""
        return self.work.passes(self.layout)

    def time(self) -> StageTime:
        profile = self.profile
        collectives = tuple(item for item in self._collectives() if item.group > 1)
        useful, done = self._flops()
        layer, beside = self._slices()
        held = self.layers * sum(item.held for item in layer) + sum(item.held for item in beside)
        waiting = sum(item.seconds(profile) for item in collectives if not item.overlaps)
        overlapping = sum(item.seconds(profile) for item in collectives if item.overlaps)
        return StageTime(
            stage=self.stage,
            collectives=collectives,
            useful=useful,
            computing=done / (profile.flops * profile.efficiency),
            waiting=waiting,
            overlapping=overlapping * (1 - profile.hidden),
            updating=held * FLOAT32 * OPTIMIZER_PASSES / profile.memory_bandwidth,
        )

    def _slices(self) -> tuple[list[Slice], list[Slice]]:
        return stage_slices(self.shape, self.layout, self.traits, self.work.compute_bytes, self.stage)

    def _flops(self) -> tuple[float, float]:
        """Floating-point operations of a step of one device: the useful ones, and all.

        2 for each weight that a token meets, and 4 S N D for its attention, whose masked half the kernel computes too.
        A backward pass is twice the forward pass. The head is computed once more in it; a recomputed layer too.
        """
        shape, layout, work = self.shape, self.layout, self.work
        tokens, mp = self.tokens, layout.model_parallel
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        mlp = 3 * shape.hidden * shape.intermediate * (shape.experts_per_token or 1)
        weights = 2 * (2 * shape.hidden * (queries + keys) + mlp + shape.hidden * shape.experts)
        matrices = self.layers * tokens * weights / mp
        attention = self.layers * tokens * 4 * work.seq_length * queries / mp
        useful = matrices * (1 + BACKWARD) + attention * (1 + ATTENTION_BACKWARD)
        done = useful + (work.recompute + (work.reference_bytes > 0)) * (matrices + attention)
        if self.is_last:
            head = 2.0 * self.rows * work.scored / layout.context_parallel * shape.vocab * shape.hidden
            useful += head * (1 + BACKWARD) / mp
            done += head * (2 + BACKWARD + (work.reference_bytes > 0)) / vocabulary_parts(shape, layout, self.traits)
        return useful, done

    def _collectives(self) -> Iterator[Traffic]:
        yield from self._of_layers()
        yield from self._of_context()
        yield from self._of_vocabulary()
        yield from self._of_experts()
        yield from self._of_pipeline()
        yield from self._of_parameters()

    def _of_layers(self) -> Iterator[Traffic]:
        """Of hidden states over model_parallel: after each of a layer's two blocks, and of its gradient before.

        Shoeybi et al., arXiv 1909.08053, section 3; sequence parallel: arXiv 2205.05198, section 4.2.2. Where not built
        on GPTModel, what a block gives is divided by rows and what the norm after it takes by positions, for which it
        is gathered.
        """
        mp, layers, forward = self.layout.model_parallel, self.layers, self.forward
        if not splits_sequence(self.shape, self.layout):
            times = 2 * layers * (forward + 1)
            yield Traffic("AllReduce", "tensors", mp, 1, times * self.calls, times * self.states)
            return
        # Experts take and give divided states.
        blocks = 1 if self.shape.experts else 2
        again = 0 if self.traits.fused else blocks
        for kind, times in (
            ("AllGather", (blocks + again) * forward + blocks),
            ("ReduceScatter", blocks * forward + blocks + again),
        ):
            yield Traffic(kind, "tensors", mp, 1, layers * times * self.calls, layers * times * self.states)

    def _of_context(self) -> Iterator[Traffic]:
        """Over context_parallel: a layer's keys and values, and their gradients; hidden states from which the scored
        are taken; and of each scored token two numbers and one gradient, chunk by chunk. Of a frozen copy its hidden
        states, and one number.
        """
        work, layout, cp = self.work, self.layout, self.layout.context_parallel
        rows, calls, mp = self.rows * work.seq_length * work.compute_bytes, self.calls, layout.model_parallel
        keys = rows * self.shape.kv_heads * self.shape.head_dim // mp
        yield Traffic(
            "AllGather",
            "tensors",
            cp,
            mp,
            2 * self.layers * self.forward * calls,
            2 * self.layers * self.forward * keys,
        )
        yield Traffic("ReduceScatter", "tensors", cp, mp, 2 * self.layers * calls, 2 * self.layers * keys)
        if self.is_last:
            states, numbers = rows * self.shape.hidden, FLOAT32 * self.rows * work.scored
            copies = int(work.reference_bytes > 0)
            for kind, passes, times in (("AllGather", 1 + copies, 2 + copies), ("ReduceScatter", 1, 1)):
                yield Traffic(kind, "tensors", cp, mp, passes * calls, passes * states)
                yield Traffic(kind, "tensors", cp, mp, times * self._chunks() * calls, times * numbers)

    def _chunks(self) -> int:
        """In how many parts a pass scores its tokens."""
        work, cp = self.work, self.layout.context_parallel
        return -(-work.scored // (cp * max(1, CHUNK // work.rows(self.layout))))

    def _of_vocabulary(self) -> Iterator[Traffic]:
        """Of divided embedding and head over model_parallel: what the first gives, and the gradient of what the second
        takes, in float32; and four numbers of each scored token and two of their gradients, chunk by chunk; a frozen
        copy's three.

        Under sequence parallel hidden states are gathered before the head, and by GPTModel divided behind the
        embedding.
        """
        mp, work, layout, fused = self.layout.model_parallel, self.work, self.layout, self.traits.fused
        wide = self.states // work.compute_bytes * FLOAT32
        divided = vocabulary_parts(self.shape, layout, self.traits) > 1
        by_sequence = splits_sequence(self.shape, layout)
        # A frozen copy's embedding gives the type of its weights.
        copy = self.states // work.compute_bytes * work.reference_bytes
        if divided and not (by_sequence and fused):
            for _ in range((self.stage == 0) + self.is_last):
                yield Traffic("AllReduce", "tensors", mp, 1, self.calls, wide)
            if copy:
                yield Traffic("AllReduce", "tensors", mp, 1, self.calls, copy)
        if by_sequence:
            behind = self.stage == 0 and divided and fused
            for here, payload in ((behind, wide), (self.is_last, self.states if fused else wide)):
                for kind in ("AllGather", "ReduceScatter") if here else ():
                    yield Traffic(kind, "tensors", mp, 1, self.calls, payload)
            if copy and behind:
                yield Traffic("ReduceScatter", "tensors", mp, 1, self.calls, copy)
            if copy:
                yield Traffic("AllGather", "tensors", mp, 1, self.calls, self.states if fused else wide)
        if divided and self.is_last:
            of_tokens = FLOAT32 * self.rows * work.scored // layout.context_parallel
            numbers = 6 + 3 * (copy > 0)
            yield Traffic("AllReduce", "tensors", mp, 1, numbers * self._chunks() * self.calls, numbers * of_tokens)

    def _of_experts(self) -> Iterator[Traffic]:
        """Tokens to their experts and back, k copies each, forward and backward, as if experts were chosen alike."""
        shape, layout, ep = self.shape, self.layout, self.layout.expert_parallel
        if not shape.experts:
            return
        times = 2 * self.layers * (self.forward + 1)
        payload = self.states // layout.model_parallel * shape.experts_per_token
        yield Traffic("AlltoAll", "tensors", ep, 1, times * self.calls, times * payload)

    def _of_pipeline(self) -> Iterator[Traffic]:
        """Hidden states to the next stage, their gradients to the one before."""
        layout = self.layout
        if layout.pipeline_stage == 1:
            return
        divided = splits_sequence(self.shape, layout)
        states = self.states // (layout.model_parallel if divided else 1)
        times = (self.stage > 0) + (not self.is_last)
        yield Traffic("Send", "tensors", 2, layout.per_stage, times * self.calls, times * states)

    def _of_parameters(self) -> Iterator[Traffic]:
        """Gradients, in float32, over the workers that have the same part; divided parts gathered before they are read,
        which is once a step, or twice of recomputed layers, and once of a frozen copy."""
        layer, beside = self._slices()
        for slices, times, readings in ((layer, self.layers, 1 + self.work.recompute), (beside, 1, 1)):
            for item in slices:
                count, whole = times * item.count, times * item.whole
                group, stride = item.replicas, item.stride
                if item.shards == 1:
                    yield Traffic("AllReduce", "gradients", group, stride, count, FLOAT32 * whole, True)
                    continue
                gathered = readings * item.gathered_bytes * whole
                yield Traffic("AllGather", "weights", group, stride, readings * count, gathered, True)
                if self.work.reference_bytes:
                    copy = min(self.work.reference_bytes, item.gathered_bytes) * whole
                    yield Traffic("AllGather", "weights", group, stride, count, copy, True)
                yield Traffic("ReduceScatter", "gradients", group, stride, count, FLOAT32 * whole, True)
