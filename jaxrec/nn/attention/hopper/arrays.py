"""Arrays as the kernels for Hopper want them: folded segments, biases, times."""

import dataclasses
import functools
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.layout import Run, SegmentLayout
from jaxrec.nn.attention.hopper import tiles
from jaxrec.nn.attention.hopper.tiles import BUCKETS, TILE
from jaxrec.nn.attention.interface import Bias, Inputs
from jaxrec.nn.attention.segment_rows import cut, earlier_tokens
from jaxrec.nn.attention.weights import Weighing
from jaxrec.nn.bias import BUCKET_WIDTH, RelativeBias, time_bucket
from jaxrec.types import Array

LANES = 64  # the width of heads is a multiple: rows of 128 bytes


def folded(
    inputs: Inputs, layout: SegmentLayout, run: Run, weigh: Weighing
) -> tuple[tiles.Shape, tiles.Operands]:
    """A run's segments as rows of the tiles."""
    keys, visible = layout.earlier_tokens(run)
    tokens = earlier_tokens(inputs, layout, run)
    users, heads = len(inputs.q), inputs.q.shape[2]
    # cut: [s, B, P, N, H]
    q, own_k, own_v = (
        _padded(jnp.transpose(cut(x, run), (1, 0, 3, 2, 4)), {3: TILE, 4: LANES})
        for x in (inputs.q, inputs.k, inputs.v)
    )
    seen = _padded(jnp.swapaxes(cut(inputs.valid, run), 0, 1), {2: TILE})

    def with_tokens(own: jax.Array, x: Array) -> jax.Array:
        """[B, s, N, C + P, H]; x: [B, N, K, H], the same tokens for every segment."""
        x = _padded(x, {2: TILE, 3: LANES})[:, None]
        return jnp.concatenate([jnp.broadcast_to(x, (users, run.count, *x.shape[2:])), own], axis=3)

    seen_tokens = _padded(tokens.valid[:, None] & jnp.asarray(visible)[None], {2: TILE})
    x = tiles.Operands(
        q=q,
        k=with_tokens(own_k, tokens.k),
        v=with_tokens(own_v, tokens.v),
        seen=jnp.concatenate([seen_tokens, seen], axis=2).astype(jnp.float32),
        bias=None,
        there=_tiles_there(seen),
    )
    x = jax.tree.map(lambda a: a.reshape(users * run.count, *a.shape[2:]), x)
    bias = cast(RelativeBias | None, inputs.bias)
    times = None
    if bias is not None and bias.time is not None:
        times = _times(bias, run, keys, seen, x.seen)
        bias = dataclasses.replace(bias, time=None)
    shape = tiles.Shape(weigh.kind, weigh.normalizer, seen_tokens.shape[2], run.count)
    return shape, x._replace(bias=_bias(bias, run, keys, heads), times=times)


def _tiles_there(exists: jax.Array) -> jax.Array:
    """int32 [B, s]: tiles of the positions [B, s, P] up to the last that exists."""
    tiles = exists.reshape(*exists.shape[:2], -1, TILE).any(3)
    return jnp.max(
        jnp.where(tiles, jnp.arange(1, tiles.shape[2] + 1)[None, None], 0), axis=2
    ).astype(jnp.int32)


