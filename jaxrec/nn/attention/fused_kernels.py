"""Pallas kernels for TPU: attention over segments, forward and backward.

A program holds one user's row for one group of heads in fast memory. Logits, masks and biases
exist only there, one chunk of query rows at a time. Heads share lanes: a head's queries are the
group's with the others' lanes set to zero, so its products are exact without moving lanes.

The time bias is `time_bucket` of each pair, computed once per group, and a gather from a table of
128 lanes: no distance of two int32 times reaches a bucket behind the 74th.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxrec.nn.attention.fused_plan import (
    BUCKETS,
    CHUNK,
    FAST_MEMORY,
    INFO,
    LANES,
    ROWS,
    TOKENS_INFO,
    KernelRun,
    Plan,
    padded,
)
from jaxrec.nn.attention.weights import HIDDEN
from jaxrec.nn.bias import time_bucket

Ref: TypeAlias = Any  # a block in fast memory; Pallas has no public type for it


class Operands(NamedTuple):
    """Arrays of a kernel; users B, rows R, segments S, lanes W of keys and C of tokens.

    q, k, v: [B, R, N H]. tokens_k, tokens_v: [B, C, N H]. info: int32 [B, S, 4, W], query times,
    key times, and whether the key exists. tokens_info: int32 [B, 2, C], times and existence.
    distance: float32 [N, W / 128, 128, 128], see `RelativeBias.by_distance`; age: float32
    [N, S, C]; time: float32 [N, 1, 128].
    None: there are none.
    """

    q: Any
    k: Any
    v: Any
    info: Any
    tokens_k: Any = None
    tokens_v: Any = None
    tokens_info: Any = None
    distance: Any = None
    age: Any = None
    time: Any = None


class Gradients(NamedTuple):
    """Of the operands of the same names; `time` per bucket and lane, [N, 128, 128]."""

    q: Any
    k: Any
    v: Any
    tokens_k: Any = None
    tokens_v: Any = None
    distance: Any = None
    age: Any = None
    time: Any = None


class _Chunk(NamedTuple):
    """Query rows start..stop of a segment that begins at row `first` of the user.

    seen: bool [rows, keys] own keys; tokens_seen: bool [1, C]; buckets: int32 [rows, 128] for
    every 128 keys, own ones and tokens.
    """

    segment: jax.Array
    first: jax.Array
    start: int
    stop: int
    seen: jax.Array
    tokens_seen: jax.Array | None
    buckets: list[jax.Array]
    tokens_buckets: list[jax.Array]


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _chunk(
    plan: Plan, ranges: Ref, x: Operands, run: KernelRun, index: jax.Array, rows: tuple[int, int]
) -> _Chunk:
    """What the pairs of a chunk have in common for all heads."""
    start, stop = rows
    segment = run.first + index
    count = stop - start
    row = lax.broadcasted_iota(jnp.int32, (count, stop), 0) + start
    column = lax.broadcasted_iota(jnp.int32, (count, stop), 1)
    exists = x.info[0, segment, 2:3, :stop]
    seen = (column <= row) & (exists > 0)
    tokens_seen = None
    if x.tokens_k is not None:
        token = lax.broadcasted_iota(jnp.int32, (1, plan.token_lanes), 1)
        inside = (token >= ranges[2 * segment]) & (token < ranges[2 * segment + 1])
        tokens_seen = inside & (x.tokens_info[0, 1:2, :] > 0)
    buckets: list[jax.Array] = []
    tokens_buckets: list[jax.Array] = []
    if x.time is not None:
        # times of queries lie along the lanes: a square of them, turned, has one per row
        times = jnp.broadcast_to(x.info[0, segment, 0:1, start : start + LANES], (LANES, LANES))
        query = times.T[:count]
        for first in range(0, stop, LANES):
            key = x.info[0, segment, 1:2, first : first + LANES]
            buckets.append(time_bucket(query, key))
        if x.tokens_k is not None:
            for first in range(0, plan.token_lanes, LANES):
                key = x.tokens_info[0, 0:1, first : first + LANES]
                tokens_buckets.append(time_bucket(query, key))
    first = pl.multiple_of(run.start + index * run.rows, 8)
    return _Chunk(segment, first, start, stop, seen, tokens_seen, buckets, tokens_buckets)


def _of_head(plan: Plan, x: jax.Array, head: int) -> jax.Array:
    """x [rows, lanes] with the lanes of other heads zero."""
    if plan.group == 1:
        return x
    lane = lax.broadcasted_iota(jnp.int32, (1, plan.width), 1)
    first = head * plan.head_width
    return jnp.where((lane >= first) & (lane < first + plan.head_width), x, jnp.zeros_like(x))


def _looked_up(table: jax.Array, buckets: Sequence[jax.Array]) -> jax.Array:
    """[rows, lanes] of a table [1, 128]."""
    rows = jnp.broadcast_to(table, buckets[0].shape)
    return _side_by_side(
        [jnp.take_along_axis(rows, bucket, axis=1, mode="promise_in_bounds") for bucket in buckets]
    )


def _side_by_side(parts: list[jax.Array]) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _logits(
    x: Operands, chunk: _Chunk, head: int, q: jax.Array, k: jax.Array, tokens: jax.Array | None
) -> list[jax.Array]:
    """[rows, keys] of the own keys and, where there are earlier tokens, of those."""
    own = _dot(q, k, (1, 1))
    if x.distance is not None:
        count, row = chunk.stop - chunk.start, chunk.start // LANES
        blocks = [x.distance[head, row - column, :count, :] for column in range(row + 1)]
        own = own + _side_by_side(blocks)[:, : chunk.stop]
    if x.time is not None:
        own = own + _looked_up(x.time[head], chunk.buckets)[:, : chunk.stop]
    if tokens is None:
        return [own]
    earlier = _dot(q, tokens, (1, 1))
    if x.age is not None:
        earlier = earlier + x.age[head, pl.ds(chunk.segment, 1), :]
    if x.time is not None:
        earlier = earlier + _looked_up(x.time[head], chunk.tokens_buckets)
    return [own, earlier]


def _weights(plan: Plan, logits: list[jax.Array], seen: list[jax.Array]) -> list[jax.Array]:
    """Attention weights, float32 (`weights.pointwise`, `weights.softmax`)."""
    if plan.kind == "pointwise":
        pairs = zip(logits, seen, strict=True)
        return [jnp.where(m, x * jax.nn.sigmoid(x) / plan.normalizer, 0.0) for x, m in pairs]
    logits = [jnp.where(m, x, HIDDEN) for x, m in zip(logits, seen, strict=True)]
    top = functools.reduce(jnp.maximum, (x.max(1, keepdims=True) for x in logits))
    pairs = zip(logits, seen, strict=True)
    raised = [jnp.where(m, jnp.exp(x - top), 0.0) for x, m in pairs]
    total = functools.reduce(jnp.add, (x.sum(1, keepdims=True) for x in raised))
    # a row that sees nothing is not there: it is zero instead of 0 / 0
    return [x / jnp.maximum(total, 1e-30) for x in raised]


def _of_logits(
    plan: Plan,
    logits: list[jax.Array],
    weights: list[jax.Array],
    seen: list[jax.Array],
    gradients: list[jax.Array],
) -> list[jax.Array]:
    """Gradients of the logits from those of the weights."""
    if plan.kind == "pointwise":
        out = []
        for x, m, g in zip(logits, seen, gradients, strict=True):
            gate = jax.nn.sigmoid(x)
            out.append(jnp.where(m, g * gate * (1 + x * (1 - gate)) / plan.normalizer, 0.0))
        return out
    pairs = list(zip(weights, gradients, strict=True))
    mean = functools.reduce(jnp.add, ((w * g).sum(1, keepdims=True) for w, g in pairs))
    return [w * (g - mean) for w, g in pairs]


def _seen(chunk: _Chunk) -> list[jax.Array]:
    """Masks of the groups of keys."""
    return [chunk.seen] if chunk.tokens_seen is None else [chunk.seen, chunk.tokens_seen]


def _skips(last: jax.Array, start: int) -> jax.Array:
    """Whether no position of the rows from `start` exists."""
    return last <= start


def forward(plan: Plan, last: Ref, ranges: Ref, x: Operands, out: Ref) -> None:
    """The kernel of the output. last: rows of a segment up to its last that exists, [B S]."""
    user = pl.program_id(1)

    def segment(run: KernelRun, index: jax.Array) -> None:
        rows_there = last[user * plan.segments + run.first + index]
        first = pl.multiple_of(run.start + index * run.rows, 8)
        for start, stop in plan.chunks(run):
            place = pl.ds(first + start, stop - start)

            @pl.when(_skips(rows_there, start))
            def _(place: Any = place, count: int = stop - start) -> None:
                out[0, place, :] = jnp.zeros((count, plan.width), out.dtype)

            @pl.when(jnp.logical_not(_skips(rows_there, start)))
            def _(place: Any = place, rows: tuple[int, int] = (start, stop)) -> None:
                chunk = _chunk(plan, ranges, x, run, index, rows)
                out[0, place, :] = _output(plan, x, chunk, place).astype(out.dtype)

    for run in plan.runs:
        body = functools.partial(lambda index, _, run: segment(run, index), run=run)
        lax.fori_loop(0, run.count, body, None)


def _output(plan: Plan, x: Operands, chunk: _Chunk, place: Any) -> jax.Array:
    """float32 [rows, lanes] of all heads of the group."""
    q = x.q[0, place, :]
    own = pl.ds(chunk.first, chunk.stop)
    k, v = x.k[0, own, :], x.v[0, own, :]
    tokens = None if x.tokens_k is None else (x.tokens_k[0], x.tokens_v[0])
    total = jnp.zeros(q.shape, jnp.float32)
    for head in range(plan.group):
        mine = functools.partial(_of_head, plan, head=head)
        keys = None if tokens is None else tokens[0]
        logits = _logits(x, chunk, head, mine(q), k, keys)
        weights = _weights(plan, logits, _seen(chunk))
        total = total + _dot(weights[0].astype(v.dtype), mine(v), (1, 0))
        if tokens is not None:
            total = total + _dot(weights[1].astype(v.dtype), mine(tokens[1]), (1, 0))
    return total


class _Sums(NamedTuple):
    """Scratch: gradients of a segment's keys and values, float32 [rows, lanes]."""

    k: Ref
    v: Ref


