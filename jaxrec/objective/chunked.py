"""Sums of per-position losses whose gradient is computed in the forward pass, chunk by chunk.

Nothing that belongs to a chunk outlives it: memory does not grow with positions x items. A
position without weight costs little: weighted ones are moved to the front and the loop stops
behind them.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxrec.runtime.mesh import axes_of_users
from jaxrec.types import Tree

# (sum of weight x loss, sum of weights): float32 scalars
SumWeight: TypeAlias = tuple[jax.Array, jax.Array]


class Kernel(NamedTuple):
    """One chunk of positions: static functions of values.

    loss(rows, shared, context) -> [C] loss of each position.
    gradient(rows, shared, context, weights, total) -> (sum of weighted losses, gradient for
        rows, `total` + gradient for shared).
    `context` is what has no gradient: {"rows": arrays [P, ...], "shared": the same for all}.
    """

    loss: Callable[[Tree, Tree, Tree], jax.Array]
    gradient: Callable[[Tree, Tree, Tree, jax.Array, Tree], tuple[jax.Array, Tree, Tree]]


def total(
    kernel: Kernel,
    chunk: int,
    rows: Tree,
    shared: Tree,
    *,
    context: Tree,
    weights: jax.Array,
) -> SumWeight:
    """(sum of weight x loss, sum of weights) over P positions, float32 scalars.

    rows: arrays [P, ...] and shared: arrays, both differentiable; context as in `Kernel`;
    weights: float32 [P], a constant. Positions with weight 0 add nothing, NaN or not.
    Raises ValueError when chunk < 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: a positive number of positions is needed")
    context, weights = jax.lax.stop_gradient((context, weights))
    axes = axes_of_users(weights.shape[0])

    def summed(rows: Tree, shared: Tree, context: Tree, weights: jax.Array) -> jax.Array:
        size = min(chunk, max(1, weights.shape[0]))
        value = _sum(kernel, size, rows, shared, context, weights)
        return jax.lax.psum(value, axes) if axes else value

    if axes:
        # every device takes its own positions: weighted ones move to the front of its own
        split, everywhere = PartitionSpec(axes), PartitionSpec()
        summed = jax.shard_map(
            summed,
            in_specs=(split, everywhere, {"rows": split, "shared": everywhere}, split),
            out_specs=everywhere,
            check_vma=False,
        )
    return summed(rows, shared, context, weights), jnp.sum(weights)


def _gather(
    size: int, rows: Tree, row_context: Tree, weights: jax.Array
) -> tuple[Tree, Tree, jax.Array, jax.Array, jax.Array]:
    """Weighted positions first, padded to whole chunks.

    Returns (rows, data, weights, order [P] of the positions, number of chunks in use).
    """
    positions = weights.shape[0]
    padding = -positions % size
    order = jnp.argsort(weights == 0, stable=True)
    take = jnp.pad(order, (0, padding))
    weights = jnp.pad(weights[order], (0, padding))
    row_context = jax.tree.map(lambda a: jnp.take(a, take, axis=0), row_context)
    # an unweighted position in a chunk that is in use must not leak, NaN included
    rows = jax.tree.map(
        lambda a: jnp.where(weights[:, None] != 0, jnp.take(a, take, axis=0), 0), rows
    )
    used = (jnp.sum(weights != 0) + size - 1) // size
    return rows, row_context, weights, order, used


def _slice(tree: Tree, start: jax.Array, size: int) -> Tree:
    """Rows start..start + size of every leaf."""
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum(
    kernel: Kernel, size: int, rows: Tree, shared: Tree, context: Tree, weights: jax.Array
) -> jax.Array:
    rows, row_context, weights, _, used = _gather(size, rows, context["rows"], weights)

    def body(index: jax.Array, total: jax.Array) -> jax.Array:
        chunk, of_rows, weight = _slice((rows, row_context, weights), index * size, size)
        loss = kernel.loss(chunk, shared, {"rows": of_rows, "shared": context["shared"]})
        return total + jnp.sum(jnp.where(weight != 0, weight * loss, 0.0))

    return jax.lax.fori_loop(0, used, body, jnp.zeros_like(jnp.sum(weights)))


def _sum_forward(
    kernel: Kernel, size: int, rows: Tree, shared: Tree, context: Tree, weights: jax.Array
) -> tuple[jax.Array, Tree]:
    unordered = rows
    rows, row_context, weights, order, used = _gather(size, rows, context["rows"], weights)

    def body(index: jax.Array, carry: Tree) -> Tree:
        total, gradients, accumulated = carry
        start = index * size
        chunk, of_rows, weight = _slice((rows, row_context, weights), start, size)
        of_chunk = {"rows": of_rows, "shared": context["shared"]}
        loss, gradient, accumulated = kernel.gradient(chunk, shared, of_chunk, weight, accumulated)
        gradients = jax.tree.map(
            lambda a, g: jax.lax.dynamic_update_slice_in_dim(a, g.astype(a.dtype), start, 0),
            gradients,
            gradient,
        )
        return total + loss, gradients, accumulated

    zeros = jax.tree.map(jnp.zeros_like, rows)
    accumulators = jax.tree.map(lambda a: jnp.zeros_like(a, jnp.float32), shared)
    carry = (jnp.zeros_like(jnp.sum(weights)), zeros, accumulators)
    loss, gradients, accumulated = jax.lax.fori_loop(0, used, body, carry)
    position = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0], dtype=order.dtype))
    gradients = jax.tree.map(
        lambda g, a: jnp.take(g, position, axis=0).astype(a.dtype), gradients, unordered
    )
    accumulated = jax.tree.map(lambda g, a: g.astype(a.dtype), accumulated, shared)
    return loss, (gradients, accumulated)


def _sum_backward(kernel: Kernel, size: int, residuals: Tree, cotangent: jax.Array) -> Tree:
    scaled = jax.tree.map(lambda g: (g * cotangent).astype(g.dtype), residuals)
    return (*scaled, None, None)


_sum.defvjp(_sum_forward, _sum_backward)
