"""Tiles of query-key pairs on a Hopper GPU: their logits, weights and gradients.

A tile is 64 x 64; one warpgroup holds it in registers, as its products lie there.
"""

import inspect
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrec.nn.attention.weights import Kind

BUCKETS = 74  # of the time bias: no distance of two int32 times reaches another
TILE = 64  # rows of a warpgroup's products; also the columns of a tile of pairs
Ref: TypeAlias = Any  # memory of the GPU; Pallas has no public type for it
Refs: TypeAlias = tuple[Ref, ...]


class Shape(NamedTuple):
    """What the kernels know when they are compiled.

    normalizer: divisor of `pointwise`. tokens: columns of earlier tokens, before the own keys, a
    multiple of `TILE`. segments: of a user; the bias of row g is that of segment g % segments.
    """

    kind: Kind
    normalizer: float
    tokens: int
    segments: int


class Times(NamedTuple):
    """What the time bias is computed from.

    query: int32 seconds [G, P]; key: [G, K]; starts: float32 [BUCKETS + 1], the shortest distance
    in seconds of each bucket; table: float32 [N, BUCKETS]; first, last: int32 [G, P / 64, K / 64],
    between which the buckets of a tile lie.
    """

    query: Any
    key: Any
    starts: Any
    table: Any
    first: Any
    last: Any


class Operands(NamedTuple):
    """Rows G (a segment of a user), heads N, query rows P, key columns K, head width H.

    q: [G, N, P, H]; k, v: [G, N, K, H]; seen: float32 [G, K], 1 where a key counts; bias: float32
    [N, S, P, K]; there: int32 [G], tiles of queries up to the last that exists; times: None where
    there is no time bias. P and K are multiples of `TILE`, H of 64.
    """

    q: Any
    k: Any
    v: Any
    seen: Any
    bias: Any
    there: Any
    times: Times | None = None


class Upstream(NamedTuple):
    """What the gradients come from.

    out: gradient of the output, [G, N, P, H]. total: logarithm of what the weights of a row were
    divided by; mean: of the gradients of its weights, weighted by them; both float32 [G, N, P] and
    of softmax alone.
    """

    out: Any
    total: Any
    mean: Any


class Clock(NamedTuple):
    """Times of a tile's queries and keys in shared memory, int32 [64] each."""

    query: Ref
    key: Ref


class Memory(NamedTuple):
    """Shared memory of a kernel; None: it does not need that.

    q, k, v, above (the upstream gradient), out: rows [64, H]. weights, gradients: tiles for
    products. bias: float32 [64, 64]. seen, total, mean: float32 [64]. by_bucket: float32
    [BUCKETS, 64]. once, step: where the first copies arrive, and those of a step.
    """

    q: Ref
    k: Ref
    v: Ref
    above: Ref
    out: Ref
    weights: Ref
    gradients: Ref
    bias: Ref
    seen: Ref
    total: Ref
    mean: Ref
    clock: Clock
    by_bucket: Ref
    once: Ref
    step: Ref


class Tile(NamedTuple):
    """Where a tile of pairs lies: its row G and head, the numbers of its tiles of queries and keys.

    turned: rows of the tile are keys.
    """

    row: Any
    head: Any
    query: Any
    key: Any
    turned: bool = False


class Pairs(NamedTuple):
    """A tile in registers: logits and whether a pair counts."""

    logits: jax.Array
    visible: jax.Array


# jax 0.10 wants an index, which later versions take from `ref.at`
_WHOLE = ((),) if "idx" in inspect.signature(plgpu.load).parameters else ()


def read(ref: Ref, layout: Any, *, optimized: bool = True) -> jax.Array:
    """All of a block of shared memory, in registers. optimized: refuse loads that are slow."""
    return plgpu.load(ref, *_WHOLE, layout=layout, optimized=optimized)


def rows(ref: Ref, axis: int) -> jax.Array:
    """A vector of 64 from shared memory; it lies along `axis` of a tile."""
    return read(ref, plgpu.Layout.WGMMA.reduce(1 - axis))


def along(x: jax.Array, axis: int, columns: int = TILE) -> jax.Array:
    """A vector [64] along `axis` of a tile, repeated."""
    return lax.broadcast_in_dim(x, (TILE, columns), [axis])


