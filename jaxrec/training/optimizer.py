"""AdamW with a warm-up schedule, and gradient clipping by the global norm."""

from collections.abc import Collection

import jax
import jax.numpy as jnp
import optax

from jaxrec.config import TrainConfig
from jaxrec.model import parameters
from jaxrec.runtime import leaves
from jaxrec.types import Array, Params, Tree


def schedule(config: TrainConfig) -> optax.Schedule:
    """Learning rate of update number `count` (0 is the first).

    Linear from learning_rate / warmup to learning_rate over `warmup` updates, then constant,
    or down to final_lr_fraction * learning_rate at `steps` along a line or half a cosine
    (Loshchilov and Hutter, "SGDR", 2017, eq. 5). Raises ValueError for an unknown schedule.
    """
    if config.schedule not in ("cosine", "linear", "constant"):
        raise ValueError(
            f"train.schedule={config.schedule!r}: allowed are cosine, linear, constant"
        )

    def rate(count: Array | int) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        warm = jnp.minimum(1.0, (count + 1) / max(1, config.warmup))
        done = (count + 1 - config.warmup) / max(1, config.steps - config.warmup)
        done = jnp.clip(done, 0.0, 1.0)
        if config.schedule == "constant":
            shape = jnp.ones_like(done)
        elif config.schedule == "linear":
            shape = 1 - done
        else:
            shape = 0.5 * (1 + jnp.cos(jnp.pi * done))
        if config.schedule != "constant":
            shape = config.final_lr_fraction + (1 - config.final_lr_fraction) * shape
        return config.learning_rate * warm * shape

    return rate


def adamw(config: TrainConfig, frozen: Collection[str] = ()) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019).

    frozen: paths of parameters that stay as they are; they have no moments.
    """
    optimizer = optax.adamw(
        schedule(config),
        weight_decay=config.weight_decay,
        mask=decayed if config.weight_decay else None,
    )
    if not frozen:
        return optimizer

    def labels(params: Params) -> Tree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "frozen" if leaves.path_name(path) in frozen else "trained", params
        )

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def decayed(params: Params) -> Tree:
    """Tree of bools: the leaves that weight decay applies to (`model.parameters.is_decayed`)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: parameters.is_decayed(leaves.path_name(path)), params
    )


def squared_norm(x: jax.Array) -> jax.Array:
    """float32 []: squared Euclidean norm."""
    return jnp.sum(jnp.square(x.astype(jnp.float32)))


def squared_norms(tree: Tree) -> jax.Array:
    """float32 [P]: squared Euclidean norm of every leaf, in the order of `jax.tree.leaves`."""
    return jnp.stack([squared_norm(x) for x in jax.tree.leaves(tree)])


def clip(gradients: Tree, norm: jax.Array, limit: float) -> Tree:
    """Gradients scaled down to the global norm `limit` when `norm` exceeds it; 0: off."""
    if not limit:
        return gradients
    factor = limit / jnp.maximum(norm, limit)
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradients)
