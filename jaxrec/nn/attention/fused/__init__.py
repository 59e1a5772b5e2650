"""Attention by segments in one kernel on TPU: logits, masks and biases stay in fast memory.

q, k and v are read once and the output is written once; the backward pass computes the weights
again. Where there is no kernel for a call (`unfit`), `blocked` computes the same.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.layout import SegmentLayout
from jaxrec.nn.attention import accelerators
from jaxrec.nn.attention.fused import arrays, calls
from jaxrec.nn.attention.fused.plan import FAST_MEMORY, Plan
from jaxrec.nn.attention.interface import Cached, Inputs
from jaxrec.nn.attention.weights import Weigh, Weighing
from jaxrec.nn.bias import RelativeBias
from jaxrec.types import Array


def attend(
    inputs: Inputs, layout: SegmentLayout, weigh: Weigh, *, interpret: bool = False
) -> jax.Array:
    """A backend of `attention.attend`, for what `unfit` has no objection to.

    interpret: computes the kernels on any device, slowly.
    """
    plan = plan_of(inputs, layout, weigh, interpret)
    return accelerators.over_users(functools.partial(_attention, plan), inputs)


def plan_of(inputs: Inputs, layout: SegmentLayout, weigh: Weigh, interpret: bool = False) -> Plan:
    """The kernels' plan of a call."""
    assert isinstance(weigh, Weighing)
    _, _, heads, width = inputs.q.shape
    return Plan(layout, weigh.kind, weigh.normalizer, heads, width, interpret)


def unfit(inputs: Inputs, layout: SegmentLayout, weigh: Weigh) -> str | None:
    """Why there is no kernel for a call; None: there is one."""
    reason = accelerators.unfit(inputs, layout, weigh)
    if reason is not None:
        return reason
    if inputs.q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"numbers are {inputs.q.dtype}"
    plan = plan_of(inputs, layout, weigh)
    x = jax.eval_shape(functools.partial(arrays.operands, plan), inputs)
    need = calls.fast_memory(plan, x, backward=True)
    if need > FAST_MEMORY:
        return f"a row needs {need / 2**20:.0f} MiB of fast memory, {FAST_MEMORY >> 20} are there"
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: Plan, inputs: Inputs) -> jax.Array:
    rows = calls.output(plan, *arrays.scalars(plan, inputs), arrays.operands(plan, inputs))
    return arrays.unpadded_rows(plan, rows).reshape(inputs.v.shape)


def _attention_forward(plan: Plan, inputs: Inputs) -> tuple[jax.Array, Inputs]:
    return _attention(plan, inputs), inputs


def _attention_backward(plan: Plan, inputs: Inputs, upstream: jax.Array) -> tuple[Inputs]:
    x = arrays.operands(plan, inputs)
    rows = arrays.padded_rows(plan, arrays.flat(upstream))
    found = calls.gradients(plan, *arrays.scalars(plan, inputs), x, rows)
    cached, cached_count = inputs.cached, plan.layout.num_cached
    own = plan.earlier[cached_count:] - cached_count

    def positions(rows: jax.Array, tokens: jax.Array | None) -> jax.Array:
        """[B, T, N, H]; tokens are keys of their own segment and of later ones."""
        out = arrays.unpadded_rows(plan, rows)
        if tokens is not None and len(own):
            mine = tokens[:, cached_count : cached_count + len(own)].astype(out.dtype)
            out = out + arrays.at_tokens(plan, mine)
        return out.reshape(inputs.q.shape)

    def of_cached(tokens: jax.Array | None, like: Array) -> jax.Array:
        if tokens is None:
            return jnp.zeros_like(like)
        return tokens[:, :cached_count].reshape(like.shape).astype(like.dtype)

    if cached is not None:
        of_k, of_v = of_cached(found.tokens_k, cached.k), of_cached(found.tokens_v, cached.v)
        cached = Cached(of_k, of_v, _no_gradient(cached.valid))
    bias = inputs.bias
    if isinstance(bias, RelativeBias):
        _, pull = jax.vjp(functools.partial(arrays.tables, plan), bias)
        time = None if found.time is None else found.time.sum(-1)[:, None]
        (bias,) = pull((found.distance, found.age, found.parts, time))
    of_inputs = Inputs(
        q=arrays.unpadded_rows(plan, found.q).reshape(inputs.q.shape),
        k=positions(found.k, found.tokens_k),
        v=positions(found.v, found.tokens_v),
        valid=_no_gradient(inputs.valid),
        cached=cached,
        bias=bias,
    )
    return (of_inputs,)


def _no_gradient(x: Array) -> Array:
    """The gradient of integers and booleans."""
    return np.zeros(x.shape, jax.dtypes.float0)


_attention.defvjp(_attention_forward, _attention_backward)
