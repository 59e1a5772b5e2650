"""Top lists and ranks over the whole catalog, in memory-bounded blocks.

Dimension letters: P queries, D width, V items, R rows of the index, C items of a chunk, K list
length, X excluded items per query, M history items per query.

Scores are dot products (plus an item's bias and what history items add), computed in float32 at
the highest precision. At most `block` queries meet `chunk` items at a time, so memory is
block x chunk scores for any P and V. Where the index is split, every device scores its own rows;
what travels is a list or a count per query (vocabulary-parallel, as in Megatron-LM,
arXiv 1909.08053, section 3).

`exclude` int32 [P, X] are item ids that are no candidates for a query, such as what its user
has seen; 0 is none, an id may repeat. A rank never excludes the target itself.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxrec.ranking.index import AXIS, ItemIndex
from jaxrec.types import PAD, Array, HistoryItems, ItemVectors, Queries, Tree

T = TypeVar("T")
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
    requests = _requests(queries, index, exclude, history, chunk, block)
    if not 1 <= k <= index.num_items:
        raise ValueError(f"k={k}: the catalog allows 1 to {index.num_items}")

    def best(requests: _Requests, shard: _Shard) -> TopK:
        def merge(lists: TopK, scored: _Scored) -> TopK:
            scores = jnp.where(scored.allowed & ~jnp.isnan(scored.scores), scored.scores, -jnp.inf)
            scores, columns = jax.lax.top_k(scores, min(k, scores.shape[1]))
            # what is already in the list has lower ids, and top_k prefers what comes first
            return _merged(k, [lists, (scores, scored.ids[columns])])

        rows = requests.vectors.shape[0]
        empty = jnp.full((rows, k), -jnp.inf), jnp.zeros((rows, k), jnp.int32)
        lists = shard.fold(merge, empty, requests)
        if index.mesh is not None:
            # shards are in the order of their ids, so ties still go to the lower one
            scores, ids = jax.lax.all_gather(lists, AXIS)
            lists = _merged(k, list(zip(scores, ids, strict=True)))
        scores, ids = lists
        return scores, jnp.where(jnp.isneginf(scores), PAD, ids)

    return _on_shards(best, requests, index, chunk, block)


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
    a broken model ranks last, never first. The rank of a query with target 0 means nothing.
    Raises ValueError on wrong shapes or chunk sizes.
    """
    requests = _requests(queries, index, exclude, history, chunk, block)
    if targets.shape != requests.vectors.shape[:1]:
        raise ValueError(
            f"targets has shape {targets.shape}: {requests.vectors.shape[:1]} is needed"
        )
    requests = requests._replace(targets=jnp.asarray(targets, jnp.int32))

    def ranks(requests: _Requests, shard: _Shard) -> jax.Array:
        targets = requests.targets
        assert targets is not None
        target_scores = shard.scores_of_targets(requests)

        def count(total: jax.Array, scored: _Scored) -> jax.Array:
            others = scored.allowed & (scored.ids[None, :] != targets[:, None])
            better = others & ~(scored.scores < target_scores)  # true for NaN on either side
            return total + jnp.sum(better, axis=1, dtype=jnp.int32)

        return shard.sum(shard.fold(count, jnp.zeros_like(targets), requests))

    return _on_shards(ranks, requests, index, chunk, block)


@jax.jit
def scores(queries: Queries, index: ItemIndex, history: HistoryItems | None = None) -> jax.Array:
    """float32 [P, V + 1] all scores of a few queries; column 0, padding, means nothing."""
    offsets = _history_scores(queries, history)
    result = _scores(queries.vectors, index.vectors(jnp.arange(index.num_items + 1)))
    if offsets is None:
        return result
    places = _places(offsets.ids, jnp.int32(0), result.shape[1])
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
    offsets = _history_scores(queries, history)

    def best(row: tuple[jax.Array, jax.Array, _Offsets | None]) -> TopK:
        vector, ids, offsets = row
        items = index.vectors(ids)
        scores = _scores(vector[None], items)[0]
        if offsets is not None:
            hits = (ids[:, None] == offsets.ids[None, :]) & (offsets.ids != PAD)[None, :]
            scores = scores + jnp.sum(jnp.where(hits, offsets.scores[None, :], 0.0), axis=1)
        scores = jnp.where((ids != PAD) & ~jnp.isnan(scores), scores, -jnp.inf)
        scores, columns = jax.lax.top_k(scores, k)
        return scores, jnp.where(jnp.isneginf(scores), PAD, ids[columns])

    return jax.lax.map(best, (queries.vectors, candidates, offsets), batch_size=8)


