"""Which tensors a model has and which part of each a worker holds, from sizes alone.

The rules are those by which MindSpore slices our models, as a dry run of every family shows (docs/planning.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mindrlhf.parallel.layout import Layout, ModelShape

FLOAT32 = 4


@dataclass(frozen=True)
class Traits:
    """What a family adds to the sizes of a model.

    qkv_bias: biases on queries, keys and values. qk_norm: a norm on queries and on keys. fused: built on GPTModel,
    where q, k and v are one tensor, gate and up another, and embedding and head are divided over model_parallel
    whatever vocab_emb_dp says. alibi: attention adds a bias (R,N,S,S). normalised_head: the head's rows are divided by
    their lengths in float32 before they are used.
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    fused: bool = False
    alibi: bool = False
    normalised_head: bool = False


PLAIN = Traits()


@dataclass(frozen=True)
class Slice:
    """`count` tensors of one kind, of which each worker holds a part.

    elements: of one tensor. parts: into how many different parts the layout's matrices cut it. replicas: workers that
    would hold the same part. shards: among how many of these the part is divided once more, by optimizer_shard.
    stride: distance of the ranks of `replicas`. gathered_bytes: bytes of an element in the copy that the forward pass
    works on.
    """

    name: str
    count: int
    elements: int
    parts: int
    replicas: int
    shards: int
    stride: int
    gathered_bytes: int

    @property
    def whole(self) -> int:
        """Elements of all `count` parts before they are divided by optimizer_shard."""
        return self.count * self.elements // self.parts

    @property
    def held(self) -> int:
        """Elements that a worker holds of them."""
        return self.whole // self.shards


def vocabulary_parts(shape: ModelShape, layout: Layout, traits: Traits) -> int:
    """Into how many parts the rows of embedding and head are divided."""
    if traits.fused:
        return layout.model_parallel if shape.vocab % layout.model_parallel == 0 else 1
    return layout.vocabulary_parts(shape.vocab)


def stage_slices(
    shape: ModelShape, layout: Layout, traits: Traits, compute_bytes: int, stage: int
) -> tuple[list[Slice], list[Slice]]:
    """The tensors of one layer of a stage, and those that it has beside its layers.

    The first stage has the embedding, the last the final norm and the head. compute_bytes: of an element that products
    read.
    """
    slicer = _Slicer(shape, layout, traits, compute_bytes)
    return list(slicer.layer()), list(slicer.beside(stage))


@dataclass(frozen=True)
class _Slicer:
    shape: ModelShape
    layout: Layout
    traits: Traits
    compute_bytes: int

    def layer(self) -> Iterator[Slice]:
        yield from self._attention()
        yield from self._mlp()
        yield self._norms(2)

    def beside(self, stage: int) -> Iterator[Slice]:
        shape = self.shape
        parts = vocabulary_parts(shape, self.layout, self.traits)
        if stage == 0:
            # It is read in float32, and what it gives is cast.
            yield self._slice("embedding", shape.vocab, shape.hidden, parts=parts, copied=False)
        if stage == self.layout.pipeline_stage - 1:
            yield self._norms(1)
            if not shape.tied:
                copied = not self.traits.normalised_head
                yield self._slice("head", shape.vocab, shape.hidden, parts=parts, copied=copied)

    def _norms(self, count: int) -> Slice:
        return self._slice("norms", self.shape.hidden, sharded=self.traits.fused, copied=False, count=count)

    def _attention(self) -> Iterator[Slice]:
        shape, traits, mp = self.shape, self.traits, self.layout.model_parallel
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        for rows in (queries + 2 * keys,) if traits.fused else (queries, keys, keys):
            yield self._slice("qkv", rows, shape.hidden, parts=mp)
            if traits.qkv_bias:
                yield self._slice("qkv bias", rows, parts=mp, sharded=traits.fused)
        yield self._slice("attention output", shape.hidden, queries, parts=mp, by_row=False)
        if traits.qk_norm:
            yield self._slice("query and key norms", shape.head_dim, copied=False, count=2)

    def _mlp(self) -> Iterator[Slice]:
        shape, mp = self.shape, self.layout.model_parallel
        hidden, inner, experts = shape.hidden, shape.intermediate, shape.experts
        if experts:
            yield self._slice("router", experts, hidden, copied=False)
            for rows, columns in ((experts * hidden, 2 * inner), (experts * inner, hidden)):
                yield self._slice("experts", rows, columns, parts=self.layout.expert_parallel)
            return
        wide = self.traits.fused
        yield self._slice("gate and up", inner * (2 if wide else 1), hidden, parts=mp, count=1 if wide else 2)
        yield self._slice("down", hidden, inner, parts=mp, by_row=False)

    def _slice(
        self,
        name: str,
        rows: int,
        columns: int = 1,
        *,
        parts: int = 1,
        by_row: bool = True,
        sharded: bool = True,
        copied: bool = True,
        count: int = 1,
    ) -> Slice:
        """by_row: `parts` cut the rows. sharded: optimizer_shard may divide it. copied: read in the compute type."""
        replicas = self.layout.per_stage // parts
        mine = rows // parts if by_row else rows
        # MindSpore divides the first axis evenly or not at all.
        divided = self.layout.optimizer_shard and sharded and mine % replicas == 0
        return Slice(
            name,
            count,
            elements=rows * columns,
            parts=parts,
            replicas=replicas,
            shards=replicas if divided else 1,
            stride=parts,  # the parts lie on neighbouring ranks
            gathered_bytes=self.compute_bytes if copied else FLOAT32,
        )
