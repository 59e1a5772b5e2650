"""The rows that a step touches, fetched to the devices whose users need them.

Items are renumbered by *places*: first those that all devices have (padding and the negatives),
with the same place everywhere, then those of a device's own users, whose places mean nothing
elsewhere. Two places of one device are equal exactly where the items are, which is all that a loss
asks of ids: it compares a user's items with each other and with the negatives.

Dimension letters: D devices, B users, E item slots, M negatives, N items of a device's users, W
numbers of a row.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxrec.config import ModelConfig
from jaxrec.items import hashed, table
from jaxrec.items.table import ItemRows
from jaxrec.runtime.mesh import MODEL, spec
from jaxrec.training.row_exchange import END, Asked, Exchange, Received, Round, Rows
from jaxrec.types import Array

SPLIT, OWNED, EVERYWHERE = spec("batch"), PartitionSpec(MODEL), PartitionSpec()


class Pair(NamedTuple):
    """Rows or their gradients: of the devices' own items [D, N, ...]; of the shared ones."""

    own: Array
    shared: Array


class Numbers(NamedTuple):
    """Which stored rows the items have, and where an item finds its own.

    asked: [D, N] and [M]. own, shared: int32 [D, N, parts] and [M, parts] among the rows asked for;
    None: an item has the row of its place.
    """

    asked: Asked
    own: Array | None
    shared: Array | None


# where they live
PAIR: Any = Pair(SPLIT, EVERYWHERE)  # type: ignore[arg-type]
ASKED: Any = Asked(SPLIT, EVERYWHERE)  # type: ignore[arg-type]
NUMBERS: Any = Numbers(ASKED, SPLIT, EVERYWHERE)  # type: ignore[arg-type]


class Reduced(NamedTuple):
    """The gradient of a leaf with a row per item.

    first: [K N, ...] summed rows of the first round, at their owners. pair: what it was summed
    from, for rounds that follow.
    """

    first: Array
    pair: Pair


class Touched(NamedTuple):
    """What a step reads and writes.

    places: int32 [B, E] and negatives: int32 [M], places of the items. rows: name -> `Pair`.
    """

    exchange: Exchange
    numbers: Numbers
    places: Array
    negatives: Array
    rows: dict[str, Pair]
    mesh: Mesh

    def items(self, rows: dict[str, Pair]) -> "DeviceRows":
        """The rows of the items from stored rows like `rows`."""
        if table.SHARED in rows:
            return DeviceRows(rows[table.SHARED], None, self.numbers, self.mesh)
        return DeviceRows(rows[table.EMBEDDING], rows.get(table.BIAS), self.numbers, self.mesh)


class DeviceRows(NamedTuple):
    """`ItemRows` of places: 1-d ids are the negatives', ids [B, ...] those of users' items."""

    embedding: Pair
    bias: Pair | None
    numbers: Numbers
    mesh: Mesh

    def take(self, ids: Array) -> ItemRows:
        """The rows of `ids` [...]."""

        def rows(pair: Pair | None) -> jax.Array | None:
            return None if pair is None else self._take(pair, ids)

        embedding = rows(self.embedding)
        assert embedding is not None
        return ItemRows(embedding, rows(self.bias))

    def _take(self, pair: Pair, ids: Array) -> jax.Array:
        if ids.ndim == 1:
            return _summed(pair.shared, self.numbers.shared)[ids]

        def local(pair: Pair, own: Array | None, shared: Array | None, ids: Array) -> jax.Array:
            mine = _summed(pair.own[0], None if own is None else own[0])
            return jnp.concatenate([_summed(pair.shared, shared), mine])[ids]

        return jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(PAIR, SPLIT, EVERYWHERE, SPLIT),
            out_specs=SPLIT,
            check_vma=False,
        )(pair, self.numbers.own, self.numbers.shared, ids)


def _summed(rows: Array, index: Array | None) -> jax.Array:
    """Rows of items from stored rows: as they are, or the sums of several (`model.item_hash`)."""
    rows = jnp.asarray(rows)
    return rows if index is None else jnp.sum(rows[index], axis=1)


# -- a step --------------------------------------------------------------------------------------


def touch(
    config: ModelConfig, leaves: dict[str, Array], items: Array, negatives: Array, *, mesh: Mesh
) -> Touched:
    """The rows that items [B, E] of users and shared negatives [M] need, fetched.

    leaves: of the item table, [R, ...]. Users are split over all devices.
    """
    height = len(next(iter(leaves.values())))
    padding = jnp.zeros(1, negatives.dtype)
    shared, inverse = jnp.unique(
        jnp.concatenate([padding, negatives]),
        size=len(negatives) + 1,
        fill_value=END,
        return_inverse=True,
    )
    shared = jax.lax.with_sharding_constraint(shared, jax.sharding.NamedSharding(mesh, EVERYWHERE))
    count = (
        math.prod(items.shape) // mesh.size * (1 if config.item_hash == "none" else hashed.PARTS)
    )
    exchange = Exchange.of(mesh, height, count)

    def local(
        items: Array, shared: jax.Array, shards: Rows
    ) -> tuple[jax.Array, Numbers, dict[str, Pair]]:
        own, places = _renumbered(items, shared)
        numbers = _numbers(config, own, shared, height)
        own_rows, shared_rows = exchange.fetch(numbers.asked, shards)
        rows = {name: Pair(own_rows[name][None], shared_rows[name]) for name in shards}
        return places, _by_device(numbers), rows

    places, numbers, rows = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(SPLIT, EVERYWHERE, OWNED),
        out_specs=(SPLIT, NUMBERS, dict.fromkeys(leaves, PAIR)),
        check_vma=False,
    )(items, shared, leaves)
    return Touched(exchange, numbers, places, inverse[1:], rows, mesh)


