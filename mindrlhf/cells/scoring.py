"""Hidden states to log-probs of the scored tokens, on nothing but those tokens.

Shape letters: U units, G rows of a unit, K pairs of a unit, R = U G rows, S sequence, T scored tokens of a row,
H hidden, V vocabulary, N = R T.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from mindrlhf.parallel.layout import ONE_WORKER, SCORED_UNIT, Layout

CHUNK = 512  # scored tokens that meet the vocabulary at once


class SegmentMask(nn.Cell):
    """segment_ids (R,S) int32 -> forbidden (R,1,S,S) uint8, 1 where query i must not see key j.

    i sees j when j <= i, both belong to the same pair, and j is prompt or of i's own branch. Padding (segment 0)
    sees padding, so that no row of the softmax is empty. Queries are divided over context_parallel, as attention's are.
    """

    def __init__(self, seq_length: int, layout: Layout = ONE_WORKER) -> None:
        super().__init__()
        dp, cp = layout.data_parallel, layout.context_parallel
        self.columns = ops.ExpandDims().shard(((dp, 1),))
        self.same = ops.Equal().shard(((dp, cp, 1), (dp, 1, 1)))
        self.is_prompt = ops.Equal().shard(((dp, 1, 1), ()))
        self.either = ops.LogicalOr().shard(((dp, cp, 1), (dp, 1, 1)))
        self.both = ops.LogicalAnd().shard(((dp, cp, 1), (dp, cp, 1)))
        self.before = ops.LogicalAnd().shard(((dp, cp, 1), (1, cp, 1)))
        self.negate = ops.LogicalNot().shard(((dp, cp, 1),))
        self.cast = ops.Cast().shard(((dp, cp, 1),))
        self.heads = ops.ExpandDims().shard(((dp, cp, 1),))
        self.shift = ops.Add().shard(((dp, 1), ()))
        self.divide = ops.FloorDiv().shard(((dp, 1), ()))
        self.times = ops.Mul().shard(((dp, 1), ()))
        self.subtract = ops.Sub().shard(((dp, 1), (dp, 1)))
        positions = ms.numpy.arange(seq_length)
        self.causal = ops.expand_dims(positions[None, :] <= positions[:, None], 0)

    def construct(self, segment_ids):
        shifted = self.shift(segment_ids, 2)
        pair = self.divide(shifted, 3)
        branch = self.subtract(shifted, self.times(pair, 3))
        same_pair = self.same(self.columns(pair, 2), self.columns(pair, 1))
        key_branch = self.columns(branch, 1)
        own_branch = self.same(self.columns(branch, 2), key_branch)
        seen = self.both(same_pair, self.either(own_branch, self.is_prompt(key_branch, 0)))
        return self.heads(self.cast(self.negate(self.before(seen, self.causal)), ms.uint8), 1)


class TokenLogps(nn.Cell):
    """hidden (N,H), weight (V,H), targets (N,) -> log p(target) and log sum_v p_v^2, (2,N) float32, in chunks.

    Without `squares` the second row is 0; it carries no gradient. One array and not a tuple: MindSpore does not compile
    a backward that leaves part of a tuple out. The own backward recomputes each chunk's softmax, so no
    (N,V) array outlives its chunk. Only for gradients reduced explicitly (one process, data parallel): under semi-auto
    parallel an own `bprop` silently loses the AllReduce of the weight's gradient.
    """

    def __init__(self, chunk: int = CHUNK, squares: bool = False) -> None:
        super().__init__()
        self.chunk = chunk
        self.squares = squares
        self.logits = ops.MatMul(transpose_b=True)
        self.product = ops.MatMul()
        self.outer = ops.MatMul(transpose_a=True)
        self.log_softmax = ops.LogSoftmax(-1)
        self.softmax = ops.Softmax(-1)

    def construct(self, hidden, weight, targets):
        parts: tuple = ()
        squares: tuple = ()
        for start in range(0, hidden.shape[0], self.chunk):
            rows = hidden[start : start + self.chunk]
            if start > 0:
                # One chunk after the other: side by side their logits would be in memory together.
                rows = ops.depend(rows, (parts[-1], squares[-1]))
            logps = self.log_softmax(self.logits(rows, weight).astype(ms.float32))
            target = targets[start : start + self.chunk].expand_dims(-1)
            parts += (ops.gather_elements(logps, 1, target).squeeze(-1),)
            # The largest p is 1 / V at least, so that its square does not vanish.
            squares += (ops.log(ops.exp(2 * logps).sum(-1)) if self.squares else 0.0 * parts[-1],)
        return ops.stack((ops.concat(parts), ops.concat(squares)))

    def bprop(self, hidden, weight, targets, out, dout):
        # d logp_n / d logits = onehot(target_n) - softmax_n
        dout = dout[0]
        scaled = hidden.astype(ms.float32) * dout.expand_dims(-1)
        d_weight = ops.tensor_scatter_add(ops.zeros(weight.shape, ms.float32), targets.expand_dims(-1), scaled)
        expected: tuple = ()
        for start in range(0, hidden.shape[0], self.chunk):
            rows = ops.depend(hidden[start : start + self.chunk], d_weight)
            probabilities = self.softmax(self.logits(rows, weight).astype(ms.float32))
            expected += (self.product(probabilities.astype(weight.dtype), weight).astype(ms.float32),)
            d_weight = d_weight - self.outer(probabilities, scaled[start : start + self.chunk])
        d_hidden = (ops.gather(weight, targets, 0).astype(ms.float32) - ops.concat(expected)) * dout.expand_dims(-1)
        return d_hidden.astype(hidden.dtype), d_weight.astype(weight.dtype), ops.zeros_like(targets)


class ShardedTokenLogps(nn.Cell):
    """The same numbers for semi-auto parallel and, second, the mean logits (N,): tokens and vocabulary in parts.

    Plain operators, recomputed in the backward pass instead of carrying an own one.
    """

    def __init__(self, token_parts: int, vocab_parts: int, squares: bool = False) -> None:
        super().__init__()
        dp, vp = token_parts, vocab_parts
        self.squares = squares
        self.logits = ops.MatMul(transpose_b=True).shard(((dp, 1), (vp, 1)))
        self.cast = ops.Cast().shard(((dp, vp),))
        self.max = ops.ReduceMax(keep_dims=True).shard(((dp, vp),))
        self.subtract = ops.Sub().shard(((dp, vp), (dp, 1)))
        self.exp = ops.Exp().shard(((dp, vp),))
        self.sum = ops.ReduceSum().shard(((dp, vp),))
        self.log = ops.Log().shard(((dp,),))
        self.one_hot = ops.OneHot().shard(((dp, vp), (), ()))
        self.on, self.off = ms.Tensor(1.0, ms.float32), ms.Tensor(0.0, ms.float32)
        self.pick = ops.Mul().shard(((dp, vp), (dp, vp)))
        self.difference = ops.Sub().shard(((dp,), (dp,)))
        self.divide = ops.RealDiv().shard(((dp,), ()))
        self.double = ops.Mul().shard(((dp, vp), ()))
        # What has the vocabulary's axis is computed again in the backward pass. The operators and not the cell: in a
        # pipeline a recomputed cell hides from MindSpore whose weight it is given.
        for operator in (self.logits, self.cast, self.subtract, self.exp, self.one_hot, self.pick, self.double):
            operator.recompute()

    def construct(self, hidden, weight, targets):
        vocabulary = weight.shape[0]
        logits = self.cast(self.logits(hidden, weight), ms.float32)
        centred = self.subtract(logits, ops.stop_gradient(self.max(logits, -1)))
        target = self.sum(self.pick(centred, self.one_hot(targets, vocabulary, self.on, self.off)), -1)
        logps = self.difference(target, self.log(self.sum(self.exp(centred), -1)))
        means = self.divide(self.sum(ops.stop_gradient(logits), -1), vocabulary)
        if not self.squares:
            return logps, means, ops.zeros_like(means)
        # log sum e^2c - 2 log sum e^c, c being the centred logits
        fixed = ops.stop_gradient(centred)
        normaliser = self.log(self.sum(self.exp(fixed), -1))
        squares = self.log(self.sum(self.exp(self.double(fixed, 2.0)), -1))
        return logps, means, self.difference(self.difference(squares, normaliser), normaliser)


class ScoreTokens(nn.Cell):
    """hidden (R,S,H), weight (V,H), predict_from (R,T), targets (R,T) -> of each scored token log p and, without
    gradient, the mean of its logits over the vocabulary and log sum_v p_v^2, all (R,T) float32.

    Where `layout` leaves the sum of gradients over workers to us, the memory-saving own backward is used.
    vocabulary_parts: over how many workers the rows of `weight` are divided.
    squares: whether the third is asked for; it is 0 otherwise.
    """

    def __init__(
        self,
        layout: Layout,
        vocabulary_parts: int = 1,
        chunk: int = CHUNK,
        squares: bool = False,
    ) -> None:
        super().__init__()
        dp, self.spread = layout.data_parallel, layout.context_parallel
        self.explicit = not layout.semi_auto
        # The parallel passes see the tokens of all workers, of which each takes its share.
        self.chunk = chunk if self.explicit else chunk * dp
        self.gather = ops.Gather(batch_dims=1).shard(((dp, 1, 1), (dp, 1)))
        self.rows = ops.StridedSlice().shard(((dp, 1, 1),))
        self.tokens = ops.StridedSlice().shard(((dp, 1),))
        self.join = ops.Concat(1).shard(((dp, 1), (dp, 1)))
        self.weight_cast = ops.Cast()
        # Workers that share rows share their scored tokens.
        own, sharded = TokenLogps(chunk, squares), ShardedTokenLogps(dp * self.spread, vocabulary_parts, squares)
        self.logps = own if self.explicit else sharded

    def construct(self, hidden, weight, predict_from, targets):
        rows, count = predict_from.shape
        width = hidden.shape[2]
        states = self.gather(hidden, predict_from, 1)
        if self.explicit:
            cast = self.weight_cast(weight, states.dtype)
            both = self.logps(states.reshape(-1, width), cast, targets.reshape(-1))
            logps, squares = both[0], both[1]
            # The mean of the logits is the product with the mean row of the head.
            mean_row = ops.stop_gradient(weight).astype(ms.float32).mean(axis=0)
            means = ops.matmul(ops.stop_gradient(states).astype(ms.float32), mean_row)
            return logps.reshape(rows, count), means, ops.stop_gradient(squares).reshape(rows, count)
        weight = self.weight_cast(weight, states.dtype)
        logps, means, squares = self._chunk(states, weight, targets, 0)
        step = self._step(rows)
        for start in range(step, count, step):
            more_logps, more_means, more_squares = self._chunk(states, weight, targets, start)
            logps, means = self.join((logps, more_logps)), self.join((means, more_means))
            squares = self.join((squares, more_squares))
        return logps, means, squares

    def _step(self, rows):
        """Scored tokens of each of so many rows that meet the vocabulary at once."""
        return self.spread * max(1, self.chunk // rows)

    def _chunk(self, states, weight, targets, start):
        rows, count, width = states.shape
        stop = min(start + self._step(rows), count)
        chunk = self.rows(states, (0, start, 0), (rows, stop, width), (1, 1, 1)).reshape(-1, width)
        target = self.tokens(targets, (0, start), (rows, stop), (1, 1)).reshape(-1)
        logps, means, squares = self.logps(chunk, weight, target)
        shape = (rows, stop - start)
        return logps.reshape(shape), means.reshape(shape), squares.reshape(shape)


class SumSequences(nn.Cell):
    """values (R,T) float32, sequence_index (R,T) int32 in 0..2K (2K = none) -> sums per sequence (U,2K) float32.

    T is a multiple of SCORED_UNIT: each group of so many is summed first, then the groups. A plain sum over hundreds of
    tokens costs a float32 sequence log-prob of a few thousand several units in the last place, which beta carries into
    the loss.
    """

    def __init__(self, rows_per_unit: int, pairs_per_unit: int, data_parallel: int = 1) -> None:
        super().__init__()
        dp = data_parallel
        self.rows_per_unit = rows_per_unit
        self.sequences = 2 * pairs_per_unit
        self.one_hot = ops.OneHot().shard(((dp, 1), (), ()))
        self.on, self.off = ms.Tensor(1.0, ms.float32), ms.Tensor(0.0, ms.float32)
        self.product = ops.BatchMatMul().shard(((dp, 1, 1), (dp, 1, 1)))
        self.sum = ops.ReduceSum().shard(((dp, 1, 1),))
        self.slice = ops.StridedSlice().shard(((dp, 1),))

    def construct(self, values, sequence_index):
        rows, count = values.shape
        units, width = rows // self.rows_per_unit, self.sequences + 1
        groups = rows * count // SCORED_UNIT
        # OneHot takes 1-D indices only under semi-auto parallel.
        members = self.one_hot(sequence_index.reshape(-1), width, self.on, self.off).reshape(groups, SCORED_UNIT, width)
        sums = self.product(values.reshape(groups, 1, SCORED_UNIT), members).reshape(units, -1, width)
        return self.slice(self.sum(sums, 1), (0, 0), (units, self.sequences), (1, 1))


class ScoreSequences(nn.Cell):
    """The first seven fields of a batch (`mindrlhf.data.rows.Rows`) -> what is known of each sequence, (U,2K) float32
    each: its log-prob; that of its shared length; scored tokens; and without gradient the sums over these of the mean
    logits and of log sum_v p_v^2. Last the load-balance loss () of a model that routes tokens, where `balance` asks
    for it, over the tokens that are no padding; 0 otherwise.

    The shared length and the last sum are computed where `shared` and `squares` ask for it; else they are the log-prob
    and 0. layout, vocabulary_parts: see `ScoreTokens`.
    """

    def __init__(
        self,
        backbone: nn.Cell,
        head: nn.Cell,
        seq_length: int,
        rows_per_unit: int,
        pairs_per_unit: int,
        layout: Layout = ONE_WORKER,
        vocabulary_parts: int = 1,
        shared: bool = False,
        squares: bool = False,
        balance: bool = False,
    ) -> None:
        super().__init__(auto_prefix=False)
        dp = layout.data_parallel
        self.backbone = backbone
        self.balance = balance
        self.real = ops.NotEqual().shard(((dp, 1), ()))
        self.zero = ms.Tensor(0.0, ms.float32)
        self.head = head
        self.shared = shared
        self.squares = squares
        self.mask = SegmentMask(seq_length, layout)
        self.score = ScoreTokens(layout, vocabulary_parts, squares=squares)
        if layout.pipeline_stage > 1:
            # Else other stages hold a head of their own, which where it is the embedding nothing ever updates.
            self.score.pipeline_stage = layout.pipeline_stage - 1
        self.sum_sequences = SumSequences(rows_per_unit, pairs_per_unit, dp)
        self.scored = ops.NotEqual().shard(((dp, 1), ()))
        self.pick = ops.Mul().shard(((dp, 1), (dp, 1)))
        self.none = 2 * pairs_per_unit

    def construct(self, input_ids, position_ids, segment_ids, predict_from, targets, sequence_index, in_shared):
        forbidden, balance = self.mask(segment_ids), self.zero
        if self.balance:
            tokens = self.real(segment_ids, 0).astype(ms.float32)
            hidden, balance = self.backbone(input_ids, position_ids, forbidden, tokens)
        else:
            hidden = self.backbone(input_ids, position_ids, forbidden)
        token_logps, token_logits, token_squares = self.score(hidden, self.head(), predict_from, targets)
        scored = self.scored(sequence_index, self.none).astype(ms.float32)
        logps = self.sum_sequences(token_logps, sequence_index)
        logits = self.sum_sequences(token_logits, sequence_index)
        counts = self.sum_sequences(scored, sequence_index)
        shared, squares = logps, ops.zeros_like(counts)
        if self.shared:
            shared = self.sum_sequences(self.pick(token_logps, in_shared), sequence_index)
        if self.squares:
            squares = self.sum_sequences(token_squares, sequence_index)
        return logps, shared, counts, logits, squares, balance


class WholeLogps(nn.Cell):
    """The first two of `ScoreSequences`, (U,2K) float32 each, whole on every worker: what a frozen model is asked."""

    def __init__(self, score: ScoreSequences) -> None:
        super().__init__(auto_prefix=False)
        self.score = score
        self.whole = ops.Identity().shard(((1, 1),))

    def construct(self, input_ids, position_ids, segment_ids, predict_from, targets, sequence_index, in_shared):
        found = self.score(input_ids, position_ids, segment_ids, predict_from, targets, sequence_index, in_shared)
        return self.whole(found[0]), self.whole(found[1])