def backward(
    plan: Plan, last: Ref, ranges: Ref, x: Operands, upstream: Ref, out: Gradients, sums: _Sums
) -> None:
    """The kernel of the gradients; weights are computed again."""
    user = pl.program_id(1)

    @pl.when(user == 0)
    def _() -> None:  # sums over the users, who follow each other
        for ref in (out.distance, out.age, out.time):
            if ref is not None:
                ref[...] = jnp.zeros_like(ref)

    for ref in (out.tokens_k, out.tokens_v):
        if ref is not None:
            ref[...] = jnp.zeros_like(ref)

    def segment(run: KernelRun, index: jax.Array) -> None:
        rows_there = last[user * plan.segments + run.first + index]
        first = pl.multiple_of(run.start + index * run.rows, 8)
        for ref in sums:
            ref[...] = jnp.zeros_like(ref)
        for start, stop in plan.chunks(run):
            place = pl.ds(first + start, stop - start)

            @pl.when(_skips(rows_there, start))
            def _(place: Any = place, count: int = stop - start) -> None:
                out.q[0, place, :] = jnp.zeros((count, plan.width), out.q.dtype)

            @pl.when(jnp.logical_not(_skips(rows_there, start)))
            def _(place: Any = place, rows: tuple[int, int] = (start, stop)) -> None:
                chunk = _chunk(plan, ranges, x, run, index, rows)
                _gradients(plan, x, chunk, place, upstream, out, sums)

        own = pl.ds(first, run.rows)
        out.k[0, own, :] = sums.k[: run.rows].astype(out.k.dtype)
        out.v[0, own, :] = sums.v[: run.rows].astype(out.v.dtype)

    for run in plan.runs:
        body = functools.partial(lambda index, _, run: segment(run, index), run=run)
        lax.fori_loop(0, run.count, body, None)


