"""Top lists and ranks over the whole catalog, in memory-bounded blocks.

Dimension letters: P queries, D width, V items, R rows of the index, C items of a chunk, K list
length, X excluded items per query, M history items per query.

Scores are dot products (plus an item's bias and what history items add), computed in float32 at
the highest precision. At most `block` queries are scored against `chunk` items at a time, so memory
is block x chunk scores for any P and V. Where the index is split, every device scores its own rows
and devices exchange a list or a count per query (vocabulary-parallel, as in Megatron-LM,
arXiv 1909.08053, section 3).

`exclude` int32 [P, X] are item ids that are no candidates for a query, such as what its user
has seen; 0 is none, an id may repeat. A rank never excludes the target itself.
"""

import functools
from typing import TypeAlias

import chex
import jax
import jax.numpy as jnp

from jaxrec.ranking.index import ItemIndex
from jaxrec.ranking.scoring import (
    Offsets,
    QueryBatch,
    Scored,
    Shard,
    columns_of,
    dot_scores,
    history_scores,
    on_shards,
)
from jaxrec.runtime.mesh import MODEL
from jaxrec.types import PAD, Array, HistoryItems, Queries

TopK: TypeAlias = tuple[jax.Array, jax.Array]  # scores [P, K], ids [P, K]


@functools.partial(jax.jit, static_argnames=("k", "chunk", "block"))
def top_k(
    queries: Queries,
    index: ItemIndex,
    k: int,
    *,
    exclude: Array | None = None,
    history: HistoryItems | None = None,
    chunk: int = 16384,
    block: int = 1024,
) -> TopK:
    """The k best candidates of each query: scores float32 [P, K] and ids int32 [P, K].

    Best first, ties by lower id. Where exclusions leave fewer than k candidates the rest of
    the list is id 0 with score -inf; an item whose score is not a number is left out in the
    same way. Raises ValueError when k exceeds the catalog.
    """
    batch = _query_batch(queries, index, exclude, history, chunk, block)
    if not 1 <= k <= index.num_items:
        raise ValueError(f"k={k}: the catalog allows 1 to {index.num_items}")

    def best(batch: QueryBatch, shard: Shard) -> TopK:
        def merge(lists: TopK, scored: Scored) -> TopK:
            scores = jnp.where(scored.allowed & ~jnp.isnan(scored.scores), scored.scores, -jnp.inf)
            scores, columns = jax.lax.top_k(scores, min(k, scores.shape[1]))
            # earlier chunks have lower ids, and `jax.lax.top_k` breaks ties by position
            return _merged(k, [lists, (scores, scored.ids[columns])])

        rows = batch.vectors.shape[0]
        empty = jnp.full((rows, k), -jnp.inf), jnp.zeros((rows, k), jnp.int32)
        lists = shard.fold(merge, empty, batch)
        if index.mesh is not None:
            # shards are in the order of their ids, so ties still go to the lower one
            scores, ids = jax.lax.all_gather(lists, MODEL)
            lists = _merged(k, list(zip(scores, ids, strict=True)))
        scores, ids = lists
        return scores, jnp.where(jnp.isneginf(scores), PAD, ids)

    return on_shards(best, batch, index, chunk, block)


@functools.partial(jax.jit, static_argnames=("chunk", "block"))
def rank_of_targets(
    queries: Queries,
    index: ItemIndex,
    targets: Array,
    *,
    exclude: Array | None = None,
    history: HistoryItems | None = None,
    chunk: int = 16384,
    block: int = 1024,
) -> jax.Array:
    """int32 [P]: how many other candidates score at least as high as the target; 0 is best.

    Ties count against the model. So does a score that is not a number, the target's included:
    a broken model ranks last, never first. Ignore the rank of a query with target 0.
    Raises ValueError on wrong shapes or chunk sizes.
    """
    batch = _query_batch(queries, index, exclude, history, chunk, block)
    if targets.shape != batch.vectors.shape[:1]:
        raise ValueError(f"targets has shape {targets.shape}: {batch.vectors.shape[:1]} is needed")
    batch = batch._replace(targets=jnp.asarray(targets, jnp.int32))

    def ranks(batch: QueryBatch, shard: Shard) -> jax.Array:
        targets = batch.targets
        assert targets is not None
        target_scores = shard.scores_of_targets(batch)

        def count(total: jax.Array, scored: Scored) -> jax.Array:
            others = scored.allowed & (scored.ids[None, :] != targets[:, None])
            better = others & ~(scored.scores < target_scores)  # true for NaN on either side
            return total + jnp.sum(better, axis=1, dtype=jnp.int32)

        return shard.sum(shard.fold(count, jnp.zeros_like(targets), batch))

    return on_shards(ranks, batch, index, chunk, block)


