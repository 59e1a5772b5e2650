"""Attention by segments in kernels for NVIDIA's Hopper GPUs, forward and backward.

A run's segments are folded into the users; the keys of a segment are [earlier tokens | own
positions]. Logits, masks and weights exist in registers, the bias that all users share in tiles
of shared memory. Where there is no kernel for a call (`unfit`), `blocked` computes the same.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.layout import Run, SegmentLayout
from jaxrec.nn.attention import accelerators
from jaxrec.nn.attention.hopper import calls, kernels
from jaxrec.nn.attention.hopper.kernels import TILE
from jaxrec.nn.attention.interface import Bias, Inputs
from jaxrec.nn.attention.segment_rows import cut, earlier_tokens
from jaxrec.nn.attention.weights import Weigh, Weighing
from jaxrec.nn.bias import RelativeBias
from jaxrec.types import Array

CAPABILITY = "9.0"  # Hopper: later chips do not have its products of warpgroups
LANES = 64  # the width of heads is a multiple: rows of 128 bytes
WIDEST = 128  # gradients of keys and values that fit a warpgroup's registers


def attend(
    inputs: Inputs, layout: SegmentLayout, weigh: Weigh, *, interpret: Any = None
) -> jax.Array:
    """A backend of `attention.attend`, for what `unfit` has no objection to.

    interpret: parameters of Pallas' interpreter, which computes the kernels on any device.
    """
    assert isinstance(weigh, Weighing)
    compute = functools.partial(_attention, layout, weigh, interpret)
    return accelerators.over_users(compute, inputs)


def unfit(inputs: Inputs, layout: SegmentLayout, weigh: Weigh) -> str | None:
    """Why there is no kernel for a call; None: there is one."""
    capability = getattr(jax.local_devices()[0], "compute_capability", "unknown")
    if capability != CAPABILITY:
        return f"kernels are for GPUs of compute capability {CAPABILITY}, this is {capability}"
    return no_kernel(inputs, layout, weigh)


def no_kernel(inputs: Inputs, layout: SegmentLayout, weigh: Weigh) -> str | None:
    """`unfit` on a Hopper GPU."""
    reason = accelerators.unfit(inputs, layout, weigh)
    if reason is not None:
        return reason
    if inputs.q.dtype != jnp.bfloat16:
        return f"numbers are {inputs.q.dtype}, on GPUs bfloat16 is needed"
    if isinstance(inputs.bias, RelativeBias) and inputs.bias.time is not None:
        return "a time bias has no kernel on GPUs"
    if inputs.q.shape[-1] > WIDEST:
        return f"heads are {inputs.q.shape[-1]} wide, on GPUs at most {WIDEST} are possible"
    return None


def _attention(layout: SegmentLayout, weigh: Weighing, interpret: Any, inputs: Inputs) -> jax.Array:
    outputs = []
    for run in layout.runs():
        shape, x = _folded(inputs, layout, run, weigh)
        out = calls.attention(shape, interpret, x)[:, :, : run.length, : inputs.v.shape[-1]]
        # [B s, N, P, H] -> [B, s P, N, H]
        out = out.reshape(-1, run.count, *out.shape[1:])
        out = jnp.transpose(out, (0, 1, 3, 2, 4))
        outputs.append(out.reshape(len(out), run.count * run.length, *out.shape[3:]))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def _folded(
    inputs: Inputs, layout: SegmentLayout, run: Run, weigh: Weighing
) -> tuple[kernels.Shape, kernels.Inputs]:
    """A run's segments as rows of the kernels."""
    keys, visible = layout.earlier_tokens(run)
    tokens = earlier_tokens(inputs, layout, run)
    users, heads = len(inputs.q), inputs.q.shape[2]
    # cut: [s, B, P, N, H]
    q, own_k, own_v = (
        _padded(jnp.transpose(cut(x, run), (1, 0, 3, 2, 4)), {3: TILE, 4: LANES})
        for x in (inputs.q, inputs.k, inputs.v)
    )
    seen = _padded(jnp.swapaxes(cut(inputs.valid, run), 0, 1), {2: TILE})

    def with_tokens(own: jax.Array, x: Array) -> jax.Array:
        """[B, s, N, C + P, H]; x: [B, N, K, H], the same tokens for every segment."""
        x = _padded(x, {2: TILE, 3: LANES})[:, None]
        return jnp.concatenate([jnp.broadcast_to(x, (users, run.count, *x.shape[2:])), own], axis=3)

    seen_tokens = _padded(tokens.valid[:, None] & jnp.asarray(visible)[None], {2: TILE})
    x = kernels.Inputs(
        q=q,
        k=with_tokens(own_k, tokens.k),
        v=with_tokens(own_v, tokens.v),
        seen=jnp.concatenate([seen_tokens, seen], axis=2).astype(jnp.float32),
        bias=None,
    )
    x = jax.tree.map(lambda a: a.reshape(users * run.count, *a.shape[2:]), x)
    bias = _bias(inputs.bias, run, keys, heads)
    shape = kernels.Shape(weigh.kind, weigh.normalizer, seen_tokens.shape[2], run.count)
    return shape, x._replace(bias=bias)


def _bias(bias: Bias | None, run: Run, keys: np.ndarray, heads: int) -> jax.Array:
    """float32 [N, s, P, C + P] of own keys and earlier tokens; zeros where there is none."""
    sides = []
    own: Array = jnp.zeros((run.count, 1, 1, 1, 1))
    earlier: Array = own
    if bias is not None:
        segments = bias.segments(run, keys)
        each = [
            bias.block(jax.tree.map(lambda x, s=s: x[s], segments), run, 0, run.length)
            for s in range(run.count)
        ]
        own, earlier = (jnp.stack(side) for side in zip(*each, strict=True))
    for side, columns in ((earlier, len(keys)), (own, run.length)):
        shape = (run.count, heads, run.length, columns)
        whole = jnp.broadcast_to(side[:, 0], shape).astype(jnp.float32)
        sides.append(_padded(whole, {2: TILE, 3: TILE}))
    return jnp.swapaxes(jnp.concatenate(sides, axis=3), 0, 1)


def _padded(x: Array, multiples: dict[int, int]) -> jax.Array:
    """x with axes filled up with zeros to multiples."""
    more = [(0, -x.shape[axis] % multiples.get(axis, 1)) for axis in range(x.ndim)]
    return jnp.pad(x, more)