def _gradients(
    plan: Plan, x: Operands, chunk: _Chunk, place: Any, upstream: Ref, out: Gradients, sums: _Sums
) -> None:
    """Adds what a chunk of rows gives to every gradient."""
    q, above = x.q[0, place, :], upstream[0, place, :]
    own = pl.ds(chunk.first, chunk.stop)
    k, v = x.k[0, own, :], x.v[0, own, :]
    keys, values = [k], [v]
    if x.tokens_k is not None:
        keys.append(x.tokens_k[0])
        values.append(x.tokens_v[0])
    total = jnp.zeros(q.shape, jnp.float32)
    of_heads = []
    for head in range(plan.group):
        mine = functools.partial(_of_head, plan, head=head)
        q_head, above_head = mine(q), mine(above)
        logits = _logits(x, chunk, head, q_head, k, keys[1] if len(keys) > 1 else None)
        seen = _seen(chunk)
        weights = _weights(plan, logits, seen)
        of_weights = [_dot(above_head, value, (1, 1)) for value in values]
        of_logits = _of_logits(plan, logits, weights, seen, of_weights)
        narrow = [g.astype(q.dtype) for g in of_logits]
        for g, key in zip(narrow, keys, strict=True):
            total = total + _dot(g, mine(key), (1, 0))
        stop = chunk.stop
        sums.k[:stop, :] += _dot(narrow[0], q_head, (0, 0))
        sums.v[:stop, :] += _dot(weights[0].astype(v.dtype), above_head, (0, 0))
        if out.tokens_k is not None:
            out.tokens_k[0] += _dot(narrow[1], q_head, (0, 0))
            out.tokens_v[0] += _dot(weights[1].astype(v.dtype), above_head, (0, 0))
        if out.distance is not None:
            count, row = stop - chunk.start, chunk.start // LANES
            for column in range(row + 1):
                first, last = column * LANES, min(stop, (column + 1) * LANES)
                out.distance[head, row - column, :count, : last - first] += of_logits[0][
                    :, first:last
                ]
        if out.age is not None:
            out.age[head, pl.ds(chunk.segment, 1), :] += of_logits[1].sum(0, keepdims=True)
        of_heads.append(of_logits)
    out.q[0, place, :] = total.astype(out.q.dtype)
    if out.time is not None:
        _add_by_bucket(chunk, of_heads, out.time)


