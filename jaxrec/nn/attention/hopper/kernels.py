"""Mosaic GPU kernels for Hopper: attention of folded segments, forward and backward.

One warpgroup computes a tile of 64 rows, and walks over tiles of 64 of what it is multiplied with:
each is copied to shared memory, and logits, masks and weights exist in registers alone. Four
kernels: the output; the gradient of queries; that of keys and values, in which rows are keys
(`turned`); that of the bias, which adds up over the users.
"""

import inspect
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrec.nn.attention.weights import HIDDEN, Kind

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


class Inputs(NamedTuple):
    """Rows G (a segment of a user), heads N, query rows P, key columns K, head width H.

    q: [G, N, P, H]; k, v: [G, N, K, H]; seen: float32 [G, K], 1 where a key counts; bias: float32
    [N, S, P, K]. P and K are multiples of `TILE`, H of 64.
    """

    q: Any
    k: Any
    v: Any
    seen: Any
    bias: Any


class Upstream(NamedTuple):
    """What the gradients come from.

    out: gradient of the output, [G, N, P, H]. total: logarithm of what the weights of a row were
    divided by; mean: of the gradients of its weights, weighted by them; both float32 [G, N, P] and
    of softmax alone.
    """

    out: Any
    total: Any
    mean: Any


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


def pairs_of(
    shape: Shape, logits: jax.Array, bias: Ref, seen: Ref, query: Any, key: Any, *, turned: bool
) -> Pairs:
    """A tile of products with its bias. query, key: first row of it; turned: rows are keys."""
    queries, keys = (1, 0) if turned else (0, 1)

    def place(axis: int) -> jax.Array:
        return plgpu.broadcasted_iota(jnp.int32, (TILE, TILE), axis, layout=plgpu.Layout.WGMMA)

    # keys are [earlier tokens | own positions]; a query sees the tokens and positions up to its own
    causal = place(keys) + key <= place(queries) + (query + shape.tokens)
    visible = causal & (along(rows(seen, keys), keys) > 0)
    logits = logits + read(bias, plgpu.Layout.WGMMA, optimized=False)
    return Pairs(logits, visible)


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


def fetch(barrier: Ref, *copies: tuple[Ref, Ref]) -> None:
    """Copies (from, to) to shared memory and waits for all."""
    for source, target in copies:
        plgpu.copy_gmem_to_smem(source, target, barrier)
    plgpu.barrier_wait(barrier)


class Place(NamedTuple):
    """What a block of threads computes."""

    row: Any
    head: Any
    tile: Any


def place_of_block() -> Place:
    """What this block of threads computes."""
    return Place(*(lax.axis_index(name) for name in Place._fields))


def key_tiles(shape: Shape, x: Inputs, place: Place, index: Any) -> list[Ref]:
    """Tile `index` of keys, values, their bias for the queries of a place, and what exists."""
    row, head, tile = place
    return [
        x.k.at[row, head, at(index)],
        x.v.at[row, head, at(index)],
        x.bias.at[head, lax.rem(row, shape.segments), at(tile), at(index)],
        x.seen.at[row, at(index)],
    ]


def keep(x: jax.Array, shared: Ref, out: Ref) -> None:
    """Writes registers to the GPU's memory, by way of shared memory."""
    plgpu.copy_smem_to_gmem(put(x, shared), out)
    plgpu.wait_smem_to_gmem(0)


def at(index: Any) -> Any:
    """Rows of tile `index`."""
    return pl.ds(index * TILE, TILE)


# -- kernels -------------------------------------------------------------------------------------


def forward(shape: Shape, x: Inputs, out: Ref, total: Ref, memory: Any) -> None:
    """A tile of the output, and of the logarithm of the softmax' total."""
    q, k, v, kept, narrow, bias, seen, kept_total, arrived = memory
    row, head, tile = place = place_of_block()
    fetch(arrived[0], (x.q.at[row, head, at(tile)], q))
    vector = plgpu.layout_cast(jnp.zeros((TILE,), jnp.float32), plgpu.Layout.WGMMA.reduce(1))

    def step(index: Any, carry: Any) -> Any:
        sums, top, sum_ = carry
        tiles = key_tiles(shape, x, place, index)
        fetch(arrived[1], *zip(tiles, (k, v, bias, seen), strict=True))
        logits = product(q, turn(k))
        pairs = pairs_of(shape, logits, bias, seen, tile * TILE, index * TILE, turned=False)
        if shape.kind == "pointwise":
            weights = weights_of(shape, pairs, None)
        else:
            hidden = jnp.where(pairs.visible, pairs.logits, HIDDEN)
            highest = jnp.maximum(top, hidden.max(axis=1))
            shrink = jnp.exp(top - highest)
            weights = weights_of(shape, pairs, along(highest, 0))
            sums = sums * along(shrink, 0, sums.shape[1])
            top, sum_ = highest, sum_ * shrink + weights.sum(axis=1)
        sums = sums + product(put(weights, narrow), v)
        plgpu.commit_smem()  # all threads have read: the next copies may write
        return sums, top, sum_

    steps = shape.tokens // TILE + tile + 1
    start = (zeros(q.shape[1]), vector + HIDDEN, vector)
    sums, top, sum_ = lax.fori_loop(0, steps, step, start)
    if shape.kind == "softmax":
        # a row that sees nothing is not there: it is zero instead of 0 / 0
        sum_ = jnp.maximum(sum_, 1e-30)
        sums = sums / along(sum_, 0, sums.shape[1])
        top = top + jnp.log(sum_)
    keep(sums, kept, out.at[row, head, at(tile)])
    keep(top, kept_total, total.at[row, head, at(tile)])


