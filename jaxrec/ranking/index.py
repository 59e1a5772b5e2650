"""The catalog as it is ranked: where its rows are and how they become item vectors."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec.runtime.mesh import MODEL
from jaxrec.types import Array, ItemVectors, Tree

# (params, rows of a chunk, item ids int32 [C]) -> vectors of the chunk
MakeVectors: TypeAlias = Callable[[Tree, Tree, jax.Array], ItemVectors]


def _stored(params: Tree, rows: ItemVectors, ids: jax.Array) -> ItemVectors:
    del params, ids
    return rows


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows", "params"],
    meta_fields=["num_items", "make", "mesh"],
)
@dataclasses.dataclass(frozen=True)
class ItemIndex:
    """The items 1..V; a pytree, so it is an argument of jitted functions.

    rows: arrays [R, ...], R >= V + 1: row 0 is padding, rows after V are no candidates. None
        where vectors are computed from ids alone (a hashed catalog).
    params: what `make` needs beside the rows; copied to every device.
    num_items: V.
    make: turns the rows of a chunk into vectors. A projected copy of a large table may not fit,
        so vectors exist for one chunk at a time.
    mesh: rows are split over its axis `model` (R divides by it); None: all on one device.
    """

    rows: Tree
    params: Tree
    num_items: int
    make: MakeVectors = _stored
    mesh: Mesh | None = None

    @classmethod
    def of(cls, items: ItemVectors, num_items: int | None = None) -> "ItemIndex":
        """An index of vectors [V + 1, D] as they are, on the device where they already are."""
        return cls(items, None, len(items.vectors) - 1 if num_items is None else num_items)

    @classmethod
    def place(cls, items: ItemVectors, device: jax.Device, mesh: Mesh | None = None) -> "ItemIndex":
        """`of` for host arrays: on `device`, or split over a mesh with rows of padding after V."""
        num_items = len(items.vectors) - 1
        if mesh is None:
            return cls(jax.device_put(items, device), None, num_items)
        padding = -(num_items + 1) % mesh.shape[MODEL]
        padded = jax.tree.map(
            lambda a: np.pad(np.asarray(a), ((0, padding),) + ((0, 0),) * (a.ndim - 1)), items
        )
        rows = jax.device_put(padded, NamedSharding(mesh, PartitionSpec(MODEL)))
        return cls(rows, None, num_items, mesh=mesh)

    @property
    def shards(self) -> int:
        """Devices that the rows are split over."""
        return 1 if self.mesh is None else self.mesh.shape[MODEL]

    @property
    def height(self) -> int:
        """R: rows, padding included."""
        if self.rows is None:
            return -(-(self.num_items + 1) // self.shards) * self.shards
        return jax.tree.leaves(self.rows)[0].shape[0]

    def vectors(self, ids: Array) -> ItemVectors:
        """Vectors of items `ids` [...] of an index on one device, or gathered from the shards."""
        flat = jnp.asarray(ids, jnp.int32).reshape(-1)
        rows = jax.tree.map(lambda a: a[flat], self.rows)
        items = self.make(self.params, rows, flat)
        return jax.tree.map(lambda a: a.reshape(*np.shape(ids), *a.shape[1:]), items)
