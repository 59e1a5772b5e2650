"""Item tables of any size: a step reads and writes only the rows that it touches.

The ids of a batch and of its negatives are made unique, their rows are fetched, the loss is given
those rows alone, and the updated rows are put back. Work and memory of a step depend on the batch,
not on the catalog. Rows may be split over `mesh.model`: every device reads and writes its own, the
table itself never moves.

Two rules for a row with gradient g (mean over the batch, after clipping):
  - row-wise Adagrad: one number per row, a += mean(g²), row -= rate · g / (√a + ε), the update of
    FBGEMM and DLRM (Duchi et al., JMLR 2011, with the accumulator shared by a row);
  - lazy Adam: moments per element that only move in the steps that touch the row, corrected by
    the number of all steps (as TensorFlow's LazyAdam).
A leaf with one number per item (a bias) is updated alike. Weight decay pulls rows when they are
touched.

Dimension letters: R stored rows, N rows that a step touches, M ids, W numbers of a row.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxrec.config import ModelConfig, TrainConfig
from jaxrec.items import hashed, table
from jaxrec.items.table import ItemRows
from jaxrec.model import parameters
from jaxrec.objective.sampling import Sampler
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import optimizer as optimizer_lib
from jaxrec.training.gradient import Metrics, mean_gradient
from jaxrec.training.sharded_rows import put, take
from jaxrec.training.update import DrawNegatives, Gradient, Loss, apply_optimizer
from jaxrec.types import Array, Batch, Params, Tree

ADAGRAD_EPS, ADAM_EPS = 1e-8, 1e-8
BETA1, BETA2 = 0.9, 0.999

Rows: TypeAlias = dict[str, Array]  # name of a leaf of the item table -> its rows
# name of an accumulator -> its values for some rows of a leaf
Accumulators: TypeAlias = dict[str, jax.Array]


class Rule(NamedTuple):
    """How a row is updated.

    init: leaf [R, ...] -> accumulators of all its rows. step: (gradients [N, ...], accumulators of
    these rows, number of updates before) -> (step [N, ...] to be multiplied by the learning rate,
    new accumulators).
    """

    init: Callable[[Array], Accumulators]
    step: Callable[[jax.Array, Accumulators, jax.Array], tuple[jax.Array, Accumulators]]


def _adagrad_init(leaf: Array) -> Accumulators:
    return {"sum": jnp.zeros(leaf.shape[:1], jnp.float32)}


def _adagrad_step(
    g: jax.Array, accumulators: Accumulators, count: jax.Array
) -> tuple[jax.Array, Accumulators]:
    del count
    total = accumulators["sum"] + jnp.mean(jnp.square(g), axis=_columns(g))
    return g / _per_row(jnp.sqrt(total) + ADAGRAD_EPS, g), {"sum": total}


def _adam_init(leaf: Array) -> Accumulators:
    return {"mu": jnp.zeros_like(leaf), "nu": jnp.zeros_like(leaf)}


def _adam_step(
    g: jax.Array, accumulators: Accumulators, count: jax.Array
) -> tuple[jax.Array, Accumulators]:
    mu = BETA1 * accumulators["mu"] + (1 - BETA1) * g
    nu = BETA2 * accumulators["nu"] + (1 - BETA2) * jnp.square(g)
    time = (count + 1).astype(jnp.float32)
    step = mu / (1 - BETA1**time)
    step = step / (jnp.sqrt(nu / (1 - BETA2**time)) + ADAM_EPS)
    return step, {"mu": mu, "nu": nu}


RULES = {"adagrad": Rule(_adagrad_init, _adagrad_step), "adam": Rule(_adam_init, _adam_step)}


class Touched(NamedTuple):
    """The rows that a step reads and writes.

    ids: int32 [N] distinct rows of the stored table, ascending, then padding (a row that does not
    exist). rows: those rows of every leaf of the table, [N, ...]. places: int32 [M], the row of
    every item id in `item_rows(rows)`. item_rows: rows of the stored table -> rows of the items;
    row 0 is padding.
    """

    ids: jax.Array
    rows: Rows
    places: jax.Array
    item_rows: Callable[[Rows], ItemRows]


def touch(config: ModelConfig, leaves: Rows, ids: jax.Array, mesh: Mesh) -> Touched:
    """The rows of the item table that items `ids` int32 [M] need; row 0 (padding) comes first."""
    chex.assert_rank(ids, 1)
    if config.item_hash == "none":
        height = leaves[table.EMBEDDING].shape[0]
        numbers, places = _unique(ids, fill=height)
        rows: Rows = {name: take(leaf, numbers, mesh) for name, leaf in leaves.items()}
        return Touched(
            numbers,
            rows,
            places,
            lambda rows: ItemRows(rows[table.EMBEDDING], rows.get(table.BIAS)),
        )
    # ids first: the loss must tell items from each other, not rows
    items, places = _unique(ids, fill=0)
    shared = hashed.rows_of(config, items)
    numbers, row_places = _unique(shared.reshape(-1), fill=leaves[table.SHARED].shape[0])
    rows = {table.SHARED: take(leaves[table.SHARED], numbers, mesh)}
    of_item = row_places.reshape(shared.shape)

    def summed(rows: Rows) -> ItemRows:
        return ItemRows(jnp.sum(rows[table.SHARED][of_item], axis=1))

    return Touched(numbers, rows, places, summed)


def _unique(ids: jax.Array, fill: int) -> tuple[jax.Array, jax.Array]:
    """(0 and the distinct ids, ascending, then `fill`: [M + 1]; place of every id in it: [M])."""
    padded = jnp.concatenate([jnp.zeros(1, ids.dtype), ids])
    unique, places = jnp.unique(padded, size=len(padded), fill_value=fill, return_inverse=True)
    return unique, places[1:]


@dataclasses.dataclass(frozen=True)
class RowUpdate:
    """An `Update` that reads and writes only the rows of the item table that a step touches.

    negatives: draws them before the loss, from `sampling`: a sampler, None for uniform draws. The
    loss is given `rows` and `negatives`, and ids that number these rows. optimizer: of everything
    but the item table.

    The optimizer's state is {"dense": that of `optimizer`, "rows": name of an accumulator -> its
    values under the path of the leaf they belong to}.
    """

    loss: Loss
    negatives: DrawNegatives
    optimizer: optax.GradientTransformation
    model_config: ModelConfig
    config: TrainConfig
    mesh: Mesh

    @property
    def batch_shardings(self) -> Tree:
        """The shardings of the batches that `gradient` takes."""
        return mesh_lib.batch_sharding(self.mesh)

    @property
    def rule(self) -> Rule:
        """The row update of `train.table_update`."""
        return RULES[self.config.table_update]

    def init(self, params: Params) -> Tree:
        """The optimizer's state before the first step."""
        leaves, rest = table.split(params)
        rows = _by_accumulator({name: self.rule.init(leaf) for name, leaf in leaves.items()})
        return {"dense": self.optimizer.init(rest), "rows": rows}

    def gradient(
        self, params: Params, batch: Batch, rng: jax.Array, sampling: Sampler | None
    ) -> Gradient:
        """The mean gradient over the global batch."""
        drawn = self.negatives(rng, sampling)
        leaves, rest = table.split(params)
        ids = jnp.concatenate([batch.items.reshape(-1), drawn.ids])
        ids = jax.lax.with_sharding_constraint(ids, mesh_lib.replicated(self.mesh))
        touched = touch(self.model_config, leaves, ids, self.mesh)
        count = batch.items.size
        items = touched.places[:count].reshape(batch.items.shape)
        items = jax.lax.with_sharding_constraint(items, mesh_lib.batch_sharding(self.mesh))
        negatives = drawn._replace(ids=touched.places[count:])

        def summed_loss(
            params: Params, microbatch: Batch, key: jax.Array
        ) -> tuple[jax.Array, jax.Array, Metrics]:
            rows, rest = table.split(params)
            item_rows = touched.item_rows(rows)
            return self.loss(
                rest, microbatch, rng=key, train=True, negatives=negatives, rows=item_rows
            )

        value, metrics, gradients = mean_gradient(
            summed_loss,
            table.join(touched.rows, rest),
            batch._replace(items=items),
            rng,
            microbatches=self.config.grad_accum_steps,
            mesh=self.mesh,
        )
        return Gradient(value, metrics, gradients, touched)

    def apply(
        self,
        gradient: Gradient,
        params: Params,
        opt_state: Tree,
        *,
        step: jax.Array,
        finite: jax.Array,
    ) -> tuple[Params, Tree]:
        """Parameters and optimizer state after the step."""
        leaves, rest = table.split(params)
        row_gradients, rest_gradients = table.split(gradient.tree)
        rest, dense = apply_optimizer(
            self.optimizer, rest_gradients, rest, opt_state["dense"], finite=finite
        )
        accumulators = _by_leaf(opt_state["rows"])
        for name, g in row_gradients.items():
            leaves[name], accumulators[name] = self._updated(
                name,
                leaves[name],
                accumulators[name],
                touched=gradient.touched,
                gradients=g,
                step=step,
                finite=finite,
            )
        return table.join(leaves, rest), {"dense": dense, "rows": _by_accumulator(accumulators)}

    def _updated(
        self,
        name: str,
        leaf: Array,
        accumulators: Accumulators,
        *,
        touched: Touched,
        gradients: Array,
        step: jax.Array,
        finite: jax.Array,
    ) -> tuple[jax.Array, Accumulators]:
        """A leaf [R, ...] and its accumulators after the step.

        gradients: [N, ...]. A touched row whose gradient is zero is not changed, not even decayed.
        """
        rows = jnp.asarray(touched.rows[name], jnp.float32)
        chex.assert_equal_shape([rows, gradients])
        g = jnp.asarray(gradients, jnp.float32)
        changed = finite & jnp.any(g != 0, axis=_columns(g))
        old = {key: take(value, touched.ids, self.mesh) for key, value in accumulators.items()}
        update, new = self.rule.step(g, old, step)
        decayed = parameters.is_decayed(f"{table.ITEM}/{name}")
        decay = self.config.weight_decay if decayed else 0.0
        moved = rows - optimizer_lib.schedule(self.config)(step) * (update + decay * rows)

        def written(stored: Array, after: jax.Array, before: jax.Array) -> jax.Array:
            values = jnp.where(_per_row(changed, after), after, before)
            return put(stored, touched.ids, values, self.mesh)

        accumulators = {key: written(accumulators[key], new[key], old[key]) for key in accumulators}
        return written(leaf, moved, rows), accumulators


def _by_accumulator(leaves: dict[str, Accumulators]) -> Tree:
    """Accumulators of leaves as a tree whose paths end in the paths of the leaves."""
    names = next(iter(leaves.values()))
    return {
        name: {table.ITEM: {leaf: accumulators[name] for leaf, accumulators in leaves.items()}}
        for name in names
    }


def _by_leaf(tree: Tree) -> dict[str, Accumulators]:
    """The inverse of `_by_accumulator`."""
    names = next(iter(tree.values()))[table.ITEM]
    return {leaf: {name: tree[name][table.ITEM][leaf] for name in tree} for leaf in names}


def _columns(x: jax.Array) -> tuple[int, ...]:
    """All axes but the rows; none of a leaf with one number per row."""
    return tuple(range(1, x.ndim))


def _per_row(x: jax.Array, like: jax.Array) -> jax.Array:
    """[N] with as many axes as `like` [N, ...]."""
    return x.reshape(x.shape + (1,) * (like.ndim - 1))
