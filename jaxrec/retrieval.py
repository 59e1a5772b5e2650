"""Ranks and top lists over the whole catalog, in memory-bounded blocks.

Dimension letters: P queries, D width, V items, K list length, X excluded items per query.
`x` [P, D] are query vectors, `table` [V + 1, D] item vectors; row 0 is padding and never a
candidate. Scores are dot products, computed in float32 at the highest precision. At most
`block` queries meet `chunk` items at a time, so memory is block x chunk scores for any P and V.

`exclude` int32 [P, X] are item ids that are no candidates for a query, such as what its user
has seen; 0 is none, an id may repeat. A rank never excludes the target itself.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.types import PAD, Array


@functools.partial(jax.jit, static_argnames=("chunk", "block"))
def rank_of_targets(
    x: Array,
    table: Array,
    targets: Array,
    *,
    chunk: int = 16384,
    block: int = 1024,
    exclude: Array | None = None,
) -> jax.Array:
    """int32 [P]: how many other candidates score at least as high as the target; 0 is best.

    Ties count against the model. So does a score that is not a number, the target's included:
    a broken model ranks last, never first. The rank of a query with target 0 means nothing.
    Raises ValueError on wrong shapes or chunk sizes.
    """
    _check(x, table, chunk, block, exclude)
    if targets.shape != x.shape[:1]:
        raise ValueError(f"targets has shape {targets.shape}: {x.shape[:1]} is needed")
    table = jnp.asarray(table)

    def ranks(x: jax.Array, targets: jax.Array, exclude: Any) -> jax.Array:
        height = min(chunk, table.shape[0])
        if height == table.shape[0]:
            own = jnp.take_along_axis(_scores(x, table), targets[:, None], axis=1)
        else:
            own = _own_scores(x, table[targets], height)

        def count(total: jax.Array, scores: jax.Array, ids: jax.Array, allowed: Any) -> jax.Array:
            other = allowed & (ids[None, :] != targets[:, None])
            better = other & ~(scores < own)  # true for NaN on either side
            return total + jnp.sum(better, axis=1, dtype=jnp.int32)

        return _over_catalog(count, jnp.zeros_like(targets), x, table, chunk, exclude)

    return _in_blocks(ranks, block, x, jnp.asarray(targets, jnp.int32), exclude)


@functools.partial(jax.jit, static_argnames=("k", "chunk", "block"))
def top_k(
    x: Array,
    table: Array,
    k: int,
    *,
    chunk: int = 16384,
    block: int = 1024,
    exclude: Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The k best candidates of each query: scores float32 [P, K] and ids int32 [P, K].

    Best first, ties by lower id. Where exclusions leave fewer than k candidates the rest of
    the list is id 0 with score -inf; an item whose score is not a number is left out in the
    same way. Raises ValueError when k exceeds the catalog.
    """
    _check(x, table, chunk, block, exclude)
    items = table.shape[0] - 1
    if not 1 <= k <= items:
        raise ValueError(f"k={k}: the catalog allows 1 to {items}")
    table = jnp.asarray(table)

    def best(x: jax.Array, exclude: Any) -> Any:
        def merge(best: Any, scores: jax.Array, ids: jax.Array, allowed: Any) -> Any:
            scores = jnp.where(allowed & ~jnp.isnan(scores), scores, -jnp.inf)
            scores, columns = jax.lax.top_k(scores, min(k, scores.shape[1]))
            # what is already in the list has lower ids, and top_k prefers what comes first
            both = jnp.concatenate([best[0], scores], axis=1)
            named = jnp.concatenate([best[1], ids[columns]], axis=1)
            scores, columns = jax.lax.top_k(both, k)
            return scores, jnp.take_along_axis(named, columns, axis=1)

        empty = jnp.full((x.shape[0], k), -jnp.inf), jnp.zeros((x.shape[0], k), jnp.int32)
        scores, ids = _over_catalog(merge, empty, x, table, chunk, exclude)
        return scores, jnp.where(jnp.isneginf(scores), PAD, ids)

    return _in_blocks(best, block, x, exclude)


def _check(x: Array, table: Array, chunk: int, block: int, exclude: Array | None) -> None:
    if chunk < 1 or block < 1:
        raise ValueError(f"chunk={chunk}, block={block}: both must be positive")
    if x.ndim != 2 or table.ndim != 2 or x.shape[1] != table.shape[1]:
        raise ValueError(f"x {x.shape} and table {table.shape}: [P, D] and [V + 1, D] are needed")
    if table.shape[0] < 2:
        raise ValueError(f"table has shape {table.shape}: a padding row and an item are needed")
    if exclude is not None and (exclude.ndim != 2 or exclude.shape[0] != x.shape[0]):
        raise ValueError(f"exclude has shape {exclude.shape}: [{x.shape[0]}, X] is needed")


def _scores(x: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.einsum(
        "pd,vd->pv",
        x.astype(jnp.float32),
        rows.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def _own_scores(x: jax.Array, rows: jax.Array, height: int) -> jax.Array:
    """[P, 1] each query's score of its own row, rounded like its score inside a chunk.

    Equal item vectors must tie exactly, and products of other shapes may round differently:
    the rows are put into a table of the chunks' height.
    """
    found = []
    for start in range(0, x.shape[0], height):
        part = rows[start : start + height]
        scores = _scores(x, jnp.pad(part, ((0, height - part.shape[0]), (0, 0))))
        found.append(jnp.diagonal(scores[start : start + height]))
    return jnp.concatenate(found)[:, None]


def _over_catalog(
    step: Callable[..., Any], first: Any, x: jax.Array, table: jax.Array, chunk: int, exclude: Any
) -> Any:
    """Folds `step(carry, scores [P, C], ids [C], allowed [P or 1, C])` over chunks of items."""
    height = min(chunk, table.shape[0])

    def body(index: Any, carry: Any) -> Any:
        # the last chunk starts early enough to be whole; rows it shares do not count again
        start = jnp.minimum(index * height, table.shape[0] - height)
        ids = (start + jnp.arange(height)).astype(jnp.int32)
        rows = jax.lax.dynamic_slice_in_dim(table, start, height)
        allowed = (ids >= jnp.maximum(index * height, PAD + 1))[None, :]
        if exclude is not None:
            column = jnp.where(exclude >= start, exclude - start, height)
            row = jnp.broadcast_to(jnp.arange(x.shape[0])[:, None], exclude.shape)
            seen = jnp.zeros((x.shape[0], height), bool)
            allowed &= ~seen.at[row, column].set(True, mode="drop")
        return step(carry, _scores(x, rows), ids, allowed)

    return jax.lax.fori_loop(0, -(-table.shape[0] // height), body, first)


def _in_blocks(function: Callable[..., Any], block: int, *arrays: Any) -> Any:
    """`function` over arrays [P, ...] (None is passed on), `block` rows at a time."""
    rows = arrays[0].shape[0]
    if rows <= block:
        return function(*arrays)
    padding = -rows % block

    def cut(a: Array) -> jax.Array:
        padded = jnp.pad(a, ((0, padding),) + ((0, 0),) * (a.ndim - 1))
        return padded.reshape(-1, block, *a.shape[1:])

    result = jax.lax.map(lambda part: function(*part), jax.tree.map(cut, arrays))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:rows], result)
