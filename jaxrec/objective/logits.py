"""Logits of a chunk of positions: what every loss of `jaxrec.objective` shares."""

import jax
import jax.numpy as jnp

from jaxrec.types import Array, Tree


def unit(x: Array, eps: float = 1e-6) -> jax.Array:
    """`x` [..., D] divided by its length; vectors shorter than `eps` shrink to 0 smoothly.

    Values and gradients are finite everywhere, at 0 too.
    """
    x = jnp.asarray(x)
    square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(jnp.maximum(square, eps * eps))).astype(x.dtype)


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Matrix product over axis contract[0] of a and contract[1] of b, float32 accumulation."""
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def scaled_queries(rows: Tree, shared: Tree) -> jax.Array:
    """Queries [C, D] times the scale of the logits, in their own type."""
    x = rows["x"]
    return (x.astype(jnp.float32) * shared["scale"]).astype(x.dtype)


def positive_logit(rows: Tree, shared: Tree) -> jax.Array:
    """float32 [C] logit of each position's own target."""
    x, positive = rows["x"].astype(jnp.float32), rows["positive"].astype(jnp.float32)
    score = jnp.sum(x * positive, -1)
    if rows.get("offsets") is not None:
        score = score + rows["offsets"].positive[:, 0]
    return score * shared["scale"]
