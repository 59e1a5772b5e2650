"""The rows of an index on one device: chunks of items scored against blocks of queries.

Dimension letters: P queries, D width, R rows of the index, C items of a chunk, M history items.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxrec.ranking.index import AXIS, ItemIndex
from jaxrec.types import PAD, Array, HistoryItems, ItemVectors, Queries, Tree

T = TypeVar("T")


class Offsets(NamedTuple):
    """What history items add to scores: ids int32 [P, M], scores float32 [P, M]."""

    ids: Array
    scores: Array


class Requests(NamedTuple):
    """Everything with a row per query."""

    vectors: Array
    exclude: Array | None
    offsets: Offsets | None
    targets: Array | None = None


class Scored(NamedTuple):
    """A chunk of items: scores [P, C], ids int32 [C], allowed bool [P or 1, C]."""

    scores: jax.Array
    ids: jax.Array
    allowed: jax.Array


@dataclasses.dataclass(frozen=True)
class Shard:
    """The rows that one device ranks: `height` of them, the first is item `first`."""

    index: ItemIndex
    rows: Tree
    params: Tree
    first: jax.Array
    height: int
    chunk: int

    def fold(self, step: Callable[[T, Scored], T], carry: T, requests: Requests) -> T:
        """Folds `step` over chunks of this device's items."""
        chunks = -(-self.height // self.chunk)
        return jax.lax.fori_loop(
            0, chunks, lambda number, carry: step(carry, self._scored(number, requests)), carry
        )

    def sum(self, values: jax.Array) -> jax.Array:
        """Sums over the shards of the index."""
        return values if self.index.mesh is None else jax.lax.psum(values, AXIS)

    def scores_of_targets(self, requests: Requests) -> jax.Array:
        """float32 [P, 1]: each query's score of its target, rounded like its score in a chunk.

        Equal item vectors must tie exactly, and products of other shapes may round differently.
        """
        targets = requests.targets
        assert targets is not None
        if self.chunk == self.height:
            result = self._scores_in_the_only_chunk(requests.vectors, targets)
        elif self.index.mesh is None:
            rows = jax.tree.map(lambda a: a[targets], self.rows)
            items = self.index.make(self.params, rows, jnp.asarray(targets))
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
        every = dot_scores(vectors, self._vectors(jnp.int32(0))[0])
        columns = jnp.clip(local, 0, self.height - 1)[:, None]
        return jnp.where(is_local, jnp.take_along_axis(every, columns, axis=1), 0.0)

    def _scores_in_their_chunks(self, requests: Requests, targets: Array) -> jax.Array:
        """[P, 1], 0 where the target lies on another device; one more pass over the rows."""

        def find(total: jax.Array, scored: Scored) -> jax.Array:
            hits = scored.allowed & (scored.ids[None, :] == targets[:, None])
            return total + jnp.sum(jnp.where(hits, scored.scores, 0.0), axis=1)

        zeros = jnp.zeros(targets.shape, jnp.float32)
        return self.fold(find, zeros, Requests(requests.vectors, None, None))[:, None]

    def _vectors(self, start: jax.Array) -> tuple[ItemVectors, jax.Array]:
        """Vectors of a chunk and the item ids int32 [C] of its rows."""
        ids = (self.first + start + jnp.arange(self.chunk)).astype(jnp.int32)
        rows = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, self.chunk), self.rows)
        return self.index.make(self.params, rows, ids), ids

    def _scored(self, number: jax.Array, requests: Requests) -> Scored:
        # the last chunk starts early enough to be whole; rows it shares do not count again
        start = jnp.minimum(number * self.chunk, self.height - self.chunk)
        items, ids = self._vectors(start)
        fresh = ids >= self.first + number * self.chunk
        allowed = (fresh & (ids > PAD) & (ids <= self.index.num_items))[None, :]
        scores = dot_scores(requests.vectors, items)
        if requests.exclude is not None:
            excluded = jnp.zeros(scores.shape, bool)
            places = columns_of(requests.exclude, ids[0], self.chunk)
            allowed = allowed & ~excluded.at[places].set(True, mode="drop")
        if requests.offsets is not None:
            places = columns_of(requests.offsets.ids, ids[0], self.chunk)
            scores = scores.at[places].add(requests.offsets.scores, mode="drop")
        return Scored(scores, ids, allowed)


def history_scores(queries: Queries, history: HistoryItems | None) -> Offsets | None:
    """What history items add to scores. Raises ValueError where gates and features do not fit."""
    if history is None:
        return None
    features, gates = history.features, queries.gates
    if gates is None or features.shape[:1] + features.shape[2:] != gates.shape:
        raise ValueError(
            f"gates {None if gates is None else gates.shape}, features of history items "
            f"{features.shape}: [P, K] and [P, M, K] are needed"
        )
    added = jnp.einsum("pk,pmk->pm", gates, features, precision="highest")
    return Offsets(history.ids, added)


def dot_scores(vectors: Array, items: ItemVectors) -> jax.Array:
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
        columns.append(jnp.diagonal(dot_scores(vectors[start : start + height], part)))
    return jnp.concatenate(columns)[:, None]


def columns_of(ids: Array, start: jax.Array, height: int) -> tuple[jax.Array, jax.Array]:
    """(row, column) of item ids [P, X] in the scores of a chunk; column `height`: not in it."""
    ids = jnp.asarray(ids)
    row = jnp.broadcast_to(jnp.arange(ids.shape[0])[:, None], ids.shape)
    return row, jnp.where((ids >= start) & (ids != PAD), ids - start, height)


def on_shards(
    function: Callable[[Requests, Shard], T],
    requests: Requests,
    index: ItemIndex,
    chunk: int,
    block: int,
) -> T:
    """`function(requests, shard)` on every device of the index, `block` queries at a time."""
    height = index.height // index.shards

    def local(requests: Requests, rows: Tree, params: Tree) -> T:
        number = 0 if index.mesh is None else jax.lax.axis_index(AXIS)
        first = jnp.int32(number * height)
        shard = Shard(index, rows, params, first, height, min(chunk, height))
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


def _in_blocks(function: Callable[[Requests], T], block: int, requests: Requests) -> T:
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
