"""Rows of an array that `mesh.model` splits by its first dimension, read and written in place.

Dimension letters: R stored rows, N rows that are read or written.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxrec.runtime.mesh import MODEL
from jaxrec.types import Array


def take(leaf: Array, ids: jax.Array, mesh: Mesh) -> jax.Array:
    """Rows [N, ...] of a leaf [R, ...] split over `mesh.model`; zeros where `ids` lie outside."""
    if mesh.shape[MODEL] == 1:
        return jnp.asarray(leaf).at[ids].get(mode="fill", fill_value=0)

    def local(shard: jax.Array, ids: jax.Array) -> jax.Array:
        rows = shard.at[_local(ids, shard)].get(mode="fill", fill_value=0)
        return jax.lax.psum(rows, MODEL)

    everywhere = PartitionSpec()
    return jax.shard_map(
        local, mesh=mesh, in_specs=(PartitionSpec(MODEL), everywhere), out_specs=everywhere
    )(jnp.asarray(leaf), ids)


def put(leaf: Array, ids: jax.Array, rows: jax.Array, mesh: Mesh) -> jax.Array:
    """The leaf [R, ...] with `rows` [N, ...] written at `ids` [N].

    ids: distinct, ascending; ids outside the leaf are dropped.
    """

    def write(shard: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
        return shard.at[ids].set(rows.astype(shard.dtype), mode="drop")

    if mesh.shape[MODEL] == 1:
        return write(jnp.asarray(leaf), ids, rows)

    def local(shard: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
        return write(shard, _local(ids, shard), rows)

    split, everywhere = PartitionSpec(MODEL), PartitionSpec()
    return jax.shard_map(
        local, mesh=mesh, in_specs=(split, everywhere, everywhere), out_specs=split
    )(jnp.asarray(leaf), ids, rows)


def _local(ids: jax.Array, shard: jax.Array) -> jax.Array:
    """`ids` as rows of this device's shard; the shard's height (out of range) for other rows."""
    height = shard.shape[0]
    local = ids - jax.lax.axis_index(MODEL) * height
    return jnp.where((local >= 0) & (local < height), local, height)
