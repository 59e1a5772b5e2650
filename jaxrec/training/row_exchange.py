"""Rows of a table that `mesh.model` splits, exchanged with the devices that own them.

Every device asks the owners for the rows that its own users need, and sends them the gradients:
what travels is the batch of one device, not of all. Buffers have a fixed size, `capacity` rows
for each pair of devices; what does not fit waits for another round, so that results do not depend
on it. A round covers a range of rows: for each owner it ends before the first row that some
device has to leave out. So a round has all requests for the rows that it covers, and rounds can
be applied in turn.

Everything here runs inside `jax.shard_map` over all axes of the mesh and sees one device.

Dimension letters: K owners, C capacity, R rows of an owner, N rows that a device asks for, M rows
that all devices ask for, W numbers of a row.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from jaxrec.items.table import unconverted
from jaxrec.runtime.mesh import AXES, MODEL
from jaxrec.types import Array

Rows = dict[str, Any]  # name of a leaf of the item table -> rows of it

SLACK = 1.5  # capacity over an even share: about nine deviations at the batches of a pod
LEAST = 64  # rows of capacity that are never worth saving
END = np.iinfo(np.int32).max


class Asked(NamedTuple):
    """What a device asks for: distinct row numbers of the whole table, ascending, then its height.

    own: int32 [N]. shared: int32 [M], the same on all devices, in any order, repeated or not.
    """

    own: jax.Array
    shared: jax.Array


class Progress(NamedTuple):
    """How far the rounds are, for each owner [K].

    next: the first of `own` that it has not got. low: its rows below are done. more: bool [],
    whether there is anything left, on any device.
    """

    next: jax.Array
    low: jax.Array
    more: jax.Array


class Round(NamedTuple):
    """One round, for each owner [K]: the part next..end of `own`, all that is in rows low..high."""

    next: jax.Array
    end: jax.Array
    low: jax.Array
    high: jax.Array


class Received(NamedTuple):
    """At an owner: distinct rows of its own, then R; the sum of the gradients of each."""

    ids: jax.Array
    rows: Rows


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Sizes of the exchange of one table.

    owners: K = mesh.model. height: R. count: N. capacity: C; N, and there is one round only.
    """

    owners: int
    height: int
    count: int
    capacity: int

    @classmethod
    def of(cls, mesh: Mesh, height: int, count: int, capacity: int = 0) -> "Exchange":
        """height: of the whole table. capacity: 0 chooses."""
        owners = mesh.shape[MODEL]
        share = max(int(SLACK * count / owners), LEAST)
        return cls(owners, height // owners, count, min(capacity or share, count))

    # -- rounds ------------------------------------------------------------------------

    def start(self, asked: Asked) -> Progress:
        """Before the first round."""
        low = jnp.zeros(self.owners, jnp.int32)
        return Progress(self._bounds(asked.own)[:-1], low, jnp.bool(True))

    def round(self, asked: Asked, progress: Progress) -> tuple[Round, Progress]:
        """The next round, and how far things are after it."""
        stop = self._bounds(asked.own)[1:]
        if self.capacity == self.count:
            high = jnp.full(self.owners, END, jnp.int32)
            return Round(progress.next, stop, progress.low, high), Progress(
                stop, high, jnp.bool(False)
            )
        reach = jnp.minimum(progress.next + self.capacity, stop)
        left_out = jnp.where(reach < stop, asked.own[jnp.minimum(reach, self.count - 1)], END)
        high = lax.pmin(left_out, AXES)
        end = jnp.searchsorted(asked.own, high).astype(jnp.int32)
        end = jnp.clip(end, progress.next, reach)
        now = Round(progress.next, end, progress.low, high)
        return now, Progress(end, high, jnp.any(high < END))

    def over_rounds(
        self, asked: Asked, body: Callable[[Round, Any], Any], carry: Any, after: Progress
    ) -> Any:
        """`body(round, carry)` of every round that is left `after` some."""

        def step(state: tuple[Progress, Any]) -> tuple[Progress, Any]:
            now, progress = self.round(asked, state[0])
            return progress, body(now, state[1])

        if self.capacity == self.count:
            return carry
        return lax.while_loop(lambda state: state[0].more, step, (after, carry))[1]

    def _bounds(self, own: jax.Array) -> jax.Array:
        """int32 [K + 1]: where the rows of each owner begin among `own`."""
        edges = jnp.arange(self.owners + 1, dtype=own.dtype) * self.height
        return jnp.searchsorted(own, edges).astype(jnp.int32)

    # -- what travels ------------------------------------------------------------------

    def fetch(self, asked: Asked, shards: Rows) -> tuple[Rows, Rows]:
        """Rows of the leaves [R, ...] for `own` [N, ...] and for `shared` [M, ...]."""
        rows = {name: jnp.zeros((self.count, *x.shape[1:]), x.dtype) for name, x in shards.items()}

        def body(now: Round, rows: Rows) -> Rows:
            wanted = self._to_owners(self._local_ids(asked, now))
            at = jnp.arange(self.count)
            owner = jnp.minimum(asked.own // self.height, self.owners - 1)
            here = (at >= now.next[owner]) & (at < now.end[owner])
            slot = jnp.clip(at - now.next[owner], 0, self.capacity - 1)
            out = {}
            for name, shard in shards.items():
                found = self._to_owners(_read(shard, wanted))
                out[name] = jnp.where(_per_row(here, rows[name]), found[owner, slot], rows[name])
            return out

        now, progress = self.round(asked, self.start(asked))
        own = self.over_rounds(asked, body, body(now, rows), progress)
        ids = self._mine(asked.shared)
        shared = {name: lax.psum(_read(shard, ids), MODEL) for name, shard in shards.items()}
        return own, shared

    def reduce(self, asked: Asked, now: Round, own: Rows, shared: Rows) -> Received:
        """The sum over all devices of the gradients of a round's rows, at their owners.

        own: [N, ...] gradients of this device. shared: [M, ...], summed over all devices already.
        """
        others = tuple(axis for axis in AXES if axis != MODEL)
        ids = self._to_owners(self._local_ids(asked, now)).reshape(-1)
        ids = lax.all_gather(ids, others, tiled=True)
        owner = lax.axis_index(MODEL)
        inside = (asked.shared >= now.low[owner]) & (asked.shared < now.high[owner])
        ids = jnp.concatenate([ids, jnp.where(inside, self._mine(asked.shared), self.height)])
        distinct, place = jnp.unique(
            ids, size=len(ids), fill_value=self.height, return_inverse=True
        )
        rows = {}
        for name, gradient in own.items():
            sent = self._to_owners(self._by_owner(gradient, now, 0))
            sent = lax.all_gather(sent.reshape(-1, *sent.shape[2:]), others, tiled=True)
            sent = jnp.concatenate([sent, jnp.asarray(shared[name], sent.dtype)])
            there = _per_row(ids < self.height, sent)
            rows[name] = jax.ops.segment_sum(jnp.where(there, sent, 0), place, len(ids))
        return Received(distinct, rows)

    def _to_owners(self, x: jax.Array) -> jax.Array:
        """[K, C, ...] for each owner -> [K, C, ...] from each device; and back."""
        return x if self.owners == 1 else lax.all_to_all(x, MODEL, 0, 0, tiled=True)

    def _by_owner(self, x: jax.Array, now: Round, fill: int) -> jax.Array:
        """Entries of x [N, ...] for each owner in this round, [K, C, ...], then `fill`."""
        slot = now.next[:, None] + jnp.arange(self.capacity)[None]
        out = x[jnp.minimum(slot, self.count - 1)]
        inside = slot < now.end[:, None]
        return jnp.where(inside.reshape(inside.shape + (1,) * (x.ndim - 1)), out, fill)

    def _local_ids(self, asked: Asked, now: Round) -> jax.Array:
        """int32 [K, C] rows of each owner's shard, then R."""
        first = jnp.arange(self.owners, dtype=jnp.int32)[:, None] * self.height
        ids = self._by_owner(asked.own, now, END) - first
        return jnp.where(ids < self.height, ids, self.height)

    def _mine(self, numbers: jax.Array) -> jax.Array:
        """Rows of this device's shard; R for those of others."""
        local = numbers - lax.axis_index(MODEL) * self.height
        return jnp.where((local >= 0) & (local < self.height), local, self.height)


def _read(shard: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a shard; zeros where there are none."""
    return unconverted(shard.at[ids].get(mode="fill", fill_value=0))


def _per_row(x: jax.Array, like: Array) -> jax.Array:
    """[N] with as many axes as `like` [N, ...]."""
    return x.reshape(x.shape + (1,) * (like.ndim - 1))