def _add_by_bucket(chunk: _Chunk, of_heads: list[list[jax.Array]], out: Ref) -> None:
    """Adds the gradients of logits to their buckets, lane by lane.

    Walks over the buckets between the chunk's smallest and largest. Which pairs have a bucket is
    found once for all heads of the group.
    """
    groups = [(chunk.buckets, 0)]
    if chunk.tokens_buckets:
        groups.append((chunk.tokens_buckets, 1))
    flat = [bucket for buckets, _ in groups for bucket in buckets]
    # hidden pairs have gradients of zero: any bucket will do for them
    low = functools.reduce(jnp.minimum, (bucket.min() for bucket in flat))
    high = functools.reduce(jnp.maximum, (bucket.max() for bucket in flat))

    def body(bucket: jax.Array, _: None) -> None:
        for buckets, which in groups:
            for part, of_pairs in enumerate(buckets):
                lanes = min(LANES, of_heads[0][which].shape[1] - part * LANES)
                equal = of_pairs[:, :lanes] == bucket
                for head, gradients in enumerate(of_heads):
                    mine = gradients[which][:, part * LANES : part * LANES + lanes]
                    summed = jnp.where(equal, mine, 0.0).sum(0, keepdims=True)
                    out[head, pl.ds(bucket, 1), :lanes] += summed

    lax.fori_loop(low, high + 1, body, None)


# -- calls -------------------------------------------------------------------------------------


def specs(plan: Plan) -> dict[str, pl.BlockSpec]:
    """Blocks of operands and gradients by name; a program is (group of heads, user)."""
    segments, width, group, tokens = (
        plan.segments,
        plan.width,
        plan.group,
        plan.token_lanes,
    )
    return {
        "row": pl.BlockSpec((1, plan.rows, width), lambda g, b, *_: (b, 0, g)),
        "tokens": pl.BlockSpec((1, tokens, width), lambda g, b, *_: (b, 0, g)),
        "info": pl.BlockSpec((1, segments, INFO, plan.lanes), lambda g, b, *_: (b, 0, 0, 0)),
        "tokens_info": pl.BlockSpec((1, TOKENS_INFO, tokens), lambda g, b, *_: (b, 0, 0)),
        "distance": pl.BlockSpec(
            (group, plan.lanes // LANES, CHUNK, LANES), lambda g, b, *_: (g, 0, 0, 0)
        ),
        "age": pl.BlockSpec((group, segments, tokens), lambda g, b, *_: (g, 0, 0)),
        "time": pl.BlockSpec((group, 1, BUCKETS), lambda g, b, *_: (g, 0, 0)),
        "time_gradient": pl.BlockSpec((group, BUCKETS, LANES), lambda g, b, *_: (g, 0, 0)),
    }


def operand_specs(plan: Plan, x: Operands) -> Operands:
    """Blocks of the operands that there are."""
    block = specs(plan)
    row, tokens = block["row"], block["tokens"]
    named = Operands(
        row,
        row,
        row,
        block["info"],
        tokens,
        tokens,
        block["tokens_info"],
        block["distance"],
        block["age"],
        block["time"],
    )
    return Operands(*(None if a is None else spec for a, spec in zip(x, named, strict=True)))


def gradient_shapes(plan: Plan, x: Operands) -> tuple[Gradients, Gradients]:
    """Shapes and blocks of the gradients of these operands."""
    block = specs(plan)
    row, tokens = block["row"], block["tokens"]
    blocks = Gradients(
        row, row, row, tokens, tokens, block["distance"], block["age"], block["time_gradient"]
    )

    def shape(name: str) -> jax.ShapeDtypeStruct | None:
        value = getattr(x, name)
        if value is None:
            return None
        if name == "time":
            return jax.ShapeDtypeStruct((plan.heads, BUCKETS, LANES), jnp.float32)
        dtype = value.dtype if name in ("q", "k", "v") else jnp.float32
        return jax.ShapeDtypeStruct(value.shape, dtype)

    shapes = Gradients(*(shape(name) for name in Gradients._fields))
    return shapes, Gradients(
        *(None if s is None else b for s, b in zip(shapes, blocks, strict=True))
    )


def _parameters(plan: Plan) -> dict[str, Any]:
    if plan.interpret:
        return {"interpret": True}
    # programs of a group of heads add up gradients of its tables: in turn
    return {
        "compiler_params": pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=FAST_MEMORY
        )
    }


