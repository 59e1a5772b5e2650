"""Pallas kernels for TPU: attention over segments, forward and backward.

A program holds one user's row for one group of heads in fast memory. Logits, masks and biases
exist only there, one chunk of query rows at a time.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxrec.nn.attention.fused.arrays import Gradients, Operands
from jaxrec.nn.attention.fused.pairs import (
    Chunk,
    Ref,
    chunk_of,
    gradients_of,
    logits_of,
    of_head,
    product,
    seen_of,
    skips,
    weights_of,
)
from jaxrec.nn.attention.fused.plan import LANES, ROWS, KernelRun, Plan


def forward(plan: Plan, last: Ref, ranges: Ref, x: Operands, out: Ref) -> None:
    """The kernel of the output. last: rows of a segment up to its last that exists, [B S]."""
    user = pl.program_id(1)

    def segment(run: KernelRun, index: jax.Array) -> None:
        rows_there = last[user * plan.segments + run.first + index]
        first = pl.multiple_of(run.start + index * run.rows, ROWS)
        for start, stop in plan.chunks(run):
            place = pl.ds(first + start, stop - start)

            @pl.when(skips(rows_there, start))
            def _(place: Any = place, count: int = stop - start) -> None:
                out[0, place, :] = jnp.zeros((count, plan.width), out.dtype)

            @pl.when(jnp.logical_not(skips(rows_there, start)))
            def _(place: Any = place, rows: tuple[int, int] = (start, stop)) -> None:
                chunk = chunk_of(plan, ranges, x, run, index, rows)
                out[0, place, :] = _output(plan, x, chunk, place).astype(out.dtype)

    for run in plan.runs:
        body = functools.partial(lambda index, _, run: segment(run, index), run=run)
        lax.fori_loop(0, run.count, body, None)


def _output(plan: Plan, x: Operands, chunk: Chunk, place: Any) -> jax.Array:
    """float32 [rows, lanes] of all heads of the group."""
    q = x.q[0, place, :]
    own = pl.ds(chunk.first, chunk.stop)
    k, v = x.k[0, own, :], x.v[0, own, :]
    tokens = None if x.tokens_k is None else (x.tokens_k[0], x.tokens_v[0])
    total = jnp.zeros(q.shape, jnp.float32)
    for head in range(plan.group):
        mine = functools.partial(of_head, plan, head=head)
        keys = None if tokens is None else tokens[0]
        logits = logits_of(x, chunk, head, mine(q), k, keys)
        weights = weights_of(plan, logits, seen_of(chunk))
        total = total + product(weights[0].astype(v.dtype), mine(v), (1, 0))
        if tokens is not None:
            total = total + product(weights[1].astype(v.dtype), mine(tokens[1]), (1, 0))
    return total


class Sums(NamedTuple):
    """Scratch: gradients of a segment's keys and values, float32 [rows, lanes]."""

    k: Ref
    v: Ref


def backward(
    plan: Plan, last: Ref, ranges: Ref, x: Operands, upstream: Ref, out: Gradients, sums: Sums
) -> None:
    """The kernel of the gradients; weights are computed again."""
    user = pl.program_id(1)

    @pl.when(user == 0)
    def _() -> None:  # sums over the users, who follow each other
        for ref in (out.distance, out.age, out.parts, out.time):
            if ref is not None:
                ref[...] = jnp.zeros_like(ref)

    for ref in (out.tokens_k, out.tokens_v):
        if ref is not None:
            ref[...] = jnp.zeros_like(ref)

    def segment(run: KernelRun, index: jax.Array) -> None:
        rows_there = last[user * plan.segments + run.first + index]
        first = pl.multiple_of(run.start + index * run.rows, ROWS)
        for ref in sums:
            ref[...] = jnp.zeros_like(ref)
        for start, stop in plan.chunks(run):
            place = pl.ds(first + start, stop - start)

            @pl.when(skips(rows_there, start))
            def _(place: Any = place, count: int = stop - start) -> None:
                out.q[0, place, :] = jnp.zeros((count, plan.width), out.q.dtype)

            @pl.when(jnp.logical_not(skips(rows_there, start)))
            def _(place: Any = place, rows: tuple[int, int] = (start, stop)) -> None:
                chunk = chunk_of(plan, ranges, x, run, index, rows)
                _gradients(plan, x, chunk, place, upstream, out, sums)

        own = pl.ds(first, run.rows)
        out.k[0, own, :] = sums.k[: run.rows].astype(out.k.dtype)
        out.v[0, own, :] = sums.v[: run.rows].astype(out.v.dtype)

    for run in plan.runs:
        body = functools.partial(lambda index, _, run: segment(run, index), run=run)
        lax.fori_loop(0, run.count, body, None)


def _gradients(
    plan: Plan, x: Operands, chunk: Chunk, place: Any, upstream: Ref, out: Gradients, sums: Sums
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
        mine = functools.partial(of_head, plan, head=head)
        q_head, above_head = mine(q), mine(above)
        logits = logits_of(x, chunk, head, q_head, k, keys[1] if len(keys) > 1 else None)
        seen = seen_of(chunk)
        weights = weights_of(plan, logits, seen)
        of_weights = [product(above_head, value, (1, 1)) for value in values]
        of_logits = gradients_of(plan, logits, weights, seen, of_weights)
        narrow = [g.astype(q.dtype) for g in of_logits]
        for g, key in zip(narrow, keys, strict=True):
            total = total + product(g, mine(key), (1, 0))
        stop = chunk.stop
        sums.k[:stop, :] += product(narrow[0], q_head, (0, 0))
        sums.v[:stop, :] += product(weights[0].astype(v.dtype), above_head, (0, 0))
        if out.tokens_k is not None:
            out.tokens_k[0] += product(narrow[1], q_head, (0, 0))
            out.tokens_v[0] += product(weights[1].astype(v.dtype), above_head, (0, 0))
        if out.distance is not None:
            count, row = stop - chunk.start, chunk.start // LANES
            for column in range(row + 1):
                first, last = column * LANES, min(stop, (column + 1) * LANES)
                out.distance[head, row - column, :count, : last - first] += of_logits[0][
                    :, first:last
                ]
        if out.age is not None:
            out.age[head, pl.ds(chunk.segment, 1), :] += of_logits[1].sum(0, keepdims=True)
        if out.parts is not None:
            out.parts[head, chunk.segment, chunk.start : stop, :] += of_logits[1]
        of_heads.append(of_logits)
    out.q[0, place, :] = total.astype(out.q.dtype)
    if out.time is not None:
        _add_by_bucket(chunk, of_heads, out.time)


def _add_by_bucket(chunk: Chunk, of_heads: list[list[jax.Array]], out: Ref) -> None:
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