def of_queries(shape: Shape, x: Inputs, upstream: Upstream, out: Refs, memory: Any) -> None:
    """A tile of the gradient of queries."""
    q, k, v, above, kept, narrow, bias, seen, total, mean, arrived = memory
    row, head, tile = place = place_of_block()
    fetch(
        arrived[0],
        (x.q.at[row, head, at(tile)], q),
        (upstream.out.at[row, head, at(tile)], above),
        (upstream.total.at[row, head, at(tile)], total),
        (upstream.mean.at[row, head, at(tile)], mean),
    )
    total_, mean_ = rows(total, 0), rows(mean, 0)

    def step(index: Any, sums: jax.Array) -> jax.Array:
        tiles = key_tiles(shape, x, place, index)
        fetch(arrived[1], *zip(tiles, (k, v, bias, seen), strict=True))
        logits = product(q, turn(k))
        pairs = pairs_of(shape, logits, bias, seen, tile * TILE, index * TILE, turned=False)
        weights = weights_of(shape, pairs, along(total_, 0))
        of_weights = product(above, turn(v))
        gradient = of_logits(shape, pairs, weights, of_weights, along(mean_, 0))
        sums = sums + product(put(gradient, narrow), k)
        plgpu.commit_smem()  # all threads have read: the next copies may write
        return sums

    steps = shape.tokens // TILE + tile + 1
    keep(lax.fori_loop(0, steps, step, zeros(q.shape[1])), kept, out[0].at[row, head, at(tile)])


def of_keys(shape: Shape, x: Inputs, upstream: Upstream, out: Refs, memory: Any) -> None:
    """A tile of the gradients of keys and values. x.bias: [N, S, K, P]."""
    q, k, v, above, kept, narrow, narrower, bias, seen, total, mean, arrived = memory
    row, head, tile = place_of_block()
    segment = lax.rem(row, shape.segments)
    fetch(
        arrived[0],
        (x.k.at[row, head, at(tile)], k),
        (x.v.at[row, head, at(tile)], v),
        (x.seen.at[row, at(tile)], seen),
    )

    def step(index: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        of_k, of_v = carry
        fetch(
            arrived[1],
            (x.q.at[row, head, at(index)], q),
            (upstream.out.at[row, head, at(index)], above),
            (upstream.total.at[row, head, at(index)], total),
            (upstream.mean.at[row, head, at(index)], mean),
            (x.bias.at[head, segment, at(tile), at(index)], bias),
        )
        logits = product(k, turn(q))
        pairs = pairs_of(shape, logits, bias, seen, index * TILE, tile * TILE, turned=True)
        weights = weights_of(shape, pairs, along(rows(total, 1), 1))
        of_v = of_v + product(put(weights, narrow), above)
        of_weights = product(v, turn(above))
        gradient = of_logits(shape, pairs, weights, of_weights, along(rows(mean, 1), 1))
        of_k = of_k + product(put(gradient, narrower), q)
        plgpu.commit_smem()  # all threads have read: the next copies may write
        return of_k, of_v

    # the first queries that see an own key are those of its tile; all see the tokens
    first = jnp.maximum(tile - shape.tokens // TILE, 0)
    steps = x.q.shape[2] // TILE
    of_k, of_v = lax.fori_loop(first, steps, step, (zeros(q.shape[1]), zeros(q.shape[1])))
    keep(of_k, kept, out[0].at[row, head, at(tile)])
    plgpu.commit_smem()
    keep(of_v, kept, out[1].at[row, head, at(tile)])


def of_bias(shape: Shape, x: Inputs, upstream: Upstream, out: Refs, memory: Any) -> None:
    """A tile of the gradient of the bias: the sum over the users. Hidden tiles are zero."""
    q, k, v, above, bias, seen, total, mean, arrived = memory
    segment, head = lax.axis_index("segment"), lax.axis_index("head")
    query, key = lax.axis_index("query"), lax.axis_index("key")
    fetch(arrived[0], (x.bias.at[head, segment, at(query), at(key)], bias))

    def step(user: Any, sums: jax.Array) -> jax.Array:
        row = user * shape.segments + segment
        fetch(
            arrived[1],
            (x.q.at[row, head, at(query)], q),
            (x.k.at[row, head, at(key)], k),
            (x.v.at[row, head, at(key)], v),
            (x.seen.at[row, at(key)], seen),
            (upstream.out.at[row, head, at(query)], above),
            (upstream.total.at[row, head, at(query)], total),
            (upstream.mean.at[row, head, at(query)], mean),
        )
        logits = product(q, turn(k))
        pairs = pairs_of(shape, logits, bias, seen, query * TILE, key * TILE, turned=False)
        weights = weights_of(shape, pairs, along(rows(total, 0), 0))
        of_weights = product(above, turn(v))
        sums = sums + of_logits(shape, pairs, weights, of_weights, along(rows(mean, 0), 0))
        plgpu.commit_smem()  # all threads have read: the next copies may write
        return sums

    users = x.q.shape[0] // shape.segments
    there = key <= query + shape.tokens // TILE
    sums = lax.fori_loop(0, jnp.where(there, users, 0), step, zeros())
    plgpu.commit_smem()
    keep(sums, bias, out[0].at[head, segment, at(query), at(key)])
