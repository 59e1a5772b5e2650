"""Attention by segments in kernels for NVIDIA's Hopper GPUs, forward and backward.

A run's segments are folded into the users; the keys of a segment are [earlier tokens | own
positions]. Logits, masks and weights exist in registers and shared memory alone. Where there is no
kernel for a call (`unfit`), `blocked` computes the same.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.layout import SegmentLayout
from jaxrec.nn.attention import accelerators
from jaxrec.nn.attention.hopper import arrays, calls
from jaxrec.nn.attention.interface import Inputs
from jaxrec.nn.attention.weights import Weigh, Weighing

CAPABILITY = "9.0"  # Hopper: later chips do not have its products of warpgroups
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
    reason = accelerators.unfit(inputs, layout, weigh)
    if reason is not None:
        return reason
    if inputs.q.dtype != jnp.bfloat16:
        return f"numbers are {inputs.q.dtype}, on GPUs bfloat16 is needed"
    if inputs.q.shape[-1] > WIDEST:
        return f"heads are {inputs.q.shape[-1]} wide, on GPUs at most {WIDEST} are possible"
    return None


def _attention(layout: SegmentLayout, weigh: Weighing, interpret: Any, inputs: Inputs) -> jax.Array:
    outputs = []
    for run in layout.runs():
        shape, x = arrays.folded(inputs, layout, run, weigh)
        out = calls.attention(shape, interpret, x)[:, :, : run.length, : inputs.v.shape[-1]]
        # [B s, N, P, H] -> [B, s P, N, H]
        out = out.reshape(-1, run.count, *out.shape[1:])
        out = jnp.transpose(out, (0, 1, 3, 2, 4))
        outputs.append(out.reshape(len(out), run.count * run.length, *out.shape[3:]))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)
