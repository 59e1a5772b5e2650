"""Mosaic GPU kernels for Hopper: attention of folded segments, forward and backward.

One warpgroup computes a tile of 64 rows, and walks over the tiles of 64 of what it is multiplied
with: each is copied to shared memory. Logits, masks and weights exist in registers and shared
memory alone. Four kernels: the output; the gradient of queries; that of keys and values, in which
rows are keys (`turned`); that of the biases, which adds up over the users.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrec.nn.attention.hopper.tiles import (
    BUCKETS,
    TILE,
    Memory,
    Operands,
    Ref,
    Refs,
    Shape,
    Tile,
    Times,
    Upstream,
    along,
    distances,
    of_logits,
    pairs_of,
    product,
    put,
    rows,
    turn,
    vector_of_zeros,
    weights_of,
    zeros,
)
from jaxrec.nn.attention.weights import HIDDEN

Copies: TypeAlias = list[tuple[Ref, Ref]]  # from the GPU's memory, to shared memory


def fetch(barrier: Ref, copies: Copies) -> None:
    """Copies (from, to) to shared memory and waits for all."""
    for source, target in copies:
        plgpu.copy_gmem_to_smem(source, target, barrier)
    plgpu.barrier_wait(barrier)


def keep(x: jax.Array, shared: Ref, out: Ref) -> None:
    """Writes registers to the GPU's memory, by way of shared memory."""
    plgpu.copy_smem_to_gmem(put(x, shared), out)
    plgpu.wait_smem_to_gmem(0)


def at(index: Any) -> Any:
    """Rows of tile `index`."""
    return pl.ds(index * TILE, TILE)


def row_and_head() -> tuple[Any, Any]:
    """Of this block of threads."""
    return lax.axis_index("row"), lax.axis_index("head")


def of_query_rows(x: Operands, upstream: Upstream | None, tile: Tile, memory: Memory) -> Copies:
    """Everything of a tile's queries."""
    place = tile.row, tile.head, at(tile.query)
    copies = [(x.q.at[place], memory.q)]
    if upstream is not None:
        copies += [
            (upstream.out.at[place], memory.above),
            (upstream.total.at[place], memory.total),
            (upstream.mean.at[place], memory.mean),
        ]
    if x.times is not None:
        copies.append((x.times.query.at[tile.row, at(tile.query)], memory.clock.query))
    return copies


def of_key_rows(x: Operands, tile: Tile, memory: Memory) -> Copies:
    """Everything of a tile's keys."""
    place = tile.row, tile.head, at(tile.key)
    copies = [
        (x.k.at[place], memory.k),
        (x.v.at[place], memory.v),
        (x.seen.at[tile.row, at(tile.key)], memory.seen),
    ]
    if x.times is not None:
        copies.append((x.times.key.at[tile.row, at(tile.key)], memory.clock.key))
    return copies


def of_pair_bias(shape: Shape, x: Operands, tile: Tile, memory: Memory) -> Copies:
    """The bias of a tile's pairs."""
    row, column = (tile.key, tile.query) if tile.turned else (tile.query, tile.key)
    segment = lax.rem(tile.row, shape.segments)
    return [(x.bias.at[tile.head, segment, at(row), at(column)], memory.bias)]


def release() -> None:
    """All threads have read what was copied: the next copies may write over it."""
    plgpu.commit_smem()


# -- kernels -------------------------------------------------------------------------------------