@jax.jit
def scores(queries: Queries, index: ItemIndex, history: HistoryItems | None = None) -> jax.Array:
    """float32 [P, V + 1] all scores of a few queries; ignore column 0, which is padding."""
    offsets = history_scores(queries, history)
    result = dot_scores(queries.vectors, index.vectors(jnp.arange(index.num_items + 1)))
    if offsets is None:
        return result
    places = columns_of(offsets.ids, jnp.int32(0), result.shape[1])
    return result.at[places].add(offsets.scores, mode="drop")


def top_k_of_candidates(
    queries: Queries,
    index: ItemIndex,
    candidates: Array,
    k: int,
    *,
    history: HistoryItems | None = None,
) -> TopK:
    """The k best of each query's own candidates int32 [P, X]: scores and ids [P, K], K <= X.

    0 is no candidate, an id stands once per query. Ties go to the earlier candidate; where
    there are fewer than k the rest is id 0 with score -inf.
    """
    if k > candidates.shape[1]:
        raise ValueError(f"k={k}: there is room for {candidates.shape[1]} candidates")
    offsets = history_scores(queries, history)

    def best(row: tuple[jax.Array, jax.Array, Offsets | None]) -> TopK:
        vector, ids, offsets = row
        items = index.vectors(ids)
        scores = dot_scores(vector[None], items)[0]
        if offsets is not None:
            hits = (ids[:, None] == offsets.ids[None, :]) & (offsets.ids != PAD)[None, :]
            scores = scores + jnp.sum(jnp.where(hits, offsets.scores[None, :], 0.0), axis=1)
        scores = jnp.where((ids != PAD) & ~jnp.isnan(scores), scores, -jnp.inf)
        scores, columns = jax.lax.top_k(scores, k)
        return scores, jnp.where(jnp.isneginf(scores), PAD, ids[columns])

    return jax.lax.map(best, (queries.vectors, candidates, offsets), batch_size=8)


def _query_batch(
    queries: Queries,
    index: ItemIndex,
    exclude: Array | None,
    history: HistoryItems | None,
    chunk: int,
    block: int,
) -> QueryBatch:
    """The queries with what belongs to them. Raises ValueError on wrong shapes and sizes."""
    if chunk < 1 or block < 1:
        raise ValueError(f"chunk={chunk}, block={block}: both must be positive")
    if index.num_items < 1:
        raise ValueError(f"the index has {index.height} rows: a padding row and an item are needed")
    chex.assert_rank(jax.tree.leaves(queries), 2)
    count = queries.vectors.shape[0]
    if exclude is not None and (exclude.ndim != 2 or exclude.shape[0] != count):
        raise ValueError(f"exclude has shape {exclude.shape}: [{count}, X] is needed")
    if index.height % index.shards:
        raise ValueError(
            f"the index has {index.height} rows: mesh.model={index.shards} must divide them"
        )
    return QueryBatch(queries.vectors, exclude, history_scores(queries, history))


def _merged(k: int, lists: list[TopK]) -> TopK:
    """The k best of lists [P, _]; of equal scores those that come first."""
    scores, ids = (jnp.concatenate(column, axis=1) for column in zip(*lists, strict=True))
    best, columns = jax.lax.top_k(scores, k)
    return best, jnp.take_along_axis(ids, columns, axis=1)
