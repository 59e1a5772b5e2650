"""Item tables of any size: a step reads and writes only the rows that it touches.

Every device makes the ids of its users unique, fetches their rows from the devices that own them
(`row_exchange`), and gives the loss those rows alone; their gradients go back to the owners, which
update them. Work and memory of a step depend on the batch, not on the catalog, and the table itself
never moves.

Two rules for a row with gradient g (mean over the batch, after clipping):
  - row-wise Adagrad: one number per row, a += mean(g²), row -= rate · g / (√a + ε), the update of
    FBGEMM and DLRM (Duchi et al., JMLR 2011, with the accumulator shared by a row);
  - lazy Adam: moments per element that only move in the steps that touch the row, corrected by
    the number of all steps (as TensorFlow's LazyAdam).
A leaf with one number per item (a bias) is updated alike. Weight decay pulls rows when they are
touched.

Dimension letters: R stored rows, N rows that are updated, W numbers of a row.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxrec.config import ModelConfig, TrainConfig
from jaxrec.items import table
from jaxrec.model import parameters
from jaxrec.objective.sampling import Sampler
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import device_rows
from jaxrec.training import optimizer as optimizer_lib
from jaxrec.training.gradient import Metrics, mean_gradient
from jaxrec.training.update import DrawNegatives, Gradient, Loss, apply_optimizer
from jaxrec.types import Array, Batch, Params, Tree

ADAGRAD_EPS, ADAM_EPS = 1e-8, 1e-8
BETA1, BETA2 = 0.9, 0.999

# name of an accumulator -> its values for some rows of a leaf
Accumulators: TypeAlias = dict[str, jax.Array]


class Stored(NamedTuple):
    """A leaf of the item table [R, ...] and its accumulators, whole or of one device."""

    leaf: Array
    accumulators: Accumulators


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
        touched = device_rows.touch(
            self.model_config, leaves, batch.items, drawn.ids, mesh=self.mesh
        )
        negatives = drawn._replace(ids=touched.negatives)

        def summed_loss(
            params: Params, microbatch: Batch, key: jax.Array
        ) -> tuple[jax.Array, jax.Array, Metrics]:
            rows, rest = table.split(params)
            return self.loss(
                rest, microbatch, rng=key, train=True, negatives=negatives, rows=touched.items(rows)
            )

        value, metrics, gradients = mean_gradient(
            summed_loss,
            table.join(touched.rows, rest),
            batch._replace(items=touched.places),
            rng,
            microbatches=self.config.grad_accum_steps,
            mesh=self.mesh,
        )
        row_gradients, rest_gradients = table.split(gradients)
        reduced, row_squares, first_ids = device_rows.reduce(touched, row_gradients)
        tree = table.join(reduced, rest_gradients)
        squares = table.join(row_squares, jax.tree.map(optimizer_lib.squared_norm, rest_gradients))
        return Gradient(
            value, metrics, tree, jnp.stack(jax.tree.leaves(squares)), (touched, first_ids)
        )

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
        shards = {name: Stored(leaf, accumulators[name]) for name, leaf in leaves.items()}
        update = functools.partial(self._updated, step=step, finite=finite)
        touched, first_ids = gradient.touched
        shards = device_rows.apply(touched, first_ids, row_gradients, shards, update)
        leaves = {name: stored.leaf for name, stored in shards.items()}
        accumulators = {name: stored.accumulators for name, stored in shards.items()}
        return table.join(leaves, rest), {"dense": dense, "rows": _by_accumulator(accumulators)}

    def _updated(
        self,
        name: str,
        stored: Stored,
        ids: jax.Array,
        gradients: jax.Array,
        *,
        step: jax.Array,
        finite: jax.Array,
    ) -> Stored:
        """A leaf [R, ...] and its accumulators after the step.

        ids: int32 [N] distinct rows, then R; gradients: [N, ...]. A row whose gradient is zero is
        not changed, not even decayed.
        """
        g = jnp.asarray(gradients, jnp.float32)
        changed = finite & jnp.any(g != 0, axis=_columns(g))
        ids = jnp.where(changed, ids, len(stored.leaf))  # nowhere

        def read(x: Array) -> jax.Array:
            return jnp.asarray(x).at[ids].get(mode="fill", fill_value=0)

        def written(x: Array, rows: jax.Array) -> jax.Array:
            return jnp.asarray(x).at[ids].set(rows.astype(x.dtype), mode="drop")

        rows = jnp.asarray(read(stored.leaf), jnp.float32)
        update, new = self.rule.step(g, jax.tree.map(read, stored.accumulators), step)
        decayed = parameters.is_decayed(f"{table.ITEM}/{name}")
        decay = self.config.weight_decay if decayed else 0.0
        moved = rows - optimizer_lib.schedule(self.config)(step) * (update + decay * rows)
        return Stored(written(stored.leaf, moved), jax.tree.map(written, stored.accumulators, new))


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
