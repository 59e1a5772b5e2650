"""The mean loss over a batch and its gradient, the batch whole or in microbatches."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxrec.runtime import mesh as mesh_lib
from jaxrec.types import Batch, Tree

Metrics: TypeAlias = dict[str, jax.Array]
# (parameters, microbatch, key) -> (loss sum, weight sum, metrics)
SummedLoss: TypeAlias = Callable[[Tree, Batch, jax.Array], tuple[jax.Array, jax.Array, Metrics]]


def mean_gradient(
    loss: SummedLoss,
    params: Tree,
    batch: Batch,
    rng: jax.Array,
    *,
    microbatches: int,
    mesh: Mesh,
) -> tuple[jax.Array, Metrics, Tree]:
    """(mean loss over the batch, metrics, gradient), microbatches computed one after the other.

    The mean is that of the whole batch: every microbatch counts with the weight that it holds.
    Metrics are means over microbatches, `targets` their sum. Each microbatch has a key of its own,
    so dropout and negatives are not those of `microbatches` = 1.
    """
    if microbatches == 1:

        def mean(params: Tree) -> tuple[jax.Array, Metrics]:
            total, weight, metrics = loss(params, batch, rng)
            return total / jnp.where(weight > 0, weight, 1.0), metrics

        (value, metrics), gradients = jax.value_and_grad(mean, has_aux=True)(params)
        return value, metrics, gradients

    # rows i, i + microbatches, ... so that every device keeps its own users
    rows = mesh_lib.batch_sharding(mesh)
    split = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)

    def summed(
        params: Tree, microbatch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Metrics]]:
        total, weight, metrics = loss(params, microbatch, key)
        return total, (weight, metrics)

    def add(sums: Tree, numbered: tuple[Batch, jax.Array]) -> tuple[Tree, Metrics]:
        microbatch, index = numbered
        microbatch = jax.lax.with_sharding_constraint(microbatch, rows)
        key = jax.random.fold_in(rng, index)
        gradient = jax.value_and_grad(summed, has_aux=True)
        (total, (weight, metrics)), gradients = gradient(params, microbatch, key)
        return jax.tree.map(jnp.add, sums, (total, weight, gradients)), metrics

    zeros = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
    (total, weight, gradients), metrics = jax.lax.scan(
        add, zeros, (split, jnp.arange(microbatches))
    )
    weight = jnp.where(weight > 0, weight, 1.0)
    metrics = {k: m.sum(0) if k == "targets" else m.mean(0) for k, m in metrics.items()}
    return total / weight, metrics, jax.tree.map(lambda g: (g / weight).astype(g.dtype), gradients)
