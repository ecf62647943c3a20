"""How a model and its pairs are spread over workers: one record, which checks itself."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from mindrlhf.config.schema import Parallel
from mindrlhf.runtime.errors import UserError

SCORED_UNIT = 16  # a row's scored tokens are padded to a multiple of it


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that a layout divides. experts 0: every token passes the same weights.

    head_dim: width of a head. intermediate: inner width of the feed-forward part, of one expert where there are any.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    experts: int = 0
    experts_per_token: int = 0
    tied: bool = False


@dataclass(frozen=True)
class Layout:
    """data_parallel x context_parallel x model_parallel x pipeline_stage workers; the default is one worker.

    With c = context_parallel and m = model_parallel, worker (d c + k) m + j of a stage has rows d, positions k and
    parts j.

    model_parallel: parts of every large matrix. pipeline_stage: parts of the stack of layers, fed with micro_batch_num
    parts of a batch one after the other. optimizer_shard: weights and their states are also divided over data_parallel.
    vocab_emb_dp: embedding and head stay whole on every worker of model_parallel. expert_parallel: parts of the set of
    experts, over data and model workers together, not over those of context_parallel. sequence_parallel: between its
    matrices a layer's hidden states are divided over model_parallel along the sequence. context_parallel: parts of
    every row, all through the layers, whose attention gathers keys and values.
    """

    data_parallel: int = 1
    model_parallel: int = 1
    pipeline_stage: int = 1
    micro_batch_num: int = 1
    optimizer_shard: bool = False
    vocab_emb_dp: bool = True
    expert_parallel: int = 1
    sequence_parallel: bool = False
    context_parallel: int = 1

    @classmethod
    def of(cls, given: Parallel, world: int) -> Layout:
        """The layout of `world` workers that a run's `parallel` asks for; UserError where they do not fit."""
        inner = given.context_parallel * given.model_parallel * given.pipeline_stage
        long = f"context_parallel {given.context_parallel} x " if given.context_parallel > 1 else ""
        auto = given.data_parallel == "auto"
        data_parallel = world // inner if auto else int(given.data_parallel)
        if auto and world % inner:
            raise UserError(
                f"parallel: {long}model_parallel {given.model_parallel} x pipeline_stage {given.pipeline_stage} does "
                f"not divide the {world} workers"
            )
        if data_parallel * inner != world:
            raise UserError(
                f"parallel: data_parallel {given.data_parallel} x {long}model_parallel {given.model_parallel} x "
                f"pipeline_stage {given.pipeline_stage} does not make the {world} workers; "
                f"use parallel.data_parallel=auto"
            )
        return cls(
            data_parallel=data_parallel,
            model_parallel=given.model_parallel,
            pipeline_stage=given.pipeline_stage,
            micro_batch_num=given.micro_batch_num,
            optimizer_shard=given.optimizer_shard,
            vocab_emb_dp=given.vocab_emb_dp,
            expert_parallel=given.expert_parallel,
            sequence_parallel=given.sequence_parallel,
            context_parallel=given.context_parallel,
        )

    def __str__(self) -> str:
        words = [f"data_parallel {self.data_parallel}", f"model_parallel {self.model_parallel}"]
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if value != field.default:
                words.append(field.name if value is True else f"{field.name} {str(value).lower()}")
        return ", ".join(words)

    @property
    def world(self) -> int:
        """The number of workers."""
        return self.per_stage * self.pipeline_stage

    @property
    def per_stage(self) -> int:
        """The number of workers of each stage of the pipeline."""
        return self.data_parallel * self.context_parallel * self.model_parallel

    @property
    def semi_auto(self) -> bool:
        """Whether MindSpore's parallel passes split tensors, so that they insert the communication themselves.

        Otherwise every worker has a whole model, and gradients are summed over the workers by us.
        """
        return self.model_parallel * self.context_parallel * self.pipeline_stage > 1 or self.optimizer_shard

    @property
    def of_model(self) -> Layout:
        """What a model is told: where every worker has a whole one, it knows of no other worker."""
        return self if self.semi_auto else replace(self, data_parallel=1)

    def rows(self, axes: int) -> tuple[int, ...]:
        """The strategy of a tensor of rows, the first of its axes being divided over data_parallel."""
        return (self.data_parallel, *[1] * (axes - 1))

    def vocabulary_parts(self, vocab: int) -> int:
        """Into how many parts the head's rows are divided."""
        return 1 if self.vocab_emb_dp or vocab % self.model_parallel else self.model_parallel

    def check_model(self, shape: ModelShape, seq_length: int) -> None:
        """UserError where a model of this shape, or rows of `seq_length` tokens, cannot be divided so."""
        mp, pp, ep = self.model_parallel, self.pipeline_stage, self.expert_parallel
        what = f"parallel.model_parallel is {mp}"
        if shape.heads % mp or shape.kv_heads % mp:
            raise UserError(
                f"{what}, which must divide the model's {shape.heads} heads and {shape.kv_heads} key-value heads"
            )
        for name, size in (("hidden size", shape.hidden), ("intermediate size", shape.intermediate)):
            if size % mp:
                raise UserError(f"{what}, which must divide the model's {name} of {size}")
        if not self.vocab_emb_dp and shape.vocab % mp:
            raise UserError(
                f"{what}, which must divide the vocabulary of {shape.vocab} where parallel.vocab_emb_dp is false; "
                f"set it to true"
            )
        if shape.layers % pp:
            raise UserError(f"parallel.pipeline_stage is {pp}, which must divide the model's {shape.layers} layers")
        self._check_sequence(shape, seq_length)
        self._check_experts(shape, ep)

    def _check_sequence(self, shape: ModelShape, seq_length: int) -> None:
        cp, mp = self.context_parallel, self.model_parallel
        if SCORED_UNIT % cp or seq_length % cp:
            raise UserError(
                f"parallel.context_parallel is {cp}, which must divide rows of {seq_length} tokens and the "
                f"{SCORED_UNIT} positions in whose multiples tokens are scored"
            )
        # Between experts GPTModel divides them in any case.
        if cp > 1 and mp > 1 and not (self.sequence_parallel or shape.experts):
            raise UserError(
                f"parallel.context_parallel {cp} with model_parallel {mp} needs parallel.sequence_parallel=true: norms "
                f"divide the positions over both"
            )
        over = f"context_parallel {cp} x model_parallel" if cp > 1 else "model_parallel"
        if self.sequence_parallel and (mp == 1 or seq_length % (cp * mp)):
            raise UserError(
                f"parallel.sequence_parallel divides rows of {seq_length} tokens over {over} {mp}, which must "
                f"be more than 1 and divide them"
            )
        if shape.experts and seq_length % (cp * mp):
            raise UserError(
                f"the rows of a model with experts are divided over {over} {mp}, which must divide their {seq_length} "
                f"tokens"
            )

    def _check_experts(self, shape: ModelShape, ep: int) -> None:
        if ep == 1:
            return
        workers = self.data_parallel * self.model_parallel
        if shape.experts % ep or workers % ep:
            raise UserError(
                f"parallel.expert_parallel is {ep}, which must divide the model's {shape.experts} experts and the "
                f"{workers} workers of data_parallel {self.data_parallel} x model_parallel {self.model_parallel}"
            )

    def check_batch(self, pairs: int) -> None:
        """UserError where a global batch of `pairs` cannot be divided so."""
        dp, parts = self.data_parallel, self.micro_batch_num
        if parts == 1 and pairs % dp:
            raise UserError(
                f"train.global_batch_pairs is {pairs}, which {dp} workers do not share evenly; give a multiple of {dp}"
            )
        if pairs % (dp * parts):
            raise UserError(
                f"train.global_batch_pairs is {pairs}, which must be a multiple of data_parallel {dp} x "
                f"micro_batch_num {parts}"
            )
        if parts < self.pipeline_stage:
            raise UserError(
                f"parallel.micro_batch_num is {parts}; a pipeline of {self.pipeline_stage} stages needs at least "
                f"{self.pipeline_stage}"
            )
        if parts > 1 and self.pipeline_stage == 1:
            raise UserError(
                f"parallel.micro_batch_num is {parts}, which feeds a pipeline, and pipeline_stage is 1; "
                f"for smaller passes set train.micro_batch_pairs"
            )


ONE_WORKER = Layout()
