"""Attention over a band: a sliding window and the first positions of the history."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.layout import BandRows, SegmentLayout
from jaxrec.nn.attention.interface import Bias, Inputs
from jaxrec.nn.attention.weights import Weigh, mix, products
from jaxrec.types import Array

BiasOfRows = Callable[[int, int], jax.Array | None]


def attend(inputs: Inputs, layout: SegmentLayout, weigh: Weigh) -> jax.Array:
    """A backend of `attention.attend`, for layouts whose view has the structure `band`.

    Computes a chunk of query rows at a time against the keys that some row of it sees.
    """
    bias_of = _bias_of_rows(inputs.bias, layout)
    outputs = []
    for rows in layout.band():
        chunk = functools.partial(_rows, rows, layout, weigh, bias_of, inputs.valid)
        outputs.append(jax.checkpoint(chunk)(inputs.q, inputs.k, inputs.v))
    return jnp.concatenate(outputs, axis=1)


def _bias_of_rows(bias: Bias | None, layout: SegmentLayout) -> BiasOfRows:
    """The bias of query rows start..stop against the keys 0..stop; the layout is one segment."""
    if bias is None:
        return lambda start, stop: None
    (run,) = layout.runs()
    no_tokens = np.zeros(0, np.int64)
    segment = jax.tree.map(lambda x: x[0], bias.segments(run, no_tokens))
    return lambda start, stop: bias.block(segment, run, start, stop)[0]


def _rows(
    rows: BandRows,
    layout: SegmentLayout,
    weigh: Weigh,
    bias_of: BiasOfRows,
    valid: Array,
    q: Array,
    k: Array,
    v: Array,
) -> jax.Array:
    """[B, rows, N, H] of the queries start..stop."""
    bias = bias_of(rows.start, rows.stop)
    if bias is not None and bias.shape[3] == rows.stop:  # else it is the same for every key
        bias = _keys(bias, rows, 3)
    logits = products("bqnh,bknh->bnqk", q[:, rows.start : rows.stop], _keys(k, rows, 1), bias)
    mask = layout.sees(np.arange(rows.start, rows.stop), rows.keys)[None, None]
    mask = mask & _keys(valid, rows, 1)[:, None, None, :]
    mixed = mix("bnqk,bknh->bnqh", weigh([logits], [mask]), [_keys(v, rows, 1)])
    return jnp.swapaxes(mixed, 1, 2)


def _keys(x: Array, rows: BandRows, axis: int) -> jax.Array:
    """The entries of an axis of positions that belong to the keys of the rows."""
    window = jax.lax.slice_in_dim(x, rows.first, rows.stop, axis=axis)
    if not rows.prefix:
        return window
    return jnp.concatenate([jax.lax.slice_in_dim(x, 0, rows.prefix, axis=axis), window], axis=axis)
