"""The token memory of a user state: create it, push a segment, select users.

It has room for the tokens of `max_segments` segments, oldest first. Both kinds of
`types.TokenState` are handled alike, by the axes of their fields.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp

from jaxrec.config import ModelConfig
from jaxrec.layout import SegmentLayout
from jaxrec.nn.depth import DTYPES
from jaxrec.nn.stack import keeps_inputs
from jaxrec.types import KV, Array, TokenOutputs, TokenState

T = TypeVar("T", bound=TokenState)


def token_axes(tokens: TokenState) -> TokenState:
    """The axis of the tokens in every field, as an int in its place."""
    return (
        _like(tokens, KV._make((2, 2, 1, 1, 1)))
        if isinstance(tokens, KV)
        else TokenOutputs._make((1, 1, 1))
    )


def user_axes(tokens: TokenState) -> TokenState:
    """The axis of the users in every field, as an int in its place."""
    return (
        _like(tokens, KV._make((1, 1, 0, 0, 0)))
        if isinstance(tokens, KV)
        else TokenOutputs._make((0, 0, 0))
    )


def _like(tokens: KV, axes: KV) -> KV:
    """The axes of the fields that there are."""
    return axes if tokens.inputs is not None else axes._replace(inputs=None)


def empty(config: ModelConfig, layout: SegmentLayout, users: int) -> TokenState:
    """The memory of users without events: tokens of `max_segments` segments that do not exist.

    layout: the model's.
    """
    count, dtype = layout.segments[0][1] * layout.max_segments, DTYPES[config.dtype]
    times = jnp.zeros((users, count), jnp.int32)
    valid = jnp.zeros((users, count), bool)
    if config.state == "embedding":
        return TokenOutputs(jnp.zeros((users, count, config.width), dtype), times, valid)
    shape = (config.layers - 1, users, count, config.kv_heads, config.head_width)
    inputs = None
    if keeps_inputs(config, layout):
        inputs = jnp.zeros((users, count, config.width), dtype)
    return KV(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), inputs, times, valid)


def push(old: Array, new: Array, axis: int) -> jax.Array:
    """Appends `new` along `axis` and drops as many of the oldest entries of `old`.

    Shape and dtype are those of `old`.
    """
    longer = jnp.concatenate([old, new.astype(old.dtype)], axis=axis)
    return jax.lax.slice_in_dim(longer, new.shape[axis], None, axis=axis)


def push_segment(tokens: T, new: TokenState) -> T:
    """Appends the tokens of one segment; those of the oldest segment drop off."""
    return jax.tree.map(push, tokens, new, token_axes(tokens))


def select_users(where: Array, new: T, old: T) -> T:
    """`new` of the users for whom `where` [B] is true, `old` of the others."""

    def select(new: Array, old: Array, axis: int) -> jax.Array:
        shape = [1] * old.ndim
        shape[axis] = -1
        return jnp.where(where.reshape(shape), new, old)

    return jax.tree.map(select, new, old, user_axes(old))