def _times(
    bias: RelativeBias, run: Run, keys: np.ndarray, queries_exist: jax.Array, seen: jax.Array
) -> tiles.Times:
    """Times of a run's queries and keys, and the buckets of every tile.

    queries_exist: bool [B, s, P]; seen: float32 [B s, C + P].
    """
    cached = bias.layout.num_cached
    own = bias.key_times[:, cached:]
    query, key = (jnp.swapaxes(cut(jnp.asarray(x), run), 0, 1) for x in (bias.query_times, own))
    earlier = jnp.asarray(bias.key_times)[:, None, keys]
    earlier = jnp.broadcast_to(earlier, (len(query), run.count, len(keys)))
    query, key, earlier = (_padded(x.astype(jnp.int32), {2: TILE}) for x in (query, key, earlier))
    key = jnp.concatenate([earlier, key], axis=2)
    query, key = (x.reshape(-1, x.shape[2]) for x in (query, key))
    exists = queries_exist.reshape(query.shape), seen > 0
    (low_q, high_q), (low_k, high_k) = (
        _range_of_tiles(*pair) for pair in zip((query, key), exists, strict=True)
    )
    low_q, high_q, low_k, high_k = (
        low_q[:, :, None],
        high_q[:, :, None],
        low_k[:, None],
        high_k[:, None],
    )
    nearest = jnp.where(
        low_q > high_k,
        time_bucket(low_q, high_k),
        jnp.where(low_k > high_q, time_bucket(low_k, high_q), 0),
    )
    farthest = jnp.maximum(time_bucket(high_q, low_k), time_bucket(high_k, low_q))
    assert bias.time is not None
    return tiles.Times(
        query=query,
        key=key,
        starts=jnp.asarray(bucket_starts()),
        table=bias.time[:BUCKETS].T.astype(jnp.float32),
        # a logarithm may be off by its last bit
        first=jnp.maximum(nearest - 1, 0),
        last=jnp.minimum(farthest + 1, BUCKETS - 1),
    )


def _range_of_tiles(times: jax.Array, exists: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int32 [G, n / 64]: the earliest and the latest time of a tile that exists; 0 if none does."""
    times, exists = (x.reshape(len(x), -1, TILE) for x in (times, exists))
    any_ = exists.any(2)
    low = jnp.where(exists, times, jnp.iinfo(jnp.int32).max).min(2)
    high = jnp.where(exists, times, jnp.iinfo(jnp.int32).min).max(2)
    return jnp.where(any_, low, 0), jnp.where(any_, high, 0)


@functools.cache
def bucket_starts() -> np.ndarray:
    """float32 [BUCKETS + 1]: the shortest distance of each bucket (`time_bucket`), and infinity.

    Distances are compared with them instead of taking their logarithm.
    """

    def bucket(distance: np.float32) -> float:
        return float(np.floor(np.log(np.maximum(distance, 1)) / np.float32(BUCKET_WIDTH)))

    starts = [np.float32(0)]
    for number in range(1, BUCKETS):
        start = np.float32(np.exp(np.float64(BUCKET_WIDTH) * number))
        while bucket(start) >= number:
            start = np.nextafter(start, np.float32(0))
        while bucket(start) < number:
            start = np.nextafter(start, np.float32(np.inf))
        starts.append(start)
    return np.asarray([*starts, np.inf], np.float32)


def _bias(bias: Bias | None, run: Run, keys: np.ndarray, heads: int) -> jax.Array:
    """float32 [N, s, P, C + P] of own keys and earlier tokens; zeros where there is none."""
    sides = []
    own: Array = jnp.zeros((run.count, 1, 1, 1, 1))
    earlier: Array = own
    if bias is not None:
        segments = bias.segments(run, keys)
        each = [
            bias.block(jax.tree.map(lambda x, s=s: x[s], segments), run, 0, run.length)
            for s in range(run.count)
        ]
        own, earlier = (jnp.stack(side) for side in zip(*each, strict=True))
    for side, columns in ((earlier, len(keys)), (own, run.length)):
        shape = (run.count, heads, run.length, columns)
        whole = jnp.broadcast_to(side[:, 0], shape).astype(jnp.float32)
        sides.append(_padded(whole, {2: TILE, 3: TILE}))
    return jnp.swapaxes(jnp.concatenate(sides, axis=3), 0, 1)


def _padded(x: Array, multiples: dict[int, int]) -> jax.Array:
    """x with axes filled up with zeros to multiples."""
    more = [(0, -x.shape[axis] % multiples.get(axis, 1)) for axis in range(x.ndim)]
    return jnp.pad(x, more)