def reduce(
    touched: Touched, gradients: dict[str, Pair]
) -> tuple[dict[str, Reduced], dict[str, jax.Array], jax.Array]:
    """Gradients of the stored rows, their squared norms, and int32 [K N] rows of the first round.

    gradients: as `Touched.rows`.
    """
    exchange = touched.exchange

    def squares(received: Received) -> dict[str, jax.Array]:
        return {
            name: jax.lax.psum(jnp.sum(jnp.square(rows.astype(jnp.float32))), MODEL)
            for name, rows in received.rows.items()
        }

    def local(
        asked: Asked, gradients: dict[str, Pair]
    ) -> tuple[jax.Array, Rows, dict[str, jax.Array]]:
        asked, own, shared = _of_device(asked, gradients)
        now, progress = exchange.round(asked, exchange.start(asked))
        first = exchange.reduce(asked, now, own, shared)

        def add(now: Round, total: Any) -> Any:
            more = squares(exchange.reduce(asked, now, own, shared))
            return jax.tree.map(jnp.add, total, more)

        total = exchange.over_rounds(asked, add, squares(first), progress)
        return first.ids, first.rows, total

    ids, first, total = jax.shard_map(
        local,
        mesh=touched.mesh,
        in_specs=(ASKED, dict.fromkeys(gradients, PAIR)),
        out_specs=(OWNED, OWNED, EVERYWHERE),
        check_vma=False,
    )(touched.numbers.asked, gradients)
    return {name: Reduced(first[name], gradients[name]) for name in first}, total, ids


def apply(
    touched: Touched,
    first_ids: jax.Array,
    gradients: dict[str, Reduced],
    stored: Rows,
    update: Callable[[str, Any, jax.Array, jax.Array], Any],
) -> Rows:
    """`stored` after `update(name, stored, ids, rows)` of every row of every leaf, round by round.

    stored: name -> arrays [R, ...] of a leaf. update gets one device's part of them, distinct rows
    of it, int32 [N], then its height, and their gradients [N, ...].
    """
    exchange = touched.exchange

    def updated(stored: Rows, received: Received) -> Rows:
        return {
            name: update(name, stored[name], received.ids, rows)
            for name, rows in received.rows.items()
        }

    def local(
        asked: Asked, ids: jax.Array, first: Rows, gradients: dict[str, Pair], stored: Rows
    ) -> Rows:
        asked, own, shared = _of_device(asked, gradients)
        _, progress = exchange.round(asked, exchange.start(asked))

        def body(now: Round, stored: Rows) -> Rows:
            return updated(stored, exchange.reduce(asked, now, own, shared))

        stored = updated(stored, Received(ids, first))
        return exchange.over_rounds(asked, body, stored, progress)

    return jax.shard_map(
        local,
        mesh=touched.mesh,
        in_specs=(ASKED, OWNED, OWNED, dict.fromkeys(gradients, PAIR), OWNED),
        out_specs=OWNED,
        check_vma=False,
    )(
        touched.numbers.asked,
        first_ids,
        {name: reduced.first for name, reduced in gradients.items()},
        {name: reduced.pair for name, reduced in gradients.items()},
        stored,
    )


# -- on one device -------------------------------------------------------------------------------


def _renumbered(items: Array, shared: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(items that are not `shared`, int32 [N] ascending, then END; places of all [B, E])."""
    flat = items.reshape(-1)
    at = jnp.minimum(jnp.searchsorted(shared, flat), len(shared) - 1).astype(jnp.int32)
    is_shared = shared[at] == flat
    own, inverse = jnp.unique(
        jnp.where(is_shared, END, flat), size=len(flat), fill_value=END, return_inverse=True
    )
    places = jnp.where(is_shared, at, len(shared) + inverse.astype(jnp.int32))
    return own, places.reshape(items.shape)


def _numbers(config: ModelConfig, own: jax.Array, shared: jax.Array, height: int) -> Numbers:
    """The stored rows of items; END is none."""
    if config.item_hash == "none":
        asked = Asked(*(jnp.minimum(items, height) for items in (own, shared)))
        return Numbers(asked, None, None)
    of_own, of_shared = (
        hashed.rows_of(config, jnp.where(items == END, 0, items)) for items in (own, shared)
    )
    distinct, inverse = jnp.unique(
        of_own.reshape(-1), size=of_own.size, fill_value=height, return_inverse=True
    )
    at = np.arange(of_shared.size, dtype=np.int32).reshape(of_shared.shape)
    asked = Asked(distinct, of_shared.reshape(-1))
    return Numbers(asked, inverse.reshape(of_own.shape), jnp.asarray(at))


def _by_device(numbers: Numbers) -> Numbers:
    """With a leading axis of the devices."""
    asked = numbers.asked._replace(own=numbers.asked.own[None])
    return numbers._replace(asked=asked, own=None if numbers.own is None else numbers.own[None])


def _of_device(asked: Asked, rows: dict[str, Pair]) -> tuple[Asked, Rows, Rows]:
    """Without that axis: (asked, own rows, shared rows)."""
    own = {name: pair.own[0] for name, pair in rows.items()}
    shared = {name: pair.shared for name, pair in rows.items()}
    return asked._replace(own=asked.own[0]), own, shared
