"""Query-key pairs inside a fused kernel: which are seen, their logits, weights, gradients.

Heads share lanes: a head's queries are the group's with the others' lanes set to zero, so its
products are exact without moving lanes.

The time bias is `time_bucket` of each pair, computed once per group, and a gather from a table of
128 lanes: no distance of two int32 times reaches a bucket behind the 74th.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxrec.nn.attention.fused.arrays import Operands
from jaxrec.nn.attention.fused.plan import LANES, ROWS, KernelRun, Plan
from jaxrec.nn.attention.weights import HIDDEN
from jaxrec.nn.bias import time_bucket

Ref: TypeAlias = Any  # a block in fast memory; Pallas has no public type for it


class Chunk(NamedTuple):
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


def product(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """float32 product over an axis of each."""
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def chunk_of(
    plan: Plan, ranges: Ref, x: Operands, run: KernelRun, index: jax.Array, rows: tuple[int, int]
) -> Chunk:
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
        for lane in range(0, stop, LANES):
            key = x.info[0, segment, 1:2, lane : lane + LANES]
            buckets.append(time_bucket(query, key))
        if x.tokens_k is not None:
            for lane in range(0, plan.token_lanes, LANES):
                key = x.tokens_info[0, 0:1, lane : lane + LANES]
                tokens_buckets.append(time_bucket(query, key))
    first = pl.multiple_of(run.start + index * run.rows, ROWS)
    return Chunk(segment, first, start, stop, seen, tokens_seen, buckets, tokens_buckets)


def of_head(plan: Plan, x: jax.Array, head: int) -> jax.Array:
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


def logits_of(
    x: Operands, chunk: Chunk, head: int, q: jax.Array, k: jax.Array, tokens: jax.Array | None
) -> list[jax.Array]:
    """[rows, keys] of the own keys and, where there are earlier tokens, of those."""
    own = product(q, k, (1, 1))
    if x.distance is not None:
        count, row = chunk.stop - chunk.start, chunk.start // LANES
        blocks = [x.distance[head, row - column, :count, :] for column in range(row + 1)]
        own = own + _side_by_side(blocks)[:, : chunk.stop]
    if x.time is not None:
        own = own + _looked_up(x.time[head], chunk.buckets)[:, : chunk.stop]
    if tokens is None:
        return [own]
    earlier = product(q, tokens, (1, 1))
    if x.age is not None:
        earlier = earlier + x.age[head, pl.ds(chunk.segment, 1), :]
    if x.parts is not None:
        earlier = earlier + x.parts[head, chunk.segment, chunk.start : chunk.stop, :]
    if x.time is not None:
        earlier = earlier + _looked_up(x.time[head], chunk.tokens_buckets)
    return [own, earlier]


def weights_of(plan: Plan, logits: list[jax.Array], seen: list[jax.Array]) -> list[jax.Array]:
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


def gradients_of(
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


def seen_of(chunk: Chunk) -> list[jax.Array]:
    """Masks of the groups of keys."""
    return [chunk.seen] if chunk.tokens_seen is None else [chunk.seen, chunk.tokens_seen]


def skips(last: jax.Array, start: int) -> jax.Array:
    """Whether no position of the rows from `start` exists."""
    return last <= start
