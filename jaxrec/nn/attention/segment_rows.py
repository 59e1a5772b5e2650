"""A run's segments of a row, and the earlier tokens that they see, as arrays."""

import jax
import jax.numpy as jnp

from jaxrec.layout import Run, SegmentLayout
from jaxrec.nn.attention.interface import Cached, Inputs
from jaxrec.types import Array


def cut(x: Array, run: Run) -> jax.Array:
    """A run's positions of [B, T, ...] as [s, B, P, ...]."""
    x = x[:, run.start : run.stop]
    return jnp.swapaxes(x.reshape(-1, run.count, run.length, *x.shape[2:]), 0, 1)


def earlier_tokens(inputs: Inputs, layout: SegmentLayout, run: Run) -> Cached:
    """Those that some segment of a run sees, cached ones first: k, v [B, N, K, H], valid [B, K]."""
    keys, _ = layout.earlier_tokens(run)
    take = layout.token_positions[: len(keys) - layout.num_cached]
    tokens = Cached(inputs.k[:, take], inputs.v[:, take], inputs.valid[:, take])
    if inputs.cached is not None:
        pairs = zip(inputs.cached, tokens, strict=True)
        tokens = Cached(*(jnp.concatenate(pair, axis=1) for pair in pairs))
    return Cached(jnp.swapaxes(tokens.k, 1, 2), jnp.swapaxes(tokens.v, 1, 2), tokens.valid)
