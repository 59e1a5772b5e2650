"""The rows of an index on one device: chunks of items scored against blocks of queries.

Dimension letters: P queries, D width, R rows of the index, C items of a chunk, M history items.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxrec.items.table import unconverted
from jaxrec.ranking.index import ItemIndex
from jaxrec.runtime.mesh import MODEL
from jaxrec.types import PAD, Array, HistoryItems, ItemVectors, Queries, Tree

FAST_MEMORY = 2**24  # bytes of rows that a TPU keeps near its cores

T = TypeVar("T")


class Offsets(NamedTuple):
    """What history items add to scores: ids int32 [P, M], scores float32 [P, M]."""

    ids: Array
    scores: Array


class QueryBatch(NamedTuple):
    """Everything that has a row per query.

    vectors: [P, D]. exclude: item ids int32 [P, X] or None. offsets: of history items, or None.
    targets: item ids int32 [P], for ranks only.
    """

    vectors: Array
    exclude: Array | None
    offsets: Offsets | None
    targets: Array | None = None


class Scored(NamedTuple):
    """A scored chunk: scores float32 [P, C], item ids int32 [C], allowed bool [P or 1, C]."""

    scores: jax.Array
    ids: jax.Array
    allowed: jax.Array


@dataclasses.dataclass(frozen=True)
class Shard:
    """The rows of an index that one device ranks.

    rows, params: of the index, as they are on this device. first: id of the item in row 0.
    height: number of rows. chunk: rows that are scored at a time.
    """

    index: ItemIndex
    rows: Tree
    params: Tree
    first: jax.Array
    height: int
    chunk: int

    def fold(self, step: Callable[[T, Scored], T], carry: T, batch: QueryBatch) -> T:
        """Folds `step` over chunks of this device's items."""
        chunks = -(-self.height // self.chunk)
        return jax.lax.fori_loop(
            0, chunks, lambda number, carry: step(carry, self._scored(number, batch)), carry
        )

    def sum(self, values: jax.Array) -> jax.Array:
        """Sums over the shards of the index."""
        return values if self.index.mesh is None else jax.lax.psum(values, MODEL)

    def scores_of_targets(self, batch: QueryBatch) -> jax.Array:
        """float32 [P, 1]: each query's score of its target, rounded like its score in a chunk.

        Equal item vectors must tie exactly, and products of other shapes may round differently.
        """
        targets = batch.targets
        assert targets is not None
        if self.chunk == self.height:
            result = self._scores_in_the_only_chunk(batch.vectors, targets)
        elif self.index.mesh is None:
            rows = jax.tree.map(lambda a: a[targets], self.rows)
            items = self.index.make(self.params, rows, jnp.asarray(targets))
            result = _diagonal_scores(batch.vectors, items, self.chunk)
        else:
            result = self._scores_in_their_chunks(batch, targets)
        result = self.sum(result)
        if batch.offsets is not None:
            hits = batch.offsets.ids == targets[:, None]
            result = result + jnp.sum(
                jnp.where(hits, batch.offsets.scores, 0.0), axis=1, keepdims=True
            )
        return result

    def _scores_in_the_only_chunk(self, vectors: Array, targets: Array) -> jax.Array:
        """[P, 1], 0 where the target is on another device."""
        local = targets - self.first
        is_local = ((local >= 0) & (local < self.height))[:, None]
        scores = dot_scores(vectors, self._vectors(jnp.int32(0))[0])
        columns = jnp.clip(local, 0, self.height - 1)[:, None]
        return jnp.where(is_local, jnp.take_along_axis(scores, columns, axis=1), 0.0)

    def _scores_in_their_chunks(self, batch: QueryBatch, targets: Array) -> jax.Array:
        """[P, 1], 0 where the target is on another device; one more pass over the rows."""

        def add_target(total: jax.Array, scored: Scored) -> jax.Array:
            hits = scored.allowed & (scored.ids[None, :] == targets[:, None])
            return total + jnp.sum(jnp.where(hits, scored.scores, 0.0), axis=1)

        zeros = jnp.zeros(targets.shape, jnp.float32)
        return self.fold(add_target, zeros, QueryBatch(batch.vectors, None, None))[:, None]

    def _vectors(self, start: jax.Array) -> tuple[ItemVectors, jax.Array]:
        """Item vectors of the chunk that begins at row `start`, and their ids int32 [C]."""
        ids = (self.first + start + jnp.arange(self.chunk)).astype(jnp.int32)
        rows = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, self.chunk), self.rows)
        # what does not stay in fast memory would be written out and read again for it
        rows = jax.tree.map(lambda a: unconverted(a) if a.nbytes <= FAST_MEMORY else a, rows)
        return self.index.make(self.params, rows, ids), ids

    def _scored(self, number: jax.Array, batch: QueryBatch) -> Scored:
        """Scores of chunk `number`."""
        # the last chunk is shifted back to full size; rows of the chunk before are masked
        start = jnp.minimum(number * self.chunk, self.height - self.chunk)
        items, ids = self._vectors(start)
        is_new = ids >= self.first + number * self.chunk
        allowed = (is_new & (ids > PAD) & (ids <= self.index.num_items))[None, :]
        scores = dot_scores(batch.vectors, items)
        if batch.exclude is not None:
            excluded = jnp.zeros(scores.shape, bool)
            places = columns_of(batch.exclude, ids[0], self.chunk)
            allowed = allowed & ~excluded.at[places].set(True, mode="drop")
        if batch.offsets is not None:
            places = columns_of(batch.offsets.ids, ids[0], self.chunk)
            scores = scores.at[places].add(batch.offsets.scores, mode="drop")
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
    """float32 [P, C] dot products of vectors [P, D] and items [C, D], with the items' bias."""
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
    """[P, 1] score of query p and item p, by products of the shape of a chunk of `height` rows."""
    columns = []
    for start in range(0, vectors.shape[0], height):
        chunk = jax.tree.map(lambda a: a[start : start + height], items)  # noqa: B023
        padding = height - chunk.vectors.shape[0]
        chunk = jax.tree.map(
            lambda a: jnp.pad(a, ((0, padding),) + ((0, 0),) * (a.ndim - 1)),  # noqa: B023
            chunk,
        )
        columns.append(jnp.diagonal(dot_scores(vectors[start : start + height], chunk)))
    return jnp.concatenate(columns)[:, None]


