"""AdamW with a warm-up schedule, and gradient clipping by the global norm."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrec.config import TrainConfig
from jaxrec.runtime import leaves

# Leaves that weight decay pulls to zero: matrices and tables of vectors. Biases, norm scales,
# relative attention biases, positions and compressed tokens are left alone.
DECAYED = ("kernel", "item_embedding", "shared_item_embedding")


def schedule(config: TrainConfig) -> optax.Schedule:
    """Learning rate of update number `count` (0 is the first).

    Linear from learning_rate / warmup to learning_rate over `warmup` updates, then constant,
    or down to final_lr_fraction * learning_rate at `steps` along a line or half a cosine
    (Loshchilov and Hutter, "SGDR", 2017, eq. 5).
    """
    if config.schedule not in ("cosine", "linear", "constant"):
        raise ValueError(f"train.schedule={config.schedule!r}")

    def rate(count: Any) -> jax.Array:
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


def adamw(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019)."""
    optimizer = optax.adamw(
        schedule(config),
        weight_decay=config.weight_decay,
        mask=decayed if config.weight_decay else None,
    )
    if not config.frozen:
        return optimizer
    # frozen leaves have no moments and take no memory beside themselves
    return optax.partition(
        {"moving": optimizer, "frozen": optax.set_to_zero()},
        functools.partial(_labels, moves(config)),
    )


def moves(config: TrainConfig) -> Callable[[str], bool]:
    """Whether the parameter of a path is trained: no pattern of `train.frozen` is found in it."""
    patterns = [re.compile(pattern) for pattern in config.frozen]
    return lambda name: not any(pattern.search(name) for pattern in patterns)


def _labels(trained: Callable[[str], bool], params: Any) -> Any:
    """Tree of `moving` and `frozen`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "moving" if trained(leaves.path_name(path)) else "frozen", params
    )


def decayed(params: Any) -> Any:
    """Tree of bools: which leaves weight decay applies to."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: leaves.path_name(path).rpartition("/")[2] in DECAYED, params
    )


def squared_norms(tree: Any) -> jax.Array:
    """float32 [P]: squared Euclidean norm of every leaf, in the order of `jax.tree.leaves`."""
    return jnp.stack([jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)])


def clip(gradients: Any, norm: jax.Array, limit: float) -> Any:
    """Gradients scaled down to the global norm `limit` when `norm` exceeds it; 0: off."""
    if not limit:
        return gradients
    factor = limit / jnp.maximum(norm, limit)
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradients)
