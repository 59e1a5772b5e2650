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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.types import PAD, Array


class Own(NamedTuple):
    """Items whose scores depend on the query beyond the dot product.

    ids: int32 [P, M], 0 is none, an id stands once per query. features: float32 [P, M, K];
    queries have K more columns than items, the weights of the features (see `repeats`).
    """

    ids: Array
    features: Array


@functools.partial(jax.jit, static_argnames=("chunk", "block"))
def rank_of_targets(
    x: Array,
    table: Array,
    targets: Array,
    exclude: Array | None = None,
    own: Own | None = None,
    *,
    chunk: int = 16384,
    block: int = 1024,
) -> jax.Array:
    """int32 [P]: how many other candidates score at least as high as the target; 0 is best.

    Ties count against the model. So does a score that is not a number, the target's included:
    a broken model ranks last, never first. The rank of a query with target 0 means nothing.
    Raises ValueError on wrong shapes or chunk sizes.
    """
    x, bonus = with_bonus(x, table, own)
    _check(x, table, chunk, block, exclude)
    if targets.shape != x.shape[:1]:
        raise ValueError(f"targets has shape {targets.shape}: {x.shape[:1]} is needed")
    table = jnp.asarray(table)

    def ranks(x: jax.Array, targets: jax.Array, exclude: Any, bonus: Any) -> jax.Array:
        height = min(chunk, table.shape[0])
        if height == table.shape[0]:
            reached = jnp.take_along_axis(_scores(x, table), targets[:, None], axis=1)
        else:
            reached = _target_scores(x, table[targets], height)
        if bonus is not None:
            hit = bonus[0] == targets[:, None]
            reached = reached + jnp.sum(jnp.where(hit, bonus[1], 0.0), axis=1, keepdims=True)

        def count(total: jax.Array, scores: jax.Array, ids: jax.Array, allowed: Any) -> jax.Array:
            other = allowed & (ids[None, :] != targets[:, None])
            better = other & ~(scores < reached)  # true for NaN on either side
            return total + jnp.sum(better, axis=1, dtype=jnp.int32)

        return _over_catalog(count, jnp.zeros_like(targets), x, table, chunk, exclude, bonus)

    return _in_blocks(ranks, block, x, jnp.asarray(targets, jnp.int32), exclude, bonus)


@functools.partial(jax.jit, static_argnames=("k", "chunk", "block"))
def top_k(
    x: Array,
    table: Array,
    k: int,
    exclude: Array | None = None,
    own: Own | None = None,
    *,
    chunk: int = 16384,
    block: int = 1024,
) -> tuple[jax.Array, jax.Array]:
    """The k best candidates of each query: scores float32 [P, K] and ids int32 [P, K].

    Best first, ties by lower id. Where exclusions leave fewer than k candidates the rest of
    the list is id 0 with score -inf; an item whose score is not a number is left out in the
    same way. Raises ValueError when k exceeds the catalog.
    """
    x, bonus = with_bonus(x, table, own)
    _check(x, table, chunk, block, exclude)
    items = table.shape[0] - 1
    if not 1 <= k <= items:
        raise ValueError(f"k={k}: the catalog allows 1 to {items}")
    table = jnp.asarray(table)

    def best(x: jax.Array, exclude: Any, bonus: Any) -> Any:
        def merge(best: Any, scores: jax.Array, ids: jax.Array, allowed: Any) -> Any:
            scores = jnp.where(allowed & ~jnp.isnan(scores), scores, -jnp.inf)
            scores, columns = jax.lax.top_k(scores, min(k, scores.shape[1]))
            # what is already in the list has lower ids, and top_k prefers what comes first
            both = jnp.concatenate([best[0], scores], axis=1)
            named = jnp.concatenate([best[1], ids[columns]], axis=1)
            scores, columns = jax.lax.top_k(both, k)
            return scores, jnp.take_along_axis(named, columns, axis=1)

        empty = jnp.full((x.shape[0], k), -jnp.inf), jnp.zeros((x.shape[0], k), jnp.int32)
        scores, ids = _over_catalog(merge, empty, x, table, chunk, exclude, bonus)
        return scores, jnp.where(jnp.isneginf(scores), PAD, ids)

    return _in_blocks(best, block, x, exclude, bonus)


def scores(x: Array, table: Array, own: Own | None = None) -> jax.Array:
    """float32 [P, V + 1] all scores of a few queries; column 0, padding, means nothing."""
    x, bonus = with_bonus(x, table, own)
    found = _scores(jnp.asarray(x), jnp.asarray(table))
    if bonus is None:
        return found
    return found.at[places(bonus[0], jnp.int32(0), table.shape[0])].add(bonus[1], mode="drop")


def with_bonus(x: Array, table: Array, own: Own | None) -> tuple[Array, tuple[Array, Array] | None]:
    """Query vectors, and (ids, what to add to their scores) [P, M]."""
    if own is None:
        return x, None
    width, features = table.shape[-1], own.features.shape[-1]
    if x.ndim != 2 or x.shape[1] != width + features or own.ids.shape[0] != x.shape[0]:
        raise ValueError(
            f"x {x.shape}, table {table.shape}, own features {own.features.shape}: queries "
            "[P, D + K], items [V + 1, D] and features [P, M, K] are needed"
        )
    bonus = jnp.einsum("pk,pmk->pm", x[:, width:], own.features, precision="highest")
    return x[:, :width], (own.ids, bonus)


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


def _target_scores(x: jax.Array, rows: jax.Array, height: int) -> jax.Array:
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
    step: Callable[..., Any],
    first: Any,
    x: jax.Array,
    table: jax.Array,
    chunk: int,
    exclude: Any,
    bonus: Any,
) -> Any:
    """Folds `step(carry, scores [P, C], ids [C], allowed [P or 1, C])` over chunks of items."""
    height = min(chunk, table.shape[0])

    def body(index: Any, carry: Any) -> Any:
        # the last chunk starts early enough to be whole; rows it shares do not count again
        start = jnp.minimum(index * height, table.shape[0] - height)
        ids = (start + jnp.arange(height)).astype(jnp.int32)
        rows = jax.lax.dynamic_slice_in_dim(table, start, height)
        allowed = (ids >= jnp.maximum(index * height, PAD + 1))[None, :]
        scores = _scores(x, rows)
        if exclude is not None:
            seen = jnp.zeros((x.shape[0], height), bool)
            allowed &= ~seen.at[places(exclude, start, height)].set(True, mode="drop")
        if bonus is not None:
            scores = scores.at[places(bonus[0], start, height)].add(bonus[1], mode="drop")
        return step(carry, scores, ids, allowed)

    return jax.lax.fori_loop(0, -(-table.shape[0] // height), body, first)


def places(ids: jax.Array, start: Any, height: int) -> tuple[jax.Array, jax.Array]:
    """(row, column) of item ids [P, X] in the scores of a chunk; column `height`: not in it."""
    row = jnp.broadcast_to(jnp.arange(ids.shape[0])[:, None], ids.shape)
    return row, jnp.where((ids >= start) & (ids != PAD), ids - start, height)


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
