"""How the gradient of a step is computed and applied.

Kinds of training differ in their `Update`; `step.make_step` is common to all. There are three:

    DenseUpdate               every parameter by AdamW, in every step
    row_updates.RowUpdate     of the item table only the rows that a step touches
    text_step.TextUpdate      an item tower, through the texts of the batch
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxrec.config import TrainConfig
from jaxrec.items.table import RowSource
from jaxrec.objective.sampling import Negatives, Sampler
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import optimizer as optimizer_lib
from jaxrec.training.gradient import Metrics, mean_gradient
from jaxrec.types import Array, Batch, Params, Tree

# (key, sampler or None for uniform draws) -> negatives: `Model.negatives`
DrawNegatives: TypeAlias = Callable[[jax.Array, Sampler | None], Negatives]


class Loss(Protocol):
    """`Model.loss`: (loss sum, weight sum, metrics) of a batch."""

    def __call__(
        self,
        params: Params,
        batch: Batch,
        *,
        rng: jax.Array | None = None,
        train: bool = False,
        item_counts: Array | None = None,
        negatives: Negatives | None = None,
        rows: RowSource | None = None,
    ) -> tuple[jax.Array, jax.Array, Metrics]:
        """Arguments as of `Model.loss`."""
        ...


class Gradient(NamedTuple):
    """The gradient of a step.

    loss: float32 [], mean over the global batch. tree: structured as the parameters; in place of
    leaves with a row per item there may be `device_rows.Reduced`. squares: float32 [P], squared
    norm of the gradient of every parameter, in the order of `jax.tree.leaves`. touched: what
    `Update.apply` needs to know about the rows, None where the leaves are whole.
    """

    loss: jax.Array
    metrics: Metrics
    tree: Params
    squares: jax.Array
    touched: Tree = None

    @classmethod
    def whole(cls, loss: jax.Array, metrics: Metrics, tree: Params) -> "Gradient":
        """A gradient that holds every leaf whole."""
        return cls(loss, metrics, tree, optimizer_lib.squared_norms(tree))


class Update(Protocol):
    """A way to compute and apply gradients."""

    @property
    def batch_shardings(self) -> Tree:
        """The shardings of the batches that `gradient` takes."""
        ...

    def init(self, params: Params) -> Tree:
        """The optimizer's state before the first step."""
        ...

    def gradient(self, params: Params, batch: Tree, rng: jax.Array, sampling: Tree) -> Gradient:
        """Mean loss and gradient of a global batch; sampling: see `Task`."""
        ...

    def apply(
        self,
        gradient: Gradient,
        params: Params,
        opt_state: Tree,
        *,
        step: jax.Array,
        finite: jax.Array,
    ) -> tuple[Params, Tree]:
        """Parameters and optimizer state after step number `step` (0 is the first).

        finite: bool []; False leaves everything as it is.
        """
        ...


def choose(condition: jax.Array, new: Tree, old: Tree) -> Tree:
    """`new` where the condition holds, else `old`; trees of one structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def apply_optimizer(
    optimizer: optax.GradientTransformation,
    gradients: Params,
    params: Params,
    opt_state: Tree,
    *,
    finite: jax.Array,
) -> tuple[Params, Tree]:
    """One update of an optax optimizer; nothing changes unless `finite`."""
    updates, new_state = optimizer.update(gradients, opt_state, params)
    new_params = optax.apply_updates(params, updates)
    return choose(finite, (new_params, new_state), (params, opt_state))


@dataclasses.dataclass(frozen=True)
class DenseUpdate:
    """Every parameter by AdamW; `sampling` is passed to the loss as item counts."""

    loss: Loss
    optimizer: optax.GradientTransformation
    config: TrainConfig
    mesh: Mesh

    @property
    def batch_shardings(self) -> Tree:
        """The shardings of the batches that `gradient` takes."""
        return mesh_lib.batch_sharding(self.mesh)

    def init(self, params: Params) -> Tree:
        """The optimizer's state before the first step."""
        return self.optimizer.init(params)

    def gradient(
        self, params: Params, batch: Batch, rng: jax.Array, sampling: Array | None
    ) -> Gradient:
        """The mean gradient over the global batch."""

        def summed_loss(
            params: Params, microbatch: Batch, key: jax.Array
        ) -> tuple[jax.Array, jax.Array, Metrics]:
            return self.loss(params, microbatch, rng=key, train=True, item_counts=sampling)

        return Gradient.whole(
            *mean_gradient(
                summed_loss,
                params,
                batch,
                rng,
                microbatches=self.config.grad_accum_steps,
                mesh=self.mesh,
            )
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
        del step  # the optimizer counts for itself
        return apply_optimizer(self.optimizer, gradient.tree, params, opt_state, finite=finite)