class _Offsets(NamedTuple):
    """What history items add to scores: ids int32 [P, M], scores float32 [P, M]."""

    ids: Array
    scores: Array


class _Requests(NamedTuple):
    """Everything with a row per query."""

    vectors: Array
    exclude: Array | None
    offsets: _Offsets | None
    targets: Array | None = None


class _Scored(NamedTuple):
    """A chunk of items: scores [P, C], ids int32 [C], allowed bool [P or 1, C]."""

    scores: jax.Array
    ids: jax.Array
    allowed: jax.Array


@dataclasses.dataclass(frozen=True)
class _Shard:
    """The rows that one device ranks: `height` of them, the first is item `first`."""

    index: ItemIndex
    rows: Tree
    params: Tree
    first: jax.Array
    height: int
    chunk: int

    def fold(self, step: Callable[[T, _Scored], T], carry: T, requests: _Requests) -> T:
        """Folds `step` over chunks of this device's items."""
        chunks = -(-self.height // self.chunk)
        return jax.lax.fori_loop(
            0, chunks, lambda number, carry: step(carry, self._scored(number, requests)), carry
        )

    def sum(self, values: jax.Array) -> jax.Array:
        """Sums over the shards of the index."""
        return values if self.index.mesh is None else jax.lax.psum(values, AXIS)

    def scores_of_targets(self, requests: _Requests) -> jax.Array:
        """float32 [P, 1]: each query's score of its target, rounded like its score in a chunk.

        Equal item vectors must tie exactly, and products of other shapes may round differently.
        """
        targets = requests.targets
        assert targets is not None
        if self.chunk == self.height:
            result = self._scores_in_the_only_chunk(requests.vectors, targets)
        elif self.index.mesh is None:
            rows = jax.tree.map(lambda a: a[targets], self.rows)
            items = self.index.make(self.params, rows, targets)
            result = _diagonal_scores(requests.vectors, items, self.chunk)
        else:
            result = self._scores_in_their_chunks(requests, targets)
        result = self.sum(result)
        if requests.offsets is not None:
            hits = requests.offsets.ids == targets[:, None]
            result = result + jnp.sum(
                jnp.where(hits, requests.offsets.scores, 0.0), axis=1, keepdims=True
            )
        return result

    def _scores_in_the_only_chunk(self, vectors: Array, targets: Array) -> jax.Array:
        """[P, 1], 0 where the target lies on another device."""
        local = targets - self.first
        is_local = ((local >= 0) & (local < self.height))[:, None]
        every = _scores(vectors, self._vectors(jnp.int32(0))[0])
        columns = jnp.clip(local, 0, self.height - 1)[:, None]
        return jnp.where(is_local, jnp.take_along_axis(every, columns, axis=1), 0.0)

    def _scores_in_their_chunks(self, requests: _Requests, targets: Array) -> jax.Array:
        """[P, 1], 0 where the target lies on another device; one more pass over the rows."""

        def find(total: jax.Array, scored: _Scored) -> jax.Array:
            hits = scored.allowed & (scored.ids[None, :] == targets[:, None])
            return total + jnp.sum(jnp.where(hits, scored.scores, 0.0), axis=1)

        zeros = jnp.zeros(targets.shape, jnp.float32)
        return self.fold(find, zeros, _Requests(requests.vectors, None, None))[:, None]

    def _vectors(self, start: jax.Array) -> tuple[ItemVectors, jax.Array]:
        """Vectors of a chunk and the item ids int32 [C] of its rows."""
        ids = (self.first + start + jnp.arange(self.chunk)).astype(jnp.int32)
        rows = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, self.chunk), self.rows)
        return self.index.make(self.params, rows, ids), ids

    def _scored(self, number: jax.Array, requests: _Requests) -> _Scored:
        # the last chunk starts early enough to be whole; rows it shares do not count again
        start = jnp.minimum(number * self.chunk, self.height - self.chunk)
        items, ids = self._vectors(start)
        fresh = ids >= self.first + number * self.chunk
        allowed = (fresh & (ids > PAD) & (ids <= self.index.num_items))[None, :]
        scores = _scores(requests.vectors, items)
        if requests.exclude is not None:
            excluded = jnp.zeros(scores.shape, bool)
            places = _places(requests.exclude, ids[0], self.chunk)
            allowed = allowed & ~excluded.at[places].set(True, mode="drop")
        if requests.offsets is not None:
            places = _places(requests.offsets.ids, ids[0], self.chunk)
            scores = scores.at[places].add(requests.offsets.scores, mode="drop")
        return _Scored(scores, ids, allowed)


