"""Top lists over an index of items: the interface of `jaxrec.ranking` over its present functions.

A thin adapter: packs `Queries` into columns and splits the rows of an index over devices.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec.ranking import retrieval
from jaxrec.ranking.retrieval import Own
from jaxrec.types import PAD, Array, HistoryItems, ItemVectors, Queries

AXIS = "model"  # mesh axis that the rows are split over


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["items"], meta_fields=["num_items", "mesh"]
)
@dataclasses.dataclass(frozen=True)
class ItemIndex:
    """The items 1..V where they are ranked; `place` makes it.

    items: vectors [V + 1, D] on one device. On a mesh of n devices [n (R + 1), D]: device d
        holds a padding row and the items d R + 1 .. (d + 1) R; vectors behind item V are not
        numbers, so that no list takes them.
    """

    items: ItemVectors
    num_items: int
    mesh: Mesh | None = None

    @classmethod
    def place(cls, items: ItemVectors, device: jax.Device, mesh: Mesh | None = None) -> "ItemIndex":
        """An index of host arrays [V + 1, D] on `device`, or split over `mesh.model`."""
        vectors = np.asarray(items.vectors, np.float32)
        count = len(vectors) - 1
        if mesh is None:
            return cls(ItemVectors(jax.device_put(vectors, device)), count)
        devices = mesh.shape[AXIS]
        share = -(-count // devices)
        rows = np.full((devices, share + 1, vectors.shape[1]), np.nan, vectors.dtype)
        rows[:, 0] = 0
        for number in range(devices):
            local = vectors[1 + number * share : 1 + (number + 1) * share]
            rows[number, 1 : 1 + len(local)] = local
        sharding = NamedSharding(mesh, PartitionSpec(AXIS))
        placed = jax.device_put(rows.reshape(-1, rows.shape[-1]), sharding)
        return cls(ItemVectors(placed), count, mesh)

    @property
    def share(self) -> int:
        """R: items per device."""
        return self.num_items if self.mesh is None else -(-self.num_items // self.mesh.shape[AXIS])


def top_k(
    queries: Queries,
    index: ItemIndex,
    k: int,
    *,
    exclude: Array | None = None,
    history: HistoryItems | None = None,
    chunk: int = 16384,
    block: int = 1024,
) -> tuple[jax.Array, jax.Array]:
    """The k best items of each query: scores float32 [P, k] and ids int32 [P, k].

    Raises ValueError when k exceeds the catalog.
    """
    packed, own = _packed(queries, history)
    table = index.items.vectors
    if index.mesh is None:
        return retrieval.top_k(packed, table, k, exclude, own, chunk=chunk, block=block)
    if not 1 <= k <= index.num_items:
        raise ValueError(f"k={k}: the catalog allows 1 to {index.num_items}")
    share = index.share

    def local(
        packed: Array, rows: Array, exclude: Array | None, own: Own | None
    ) -> tuple[jax.Array, jax.Array]:
        first = jax.lax.axis_index(AXIS) * share

        def local_ids(ids: Array) -> jax.Array:
            return jnp.where((ids > first) & (ids <= first + share), ids - first, PAD)

        local_own = None if own is None else own._replace(ids=local_ids(own.ids))
        excluded = None if exclude is None else local_ids(exclude)
        scores, ids = retrieval.top_k(
            packed, rows, min(k, share), excluded, local_own, chunk=chunk, block=block
        )
        ids = jnp.where(ids == PAD, PAD, ids + first)
        # devices in order: among equal scores top_k takes the lower id
        scores, ids = (jax.lax.all_gather(a, AXIS, axis=1, tiled=True) for a in (scores, ids))
        scores, columns = jax.lax.top_k(scores, k)
        return scores, jnp.take_along_axis(ids, columns, axis=1)

    everywhere = PartitionSpec()
    return jax.shard_map(
        local,
        mesh=index.mesh,
        in_specs=(everywhere, PartitionSpec(AXIS), everywhere, everywhere),
        out_specs=(everywhere, everywhere),
        check_vma=False,  # gathered, then the same everywhere
    )(packed, table, exclude, own)


def top_k_of_candidates(
    queries: Queries,
    index: ItemIndex,
    candidates: Array,
    k: int,
    *,
    history: HistoryItems | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The k best of each query's own candidates int32 [P, X]: scores and ids [P, k], k <= X.

    0 is no candidate, an id stands once per query. Ties go to the earlier candidate; where
    there are fewer than k the rest is id 0 with score -inf.
    """
    if k > candidates.shape[1]:
        raise ValueError(f"k={k}: there is room for {candidates.shape[1]} candidates")
    history_ids = bonus = None
    if history is not None:
        history_ids = history.ids
        bonus = jnp.einsum("pk,pmk->pm", queries.gates, history.features, precision="highest")
    places = candidates
    if index.mesh is not None:
        device, offset = (candidates - 1) // index.share, (candidates - 1) % index.share
        places = jnp.where(candidates == PAD, 0, device * (index.share + 1) + offset + 1)

    def best(
        row: tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array | None],
    ) -> tuple[jax.Array, jax.Array]:
        vector, ids, places, history_ids, bonus = row
        rows = index.items.vectors[places].astype(jnp.float32)
        scores = jnp.einsum("md,d->m", rows, vector, precision=jax.lax.Precision.HIGHEST)
        if history_ids is not None and bonus is not None:
            hits = (ids[:, None] == history_ids[None, :]) & (history_ids != PAD)[None, :]
            scores = scores + jnp.sum(jnp.where(hits, bonus[None, :], 0.0), axis=1)
        scores = jnp.where((ids != PAD) & ~jnp.isnan(scores), scores, -jnp.inf)
        scores, columns = jax.lax.top_k(scores, k)
        return scores, jnp.where(jnp.isneginf(scores), PAD, ids[columns])

    rows = (queries.vectors, candidates, places, history_ids, bonus)
    return jax.lax.map(best, rows, batch_size=8)


def _packed(queries: Queries, history: HistoryItems | None) -> tuple[Array, Own | None]:
    """Queries as `retrieval` takes them."""
    if history is None:
        return queries.vectors, None
    return jnp.concatenate([queries.vectors, queries.gates], axis=-1), Own(*history)