def columns_of(ids: Array, start: jax.Array, height: int) -> tuple[jax.Array, jax.Array]:
    """(row, column) of item ids [P, X] in the scores of a chunk of `height` items from id `start`.

    Padding and ids of other chunks get column `height` or above: `mode="drop"` ignores them.
    """
    ids = jnp.asarray(ids)
    row = jnp.broadcast_to(jnp.arange(ids.shape[0])[:, None], ids.shape)
    return row, jnp.where((ids >= start) & (ids != PAD), ids - start, height)


def on_shards(
    function: Callable[[QueryBatch, Shard], T],
    batch: QueryBatch,
    index: ItemIndex,
    chunk: int,
    block: int,
) -> T:
    """`function(batch, shard)` on every device of the index, `block` queries at a time."""
    height = index.height // index.shards

    def local(batch: QueryBatch, rows: Tree, params: Tree) -> T:
        number = 0 if index.mesh is None else jax.lax.axis_index(MODEL)
        first = jnp.int32(number * height)
        shard = Shard(index, rows, params, first, height, min(chunk, height))
        return _in_blocks(lambda batch: function(batch, shard), block, batch)

    mesh = index.mesh
    if mesh is None:
        return local(batch, index.rows, index.params)
    other_axes = tuple(axis for axis in mesh.axis_names if axis != MODEL)
    groups = mesh.size // mesh.shape[MODEL]
    whole = PartitionSpec()
    by_query = PartitionSpec(other_axes) if batch.vectors.shape[0] % groups == 0 else whole
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(by_query, PartitionSpec(MODEL), whole),
        out_specs=by_query,
        check_vma=False,
    )(batch, index.rows, index.params)


def _in_blocks(function: Callable[[QueryBatch], T], block: int, batch: QueryBatch) -> T:
    """`function` of `block` rows of the batch at a time."""
    rows = batch.vectors.shape[0]
    if rows <= block:
        return function(batch)
    padding = -rows % block

    def cut(a: Array) -> jax.Array:
        padded = jnp.pad(a, ((0, padding),) + ((0, 0),) * (a.ndim - 1))
        return padded.reshape(-1, block, *a.shape[1:])

    result = jax.lax.map(function, jax.tree.map(cut, batch))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:rows], result)