def forward(shape: Shape, x: Operands, out: Ref, total: Ref, memory: Memory) -> None:
    """A tile of the output, and of the logarithm of the softmax' total."""
    row, head = row_and_head()
    query = lax.axis_index("tile")
    fetch(memory.once, of_query_rows(x, None, Tile(row, head, query, 0), memory))
    vector = vector_of_zeros()
    width = memory.q.shape[1]

    def step(index: Any, carry: Any) -> Any:
        sums, top, sum_ = carry
        tile = Tile(row, head, query, index)
        fetch(memory.step, of_key_rows(x, tile, memory) + of_pair_bias(shape, x, tile, memory))
        pairs = pairs_of(shape, x, tile, product(memory.q, turn(memory.k)), memory)
        if shape.kind == "pointwise":
            weights = weights_of(shape, pairs, None)
        else:
            hidden = jnp.where(pairs.visible, pairs.logits, HIDDEN)
            highest = jnp.maximum(top, hidden.max(axis=1))
            shrink = jnp.exp(top - highest)
            weights = weights_of(shape, pairs, along(highest, 0))
            sums = sums * along(shrink, 0, width)
            top, sum_ = highest, sum_ * shrink + weights.sum(axis=1)
        sums = sums + product(put(weights, memory.weights), memory.v)
        release()
        return sums, top, sum_

    # rows of queries of which none exists are zero
    steps = jnp.where(query < x.there[row], shape.tokens // TILE + query + 1, 0)
    sums, top, sum_ = lax.fori_loop(0, steps, step, (zeros(width), vector + HIDDEN, vector))
    if shape.kind == "softmax":
        # a row that sees nothing is not there: it is zero instead of 0 / 0
        sum_ = jnp.maximum(sum_, 1e-30)
        sums = sums / along(sum_, 0, width)
        top = top + jnp.log(sum_)
    keep(sums, memory.out, out.at[row, head, at(query)])
    keep(top, memory.total, total.at[row, head, at(query)])


def of_queries(shape: Shape, x: Operands, upstream: Upstream, out: Refs, memory: Memory) -> None:
    """A tile of the gradient of queries."""
    row, head = row_and_head()
    query = lax.axis_index("tile")
    fetch(memory.once, of_query_rows(x, upstream, Tile(row, head, query, 0), memory))

    def step(index: Any, sums: jax.Array) -> jax.Array:
        tile = Tile(row, head, query, index)
        fetch(memory.step, of_key_rows(x, tile, memory) + of_pair_bias(shape, x, tile, memory))
        _, gradient = gradient_of_logits(shape, x, tile, memory)
        sums = sums + product(put(gradient, memory.gradients), memory.k)
        release()
        return sums

    # rows of queries of which none exists are zero
    steps = jnp.where(query < x.there[row], shape.tokens // TILE + query + 1, 0)
    sums = lax.fori_loop(0, steps, step, zeros(memory.q.shape[1]))
    keep(sums, memory.out, out[0].at[row, head, at(query)])


def of_keys(shape: Shape, x: Operands, upstream: Upstream, out: Refs, memory: Memory) -> None:
    """A tile of the gradients of keys and values. x.bias: [N, S, K, P]."""
    row, head = row_and_head()
    key = lax.axis_index("tile")
    fetch(memory.once, of_key_rows(x, Tile(row, head, 0, key), memory))

    def step(index: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        of_k, of_v = carry
        tile = Tile(row, head, index, key, turned=True)
        copies = of_query_rows(x, upstream, tile, memory) + of_pair_bias(shape, x, tile, memory)
        fetch(memory.step, copies)
        weights, gradient = gradient_of_logits(shape, x, tile, memory)
        of_v = of_v + product(put(weights, memory.weights), memory.above)
        of_k = of_k + product(put(gradient, memory.gradients), memory.q)
        release()
        return of_k, of_v

    # the first queries that see an own key are those of its tile; all see the tokens
    first = jnp.maximum(key - shape.tokens // TILE, 0)
    start = zeros(memory.q.shape[1]), zeros(memory.q.shape[1])
    of_k, of_v = lax.fori_loop(first, x.there[row], step, start)
    keep(of_k, memory.out, out[0].at[row, head, at(key)])
    release()
    keep(of_v, memory.out, out[1].at[row, head, at(key)])


def of_bias(shape: Shape, x: Operands, upstream: Upstream, out: Refs, memory: Memory) -> None:
    """A tile of the gradient of the bias, the sum over the users. Hidden tiles are zero.

    With times also that of the time table, by bucket and query row, float32 [N, S, P / 64, K / 64,
    BUCKETS, 64].
    """
    segment, head = lax.axis_index("segment"), lax.axis_index("head")
    query, key = lax.axis_index("query"), lax.axis_index("key")
    fetch(memory.once, of_pair_bias(shape, x, Tile(segment, head, query, key), memory))
    if x.times is not None:

        def clear(bucket: Any, _: None) -> None:
            memory.by_bucket.at[bucket][...] = vector_of_zeros()

        lax.fori_loop(0, BUCKETS, clear, None)

    def of_user(tile: Tile, sums: jax.Array) -> jax.Array:
        copies = of_query_rows(x, upstream, tile, memory) + of_key_rows(x, tile, memory)
        fetch(memory.step, copies)
        _, gradient = gradient_of_logits(shape, x, tile, memory)
        if x.times is not None:
            add_by_bucket(x.times, tile, gradient, memory)
        release()
        return sums + gradient

    def step(user: Any, sums: jax.Array) -> jax.Array:
        tile = Tile(user * shape.segments + segment, head, query, key)
        there = query < x.there[tile.row]
        return lax.cond(there, lambda: of_user(tile, sums), lambda: sums)

    users = x.q.shape[0] // shape.segments
    there = key <= query + shape.tokens // TILE
    sums = lax.fori_loop(0, jnp.where(there, users, 0), step, zeros())
    release()
    keep(sums, memory.bias, out[0].at[head, segment, at(query), at(key)])
    if x.times is not None:
        plgpu.copy_smem_to_gmem(memory.by_bucket, out[1].at[head, segment, query, key])
        plgpu.wait_smem_to_gmem(0)


def gradient_of_logits(
    shape: Shape, x: Operands, tile: Tile, memory: Memory
) -> tuple[jax.Array, jax.Array]:
    """Weights of a tile of pairs and gradients of its logits."""
    queries = 1 if tile.turned else 0
    sides = ((memory.q, memory.k), (memory.above, memory.v))
    (a, b), (c, d) = (side[::-1] if tile.turned else side for side in sides)
    pairs = pairs_of(shape, x, tile, product(a, turn(b)), memory)
    weights = weights_of(shape, pairs, along(rows(memory.total, queries), queries))
    of_weights = product(c, turn(d))
    mean = along(rows(memory.mean, queries), queries)
    return weights, of_logits(shape, pairs, weights, of_weights, mean)


def add_by_bucket(times: Times, tile: Tile, gradient: jax.Array, memory: Memory) -> None:
    """Adds the gradients of a tile's logits to their buckets, by query row."""
    gap = distances(memory.clock, 0, 1)

    def body(bucket: Any, _: None) -> None:
        inside = (gap >= times.starts[bucket]) & (gap < times.starts[bucket + 1])
        summed = jnp.where(inside, gradient, 0.0).sum(axis=1)
        mine = memory.by_bucket.at[bucket]
        mine[...] = rows(mine, 0) + summed

    place = tile.row, tile.query, tile.key
    lax.fori_loop(times.first[place], times.last[place] + 1, body, None)
