"""From logits to attention weights, over one or more groups of keys.

A backend may hold the keys of a query in several arrays (own positions, earlier tokens). Logits
and masks come as one array per group, [B, N, Q, K] and broadcastable to it, and so do weights.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxrec.types import Array

Kind = Literal["softmax", "pointwise"]

HIDDEN = -1e30  # logit of a pair that must not count


class Weights(NamedTuple):
    """Weights [B, N, Q, K] of every group; total: [B, N, Q, 1], what their sums are divided by.

    Dividing what the weights mix takes as many divisions as it has numbers, not one for every pair.
    """

    groups: list[jax.Array]
    total: jax.Array | None


class Weigh(Protocol):
    """Weights of logits where the masks are true, 0 elsewhere."""

    def __call__(self, logits: Sequence[jax.Array], masks: Sequence[Array], /) -> Weights:
        """`Weights` of all groups."""
        ...


def pointwise(logits: Sequence[jax.Array], masks: Sequence[Array], *, normalizer: float) -> Weights:
    """silu(logits) / normalizer (HSTU, arXiv 2402.17152 eq. 2): not normalised over keys.

    normalizer: a constant of the layout, so that a cached and a full computation agree.
    """
    groups = [
        jnp.where(m, jax.nn.silu(x) / normalizer, 0) for x, m in zip(logits, masks, strict=True)
    ]
    return Weights(groups, None)


def softmax(logits: Sequence[jax.Array], masks: Sequence[Array]) -> Weights:
    """Softmax over the union of the groups (arXiv 1706.03762 eq. 1)."""
    logits = [jnp.where(m, x, HIDDEN) for x, m in zip(logits, masks, strict=True)]
    top = logits[0].max(-1, keepdims=True)
    for x in logits[1:]:
        top = jnp.maximum(top, x.max(-1, keepdims=True))
    top = jax.lax.stop_gradient(top)
    weights = [jnp.exp(x - top) for x in logits]
    total = weights[0].sum(-1, keepdims=True)
    for w in weights[1:]:
        total = total + w.sum(-1, keepdims=True)
    return Weights(weights, total)


@dataclasses.dataclass(frozen=True)
class Weighing:
    """`Weigh` by name; normalizer: divisor of `pointwise`."""

    kind: Kind
    normalizer: float = 1.0

    def __call__(self, logits: Sequence[jax.Array], masks: Sequence[Array], /) -> Weights:
        """See `Weigh`."""
        if self.kind == "softmax":
            return softmax(logits, masks)
        return pointwise(logits, masks, normalizer=self.normalizer)


def mix(equation: str, weights: Weights, values: Sequence[Array]) -> jax.Array:
    """The weighted sum of the values of every group by an einsum equation, in their dtype.

    equation: from [B, N, Q, K] and values to [B, N, Q, H].
    """
    dtype = values[0].dtype
    groups, total = weights
    if total is not None and dtype.itemsize < total.dtype.itemsize:
        # Sums of rounded numbers and their total have gradients that do not cancel as they should.
        groups, total = [weight / total for weight in groups], None
    parts = [
        jnp.einsum(equation, weight.astype(dtype), value)
        for weight, value in zip(groups, values, strict=True)
    ]
    mixed = sum(parts[1:], start=parts[0])
    return mixed if total is None else (mixed / total).astype(dtype)


def products(equation: str, q: Array, k: Array, bias: jax.Array | None) -> jax.Array:
    """Logits q k + bias by an einsum equation, in float32 or wider."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum(equation, q, k, preferred_element_type=wide)
    return logits if bias is None else logits + bias
