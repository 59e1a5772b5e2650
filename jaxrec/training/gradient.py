"""The mean loss over a batch and its gradient, the batch whole or in parts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxrec.runtime import mesh as mesh_lib
from jaxrec.types import Batch, Params


def mean_gradient(
    loss: Callable[[Params, Batch, jax.Array], Any],
    params: Params,
    batch: Batch,
    rng: jax.Array,
    parts: int,
    mesh: Mesh,
) -> tuple[jax.Array, dict[str, jax.Array], Params]:
    """(mean loss over the batch, metrics, its gradient), the batch in `parts` one after the other.

    loss: (params, part, key) -> (sum, weight sum, metrics). The mean is that of the whole batch,
    parts weigh what they hold; metrics are means over parts, `targets` their sum. Each part has
    a key of its own: dropout and negatives are not those of `parts` = 1.
    """
    if parts == 1:

        def mean(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            total, weight, metrics = loss(params, batch, rng)
            return total / jnp.where(weight > 0, weight, 1.0), metrics

        (value, metrics), gradients = jax.value_and_grad(mean, has_aux=True)(params)
        return value, metrics, gradients

    # rows i, i + parts, ... so that every device keeps its own users
    rows = mesh_lib.batch_sharding(mesh)
    cut = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def summed(params: Params, part: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        total, weight, metrics = loss(params, part, key)
        return total, (weight, metrics)

    def one(carry: Any, given: Any) -> tuple[Any, Any]:
        part, index = given
        part = jax.lax.with_sharding_constraint(part, rows)
        key = jax.random.fold_in(rng, index)
        found = jax.value_and_grad(summed, has_aux=True)(params, part, key)
        (total, (weight, metrics)), gradients = found
        return jax.tree.map(jnp.add, carry, (total, weight, gradients)), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    start = (jnp.float32(0), jnp.float32(0), zeros)
    (total, weight, gradients), metrics = jax.lax.scan(one, start, (cut, jnp.arange(parts)))
    weight = jnp.where(weight > 0, weight, 1.0)
    metrics = {k: m.sum(0) if k == "targets" else m.mean(0) for k, m in metrics.items()}
    return total / weight, metrics, jax.tree.map(lambda g: (g / weight).astype(g.dtype), gradients)
