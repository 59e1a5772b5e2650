"""Attention by segments: a causal block in each, and a rectangle of the earlier tokens it sees.

S(n+k)^2 + S(n+k) S k pairs instead of (S(n+k))^2 (docs/method.md).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.layout import Run, SegmentLayout
from jaxrec.layout.structure import row_chunks
from jaxrec.nn.attention.interface import Bias, Cached, Inputs
from jaxrec.nn.attention.segment_rows import cut, earlier_tokens
from jaxrec.nn.attention.weights import Weigh, mix, products
from jaxrec.types import Array, Tree


class _Segments(NamedTuple):
    """A run's segments s, or a single one without the leading axis.

    q, k, v: [s, B, N, P, H]; valid: [s, B, P]; visible: [s, K] which earlier tokens the rule
    lets it see; bias: what `Bias.segments` returned.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    valid: jax.Array
    visible: jax.Array
    bias: Tree


class _Shared(NamedTuple):
    """What all segments of a run have in common; tokens: earlier ones, [B, N, K, H]."""

    run: Run
    tokens: Cached
    weigh: Weigh
    bias: Bias | None


def attend(inputs: Inputs, layout: SegmentLayout, weigh: Weigh) -> jax.Array:
    """A backend of `attention.attend`, for layouts whose view has the structure `segments`."""
    q, k, v, valid, _, bias = inputs
    outputs = []
    for run in layout.runs():
        keys, visible = layout.earlier_tokens(run)
        tokens = earlier_tokens(inputs, layout, run)
        segments = _Segments(
            q=jnp.swapaxes(cut(q, run), 2, 3),
            k=jnp.swapaxes(cut(k, run), 2, 3),
            v=jnp.swapaxes(cut(v, run), 2, 3),
            valid=cut(valid, run),
            visible=jnp.asarray(visible),
            bias=None if bias is None else bias.segments(run, keys),
        )
        segment = functools.partial(_segment, _Shared(run, tokens, weigh, bias))
        out = jnp.transpose(_over_segments(segment, segments, run.count), (1, 0, 3, 2, 4))
        outputs.append(out.reshape(q.shape[0], run.count * run.length, *out.shape[3:]))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def _segment(shared: _Shared, segment: _Segments) -> jax.Array:
    """[B, N, P, H] of one segment, a chunk of rows at a time."""
    outputs = []
    for start, stop in row_chunks(shared.run.length):
        rows = functools.partial(_rows, start, stop, shared)
        # weights are cheaper to compute again in the backward pass than to write out and read back
        outputs.append(jax.checkpoint(rows)(segment))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=2)


def _rows(start: int, stop: int, shared: _Shared, segment: _Segments) -> jax.Array:
    """Queries start..stop of a segment against its own keys and earlier tokens."""
    run, tokens, weigh, bias = shared
    q, k, v = segment.q[:, :, start:stop], segment.k[:, :, :stop], segment.v[:, :, :stop]
    biases = (None, None) if bias is None else bias.block(segment.bias, run, start, stop)
    causal = np.arange(stop)[None] <= np.arange(start, stop)[:, None]
    logits = [products("bnph,bnqh->bnpq", q, k, biases[0])]
    masks: list[Array] = [causal[None, None] & segment.valid[:, None, None, :stop]]
    values: list[Array] = [v]
    if tokens.k.shape[2]:
        logits.append(products("bnph,bnqh->bnpq", q, tokens.k, biases[1]))
        masks.append((segment.visible[None] & tokens.valid)[:, None, None])
        values.append(tokens.v)
    return mix("bnpq,bnqh->bnph", weigh(logits, masks), values)


def _over_segments(
    segment: Callable[[_Segments], jax.Array], segments: _Segments, count: int
) -> jax.Array:
    """`segment` of every leading index: all at once or, on CPU, one after the other.

    One segment's weights fit a CPU's cache, those of all do not: in turn is several times faster
    there. The choice is made when the program is compiled for its platform.
    """
    if count == 1:
        return segment(jax.tree.map(lambda x: x[0], segments))[None]
    return jax.lax.platform_dependent(
        segments, cpu=functools.partial(jax.lax.map, segment), default=jax.vmap(segment)
    )