def _grid(plan: Plan, users: int, **kwargs: Any) -> pltpu.PrefetchScalarGridSpec:
    return pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2, grid=(plan.heads // plan.group, users), **kwargs
    )


def output(plan: Plan, last: jax.Array, ranges: jax.Array, x: Operands) -> jax.Array:
    """[B, R, N H] attention output; see `forward`."""
    return pl.pallas_call(
        functools.partial(forward, plan),
        grid_spec=_grid(
            plan,
            len(x.q),
            in_specs=[operand_specs(plan, x)],
            out_specs=specs(plan)["row"],
        ),
        out_shape=jax.ShapeDtypeStruct(x.q.shape, x.q.dtype),
        cost_estimate=cost(plan, x, backward=False),
        name="segment_attention",
        **_parameters(plan),
    )(last, ranges, x)


def gradients(
    plan: Plan, last: jax.Array, ranges: jax.Array, x: Operands, upstream: jax.Array
) -> Gradients:
    """Gradients of the operands; see `backward`."""
    shapes, blocks = gradient_shapes(plan, x)
    scratch = pltpu.VMEM((plan.segment_rows, plan.width), jnp.float32)
    (found,) = pl.pallas_call(
        functools.partial(backward, plan),
        grid_spec=_grid(
            plan,
            len(x.q),
            in_specs=[operand_specs(plan, x), specs(plan)["row"]],
            out_specs=[blocks],
            scratch_shapes=[_Sums(scratch, scratch)],
        ),
        out_shape=[shapes],
        cost_estimate=cost(plan, x, backward=True),
        name="segment_attention_gradients",
        **_parameters(plan),
    )(last, ranges, x, upstream)
    return found


def _moved(blocks: Any, arrays: Any, groups: int, users: int) -> int:
    """Bytes between slow and fast memory: a block moves when its place changes."""
    total = 0
    for block, array in zip(jax.tree.leaves(blocks), jax.tree.leaves(arrays), strict=True):
        by_user = block.index_map(0, 0) != block.index_map(0, 1)
        times = groups * (users if by_user else 1)
        total += times * math.prod(block.block_shape) * array.dtype.itemsize
    return total


def cost(plan: Plan, x: Operands, *, backward: bool) -> pl.CostEstimate:
    """What a call costs when no segment is skipped."""
    users, groups = len(x.q), plan.heads // plan.group
    products, transcendentals = (5 + 2, 1) if backward else (2, 1)
    moved = _moved(operand_specs(plan, x), x, groups, users)
    if backward:
        shapes, blocks = gradient_shapes(plan, x)
        moved += _moved([blocks, specs(plan)["row"]], [shapes, x.q], groups, users)
    else:
        moved += _moved(specs(plan)["row"], x.q, groups, users)
    pairs = users * plan.pairs
    return pl.CostEstimate(
        flops=plan.flops(users, products),
        bytes_accessed=moved,
        transcendentals=pairs
        * (plan.heads * transcendentals + (groups if x.time is not None else 0)),
    )


def fast_memory(plan: Plan, x: Operands, *, backward: bool) -> int:
    """Bytes of fast memory: two buffers of every block, sums of a segment, a chunk's arrays."""
    blocks, arrays = [operand_specs(plan, x)], [x]
    if backward:
        shapes, of_gradients = gradient_shapes(plan, x)
        blocks += [of_gradients, specs(plan)["row"]]
        arrays += [shapes, x.q]
    else:
        blocks.append(specs(plan)["row"])
        arrays.append(x.q)
    total = 0
    for block, array in zip(jax.tree.leaves(blocks), jax.tree.leaves(arrays), strict=True):
        *leading, rows, lanes = block.block_shape
        tile = 4 // array.dtype.itemsize * ROWS
        size = math.prod(leading) * padded(rows, tile) * padded(lanes, LANES)
        total += 2 * size * array.dtype.itemsize
    sums = 2 * 4 * plan.segment_rows * padded(plan.width, LANES) if backward else 0
    return total + sums + plan.temporaries(backward)
