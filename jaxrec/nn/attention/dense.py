"""Attention over every query-key pair, masked: the reference that the others are tested against."""

import jax
import jax.numpy as jnp

from jaxrec.layout import SegmentLayout
from jaxrec.nn.attention.interface import Inputs
from jaxrec.nn.attention.weights import Weigh, mix, products


def attend(inputs: Inputs, layout: SegmentLayout, weigh: Weigh) -> jax.Array:
    """A backend of `attention.attend`: T x (C + T) pairs, for any layout."""
    q, k, v, valid, cached, bias = inputs
    if cached is not None:
        k = jnp.concatenate([cached.k, k], axis=1)
        v = jnp.concatenate([cached.v, v], axis=1)
        valid = jnp.concatenate([cached.valid, valid], axis=1)
    mask = layout.visible[None, None] & valid[:, None, None, :]
    logits = products("bqnh,bknh->bnqk", q, k, None if bias is None else bias.dense())
    mixed = mix("bnqk,bknh->bnqh", weigh([logits], [mask]), [v])
    return jnp.swapaxes(mixed, 1, 2)