def zeros(columns: int = TILE) -> jax.Array:
    """float32 [64, columns] in registers, as products lie there."""
    return plgpu.layout_cast(jnp.zeros((TILE, columns), jnp.float32), plgpu.Layout.WGMMA)


def vector_of_zeros() -> jax.Array:
    """float32 [64] in registers, a number for each row of a tile."""
    return plgpu.layout_cast(jnp.zeros((TILE,), jnp.float32), plgpu.Layout.WGMMA.reduce(1))


def product(a: Ref, b: Ref) -> jax.Array:
    """float32 a b of blocks of shared memory."""

    def multiply(out: Ref) -> jax.Array:
        plgpu.wgmma(out, a, b)
        return out[...]

    return pl.run_scoped(multiply, plgpu.ACC((TILE, b.shape[1]), jnp.float32))


def put(x: jax.Array, shared: Ref) -> Ref:
    """Registers to shared memory, for products."""
    shared[...] = x.astype(shared.dtype)
    plgpu.commit_smem()
    return shared


def turn(ref: Ref) -> Ref:
    """The transposed view of shared memory."""
    return ref.transpose((1, 0)) if hasattr(ref, "transpose") else plgpu.transpose_ref(ref, (1, 0))


def pairs_of(shape: Shape, x: Operands, tile: Tile, logits: jax.Array, memory: Memory) -> Pairs:
    """A tile of products with its biases."""
    queries, keys = (1, 0) if tile.turned else (0, 1)

    def place(axis: int) -> jax.Array:
        return plgpu.broadcasted_iota(jnp.int32, (TILE, TILE), axis, layout=plgpu.Layout.WGMMA)

    # keys are [earlier tokens | own positions]; a query sees the tokens and positions up to its own
    first = tile.query * TILE + shape.tokens
    causal = place(keys) + tile.key * TILE <= place(queries) + first
    visible = causal & (along(rows(memory.seen, keys), keys) > 0)
    logits = logits + read(memory.bias, plgpu.Layout.WGMMA, optimized=False)
    if x.times is not None:
        logits = logits + time_bias(x.times, tile, distances(memory.clock, queries, keys))
    return Pairs(logits, visible)


def distances(clock: Clock, queries: int, keys: int) -> jax.Array:
    """float32 seconds between the times of each pair of a tile."""
    query, key = along(rows(clock.query, queries), queries), along(rows(clock.key, keys), keys)
    # exact for every pair: what does not fit an int32 comes out negative, 2^32 too low
    gap = jnp.where(query >= key, query - key, key - query).astype(jnp.float32)
    return jnp.where(gap < 0, gap + 2.0**32, gap)


def time_bias(times: Times, tile: Tile, gap: jax.Array) -> jax.Array:
    """The table's number of each pair: that of the last bucket that begins before its distance.

    Walks over the tile's own buckets: far from the newest events there are few.
    """

    def body(bucket: Any, found: jax.Array) -> jax.Array:
        return jnp.where(gap >= times.starts[bucket], times.table[tile.head, bucket], found)

    place = tile.row, tile.query, tile.key
    return lax.fori_loop(times.first[place], times.last[place] + 1, body, zeros())


def weights_of(shape: Shape, pairs: Pairs, total: jax.Array | None) -> jax.Array:
    """Attention weights; total: of the softmax, see `Upstream`, as a tile."""
    x, visible = pairs
    if shape.kind == "pointwise":
        return jnp.where(visible, x * jax.nn.sigmoid(x) / shape.normalizer, 0.0)
    assert total is not None
    return jnp.where(visible, jnp.exp(x - total), 0.0)


def of_logits(
    shape: Shape, pairs: Pairs, weights: jax.Array, of_weights: jax.Array, mean: jax.Array | None
) -> jax.Array:
    """Gradients of the logits from those of the weights."""
    if shape.kind == "pointwise":
        x, visible = pairs
        gate = jax.nn.sigmoid(x)
        gradient = of_weights * gate * (1 + x * (1 - gate)) / shape.normalizer
        return jnp.where(visible, gradient, 0.0)
    assert mean is not None
    return weights * (of_weights - mean)
