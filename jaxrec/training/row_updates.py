"""Item tables of any size: a step reads and writes only the rows that it touches.

The ids of a batch and of its negatives are made unique, their rows are fetched, the loss sees a
table of those rows alone, and the updated rows are put back. Work and memory of a step depend on
the batch, not on the catalog. Rows may be split over `mesh.model`: every device reads and writes
its own, the table itself never moves.

Two updates of a row with gradient g (mean over the batch, after clipping):
  - row-wise Adagrad: one number per row, a += mean(g²), row -= rate · g / (√a + ε), the update of
    FBGEMM and DLRM (Duchi et al., JMLR 2011, with the accumulator shared by a row);
  - lazy Adam: moments per element that only move in the steps that touch the row, corrected by
    the number of all steps (as TensorFlow's LazyAdam).
Weight decay pulls rows when they are touched.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from jaxrec.config import TrainConfig
from jaxrec.training import optimizer as optimizer_lib
from jaxrec.types import Params

TABLE = "item_embedding"  # name of the table among the parameters
SHARED = "shared_item_embedding"  # its name where items share rows (`jaxrec.items.hashed`)
ADAGRAD_EPS, ADAM_EPS = 1e-8, 1e-8
BETA1, BETA2 = 0.9, 0.999


class Touched(NamedTuple):
    """ids: int32 [N] distinct table rows, ascending, behind them rows that do not exist;
    places: for every given id where in `ids` it stands; rows: [N, D]."""

    ids: jax.Array
    places: jax.Array
    rows: jax.Array


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """State {"dense": AdamW of everything but the table, "rows": state of the table's rows}.

    `update` is for the dense part: gradients and parameters without the table.
    """
    dense = optimizer_lib.adamw(config)

    def init(params: Params) -> Any:
        table = params[name_of(params)]
        if config.table_update == "adagrad":
            rows = {"sum": {TABLE: jnp.zeros(table.shape[:1], jnp.float32)}}
        else:
            rows = {name: {TABLE: jnp.zeros_like(table)} for name in ("mu", "nu")}
        return {"dense": dense.init(without(params)), "rows": rows}

    return optax.GradientTransformation(init, dense.update)


def name_of(params: Params) -> str:
    """Under which name the parameters have the table."""
    return SHARED if SHARED in params else TABLE


def without(params: Params) -> Params:
    """The parameters but for the table."""
    return {name: leaf for name, leaf in params.items() if name not in (TABLE, SHARED)}


def touch(table: jax.Array, ids: jax.Array, mesh: Mesh) -> Touched:
    """The rows of `table` [R, D] that `ids` int32 [N] name; row 0 (padding) is always first."""
    height = table.shape[0]
    everything = jnp.concatenate([jnp.zeros(1, ids.dtype), ids])
    unique, places = jnp.unique(
        everything, size=everything.shape[0], fill_value=height, return_inverse=True
    )
    return Touched(unique, places[1:], take(table, unique, mesh))


class Small(NamedTuple):
    """A step's items as a table of their own.

    touched: rows of the stored table; places: for every given id its row in `of_items`; of_items:
    rows [N, D] of `touched` -> the table that the loss is given, row 0 padding.
    """

    touched: Touched
    places: jax.Array
    of_items: Callable[[jax.Array], jax.Array]


def small(
    table: jax.Array,
    ids: jax.Array,
    mesh: Mesh,
    rows_of: Callable[[jax.Array], jax.Array] | None,
) -> Small:
    """What `ids` int32 [N] need of the table; rows_of: ids [...] ->
    rows [..., J] of items that are sums of shared rows."""
    if rows_of is None:
        touched = touch(table, ids, mesh)
        return Small(touched, touched.places, lambda rows: rows)
    # ids first: the loss must tell items from each other, not rows
    everything = jnp.concatenate([jnp.zeros(1, ids.dtype), ids])
    unique, places = jnp.unique(
        everything, size=everything.shape[0], fill_value=0, return_inverse=True
    )
    rows = rows_of(unique)
    touched = touch(table, rows.reshape(-1), mesh)
    where = touched.places.reshape(rows.shape)
    return Small(touched, places[1:], lambda rows: jnp.sum(rows[where], axis=1))


def take(table: jax.Array, ids: jax.Array, mesh: Mesh) -> jax.Array:
    """Rows [N, ...] of a table split over `mesh.model`; zeros where `ids` lie outside."""
    if mesh.shape["model"] == 1:
        return table.at[ids].get(mode="fill", fill_value=0)

    def own(part: jax.Array, ids: jax.Array) -> jax.Array:
        rows = part.at[_local(ids, part)].get(mode="fill", fill_value=0)
        return jax.lax.psum(rows, "model")

    everywhere = PartitionSpec()
    return jax.shard_map(
        own, mesh=mesh, in_specs=(PartitionSpec("model"), everywhere), out_specs=everywhere
    )(table, ids)


def put(table: jax.Array, ids: jax.Array, rows: jax.Array, mesh: Mesh) -> jax.Array:
    """The table with `rows` [N, ...] in the places `ids` [N] (distinct, ascending; ids outside
    are dropped)."""

    def write(part: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
        return part.at[ids].set(rows.astype(part.dtype), mode="drop")

    if mesh.shape["model"] == 1:
        return write(table, ids, rows)

    def own(part: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
        return write(part, _local(ids, part), rows)

    split, everywhere = PartitionSpec("model"), PartitionSpec()
    return jax.shard_map(own, mesh=mesh, in_specs=(split, everywhere, everywhere), out_specs=split)(
        table, ids, rows
    )


def _local(ids: jax.Array, part: jax.Array) -> jax.Array:
    """Rows inside this device's part of a table; its height for those of others."""
    height = part.shape[0]
    local = ids - jax.lax.axis_index("model") * height
    return jnp.where((local >= 0) & (local < height), local, height)


def update(
    table: jax.Array,
    state: Any,
    touched: Touched,
    gradients: jax.Array,
    *,
    config: TrainConfig,
    rate: jax.Array,
    count: jax.Array,
    sound: jax.Array,
    mesh: Mesh,
) -> tuple[jax.Array, Any]:
    """Table and row state after one step.

    gradients: [N, D] of `touched.rows`; rate: learning rate; count: steps done before; sound:
    False leaves everything as it is. A row that no gradient reached (all zeros) stays too.
    """
    changed = (sound & jnp.any(gradients != 0, axis=1))[:, None]
    ids, rows = touched.ids, touched.rows.astype(jnp.float32)
    g = gradients.astype(jnp.float32)
    if config.table_update == "adagrad":
        before = take(state["sum"][TABLE], ids, mesh)
        after = before + jnp.mean(jnp.square(g), axis=1)
        step = g / (jnp.sqrt(after) + ADAGRAD_EPS)[:, None]
        after = jnp.where(changed[:, 0], after, before)
        state = {"sum": {TABLE: put(state["sum"][TABLE], ids, after, mesh)}}
    else:
        mu, nu = (take(state[name][TABLE], ids, mesh) for name in ("mu", "nu"))
        new_mu = BETA1 * mu + (1 - BETA1) * g
        new_nu = BETA2 * nu + (1 - BETA2) * jnp.square(g)
        time = (count + 1).astype(jnp.float32)
        step = new_mu / (1 - BETA1**time)
        step = step / (jnp.sqrt(new_nu / (1 - BETA2**time)) + ADAM_EPS)
        state = {
            name: {TABLE: put(state[name][TABLE], ids, jnp.where(changed, new, old), mesh)}
            for name, new, old in (("mu", new_mu, mu), ("nu", new_nu, nu))
        }
    moved = rows - rate * (step + config.weight_decay * rows)
    return put(table, ids, jnp.where(changed, moved, rows), mesh), state