def _requests(
    queries: Queries,
    index: ItemIndex,
    exclude: Array | None,
    history: HistoryItems | None,
    chunk: int,
    block: int,
) -> _Requests:
    """Checks shapes. Raises ValueError."""
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
    return _Requests(queries.vectors, exclude, _history_scores(queries, history))


def _history_scores(queries: Queries, history: HistoryItems | None) -> _Offsets | None:
    if history is None:
        return None
    features, gates = history.features, queries.gates
    if gates is None or features.shape[:1] + features.shape[2:] != gates.shape:
        raise ValueError(
            f"gates {None if gates is None else gates.shape}, features of history items "
            f"{features.shape}: [P, K] and [P, M, K] are needed"
        )
    added = jnp.einsum("pk,pmk->pm", gates, features, precision="highest")
    return _Offsets(history.ids, added)


def _scores(vectors: Array, items: ItemVectors) -> jax.Array:
    """float32 [P, C]."""
    if vectors.shape[-1] != items.vectors.shape[-1]:
        raise ValueError(
            f"queries {vectors.shape} and items {items.vectors.shape}: [P, D] and [V + 1, D] "
            "are needed"
        )
    scores = jnp.einsum(
        "pd,vd->pv",
        vectors.astype(jnp.float32),
        items.vectors.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    return scores if items.bias is None else scores + items.bias.astype(jnp.float32)[None, :]


def _diagonal_scores(vectors: Array, items: ItemVectors, height: int) -> jax.Array:
    """[P, 1] score of row p's own item: the rows are put into tables of a chunk's `height`."""
    columns = []
    for start in range(0, vectors.shape[0], height):
        part = jax.tree.map(lambda a: a[start : start + height], items)  # noqa: B023
        padding = height - part.vectors.shape[0]
        part = jax.tree.map(
            lambda a: jnp.pad(a, ((0, padding),) + ((0, 0),) * (a.ndim - 1)),  # noqa: B023
            part,
        )
        columns.append(jnp.diagonal(_scores(vectors[start : start + height], part)))
    return jnp.concatenate(columns)[:, None]


def _merged(k: int, lists: list[TopK]) -> TopK:
    """The k best of lists [P, _]; of equal scores those that come first."""
    scores, ids = (jnp.concatenate(column, axis=1) for column in zip(*lists, strict=True))
    best, columns = jax.lax.top_k(scores, k)
    return best, jnp.take_along_axis(ids, columns, axis=1)


def _places(ids: Array, start: jax.Array, height: int) -> tuple[jax.Array, jax.Array]:
    """(row, column) of item ids [P, X] in the scores of a chunk; column `height`: not in it."""
    ids = jnp.asarray(ids)
    row = jnp.broadcast_to(jnp.arange(ids.shape[0])[:, None], ids.shape)
    return row, jnp.where((ids >= start) & (ids != PAD), ids - start, height)


def _on_shards(
    function: Callable[[_Requests, _Shard], T],
    requests: _Requests,
    index: ItemIndex,
    chunk: int,
    block: int,
) -> T:
    """`function(requests, shard)` on every device of the index, `block` queries at a time."""
    height = index.height // index.shards

    def local(requests: _Requests, rows: Tree, params: Tree) -> T:
        number = 0 if index.mesh is None else jax.lax.axis_index(AXIS)
        first = jnp.int32(number * height)
        shard = _Shard(index, rows, params, first, height, min(chunk, height))
        return _in_blocks(lambda requests: function(requests, shard), block, requests)

    mesh = index.mesh
    if mesh is None:
        return local(requests, index.rows, index.params)
    other_axes = tuple(axis for axis in mesh.axis_names if axis != AXIS)
    groups = mesh.size // mesh.shape[AXIS]
    whole = PartitionSpec()
    by_query = PartitionSpec(other_axes) if requests.vectors.shape[0] % groups == 0 else whole
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(by_query, PartitionSpec(AXIS), whole),
        out_specs=by_query,
        check_vma=False,
    )(requests, index.rows, index.params)


def _in_blocks(function: Callable[[_Requests], T], block: int, requests: _Requests) -> T:
    """`function` of `block` rows of the requests at a time."""
    rows = requests.vectors.shape[0]
    if rows <= block:
        return function(requests)
    padding = -rows % block

    def cut(a: Array) -> jax.Array:
        padded = jnp.pad(a, ((0, padding),) + ((0, 0),) * (a.ndim - 1))
        return padded.reshape(-1, block, *a.shape[1:])

    result = jax.lax.map(function, jax.tree.map(cut, requests))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:rows], result)
