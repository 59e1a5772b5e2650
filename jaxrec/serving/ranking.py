"""Top lists of a whole catalog or of candidates, on one device or split over several.

With several devices each holds an equal range of items and ranks it alone (`retrieval.top_k`);
the short lists are gathered and merged. Memory per device is its share of the item table and a
block of scores, whatever the size of the catalog.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrec.ranking import retrieval
from jaxrec.ranking.retrieval import Own
from jaxrec.types import PAD, Array

AXIS = "items"


class ItemTable(NamedTuple):
    """Item vectors where they are ranked; `place` makes it.

    vectors: [V + 1, D] on one device. On a mesh [n (R + 1), D]: device d holds a padding row
    and the items d R + 1 .. (d + 1) R, vectors behind item V are not numbers, so that no list
    takes them.
    """

    vectors: jax.Array
    num_items: int
    mesh: Mesh | None = None

    @property
    def share(self) -> int:
        """R: items per device."""
        return self.num_items if self.mesh is None else -(-self.num_items // self.mesh.size)


def make_mesh(devices: Sequence[jax.Device]) -> Mesh | None:
    """A mesh over which items are split; None for a single device."""
    if len(devices) == 1:
        return None
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def place(vectors: np.ndarray, devices: Sequence[jax.Device], mesh: Mesh | None) -> ItemTable:
    """vectors: float32 [V + 1, D] on the host, row 0 is padding."""
    items = len(vectors) - 1
    if mesh is None:
        return ItemTable(jax.device_put(vectors, devices[0]), items)
    share = -(-items // mesh.size)
    rows = np.full((mesh.size, share + 1, vectors.shape[1]), np.nan, vectors.dtype)
    rows[:, 0] = 0
    for device in range(mesh.size):
        part = vectors[1 + device * share : 1 + (device + 1) * share]
        rows[device, 1 : 1 + len(part)] = part
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return ItemTable(jax.device_put(rows.reshape(-1, rows.shape[-1]), sharding), items, mesh)


def top_k(
    x: Array,
    table: ItemTable,
    k: int,
    exclude: Array | None = None,
    own: Own | None = None,
    *,
    chunk: int = 16384,
) -> tuple[jax.Array, jax.Array]:
    """`retrieval.top_k` over all items, wherever they are: scores and ids [P, k].

    Raises ValueError when k exceeds the catalog.
    """
    if table.mesh is None:
        return retrieval.top_k(x, table.vectors, k, exclude, own, chunk=chunk)
    if not 1 <= k <= table.num_items:
        raise ValueError(f"k={k}: the catalog allows 1 to {table.num_items}")
    share = table.share

    def local(x: Any, rows: Any, exclude: Any, own: Any) -> tuple[jax.Array, jax.Array]:
        first = jax.lax.axis_index(AXIS) * share

        def here(ids: Any) -> Any:
            return jnp.where((ids > first) & (ids <= first + share), ids - first, PAD)

        mine = None if own is None else own._replace(ids=here(own.ids))
        out = None if exclude is None else here(exclude)
        scores, ids = retrieval.top_k(x, rows, min(k, share), out, mine, chunk=chunk)
        ids = jnp.where(ids == PAD, PAD, ids + first)
        # devices in order: among equal scores top_k takes the lower id
        scores, ids = (jax.lax.all_gather(a, AXIS, axis=1, tiled=True) for a in (scores, ids))
        scores, columns = jax.lax.top_k(scores, k)
        return scores, jnp.take_along_axis(ids, columns, axis=1)

    everywhere = PartitionSpec()
    return jax.shard_map(
        local,
        mesh=table.mesh,
        in_specs=(everywhere, PartitionSpec(AXIS), everywhere, everywhere),
        out_specs=(everywhere, everywhere),
        check_vma=False,  # gathered, then the same everywhere
    )(x, table.vectors, exclude, own)


def top_k_of(
    x: Array, table: ItemTable, candidates: Array, k: int, own: Own | None = None
) -> tuple[jax.Array, jax.Array]:
    """The k best of each query's own candidates int32 [P, M]: scores and ids [P, k], k <= M.

    0 is no candidate, an id stands once per query. Ties go to the earlier candidate; where
    there are fewer than k the rest is id 0 with score -inf.
    """
    if k > candidates.shape[1]:
        raise ValueError(f"k={k}: there is room for {candidates.shape[1]} candidates")
    width = table.vectors.shape[1]
    bonus = None
    if own is not None:
        bonus = jnp.einsum("pk,pmk->pm", x[:, width:], own.features, precision="highest")
        x = x[:, :width]
    place = candidates
    if table.mesh is not None:
        device, offset = (candidates - 1) // table.share, (candidates - 1) % table.share
        place = jnp.where(candidates == PAD, 0, device * (table.share + 1) + offset + 1)

    def best(row: Any) -> tuple[jax.Array, jax.Array]:
        x, ids, places, mine, gain = row
        rows = table.vectors[places].astype(jnp.float32)
        scores = jnp.einsum("md,d->m", rows, x, precision=jax.lax.Precision.HIGHEST)
        if mine is not None:
            hit = (ids[:, None] == mine[None, :]) & (mine != PAD)[None, :]
            scores = scores + jnp.sum(jnp.where(hit, gain[None, :], 0.0), axis=1)
        scores = jnp.where((ids != PAD) & ~jnp.isnan(scores), scores, -jnp.inf)
        scores, columns = jax.lax.top_k(scores, k)
        return scores, jnp.where(jnp.isneginf(scores), PAD, ids[columns])

    ids = None if own is None else own.ids
    return jax.lax.map(best, (x, candidates, place, ids, bonus), batch_size=8)


def on(devices: Sequence[jax.Device], mesh: Mesh | None, tree: Any) -> Any:
    """`tree` on every device."""
    where: Any = devices[0] if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(functools.partial(jax.device_put, device=where), tree)
