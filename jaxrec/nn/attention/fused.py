"""Attention by segments in one kernel on TPU: logits, masks and biases stay in fast memory.

q, k and v are read once and the output is written once; the backward pass computes the weights
again. Where there is no kernel for a call (`unfit`), `blocked` computes the same.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from jaxrec.layout import SegmentLayout
from jaxrec.nn.attention import fused_kernels
from jaxrec.nn.attention.fused_kernels import Operands
from jaxrec.nn.attention.fused_plan import FAST_MEMORY, LANES, KernelRun, Plan
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
    return _over_users(functools.partial(_attention, plan), inputs)


def plan_of(inputs: Inputs, layout: SegmentLayout, weigh: Weigh, interpret: bool = False) -> Plan:
    """The kernels' plan of a call."""
    assert isinstance(weigh, Weighing)
    _, _, heads, width = inputs.q.shape
    return Plan(layout, weigh.kind, weigh.normalizer, heads, width, interpret)


def unfit(inputs: Inputs, layout: SegmentLayout, weigh: Weigh, platform: str) -> str | None:
    """Why there is no kernel for a call; None: there is one."""
    if platform != "tpu":
        return f"kernels are for TPU, this is {platform}"
    if layout.view.structure != "segments":
        return "visible pairs do not lie in segments"
    if not isinstance(weigh, Weighing):
        return "these weights have no kernel"
    if not isinstance(inputs.bias, RelativeBias | None):
        return f"a {type(inputs.bias).__name__} has no kernel"
    if inputs.v.shape != inputs.k.shape:
        return "values and keys differ in width"
    if inputs.q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"numbers are {inputs.q.dtype}"
    plan = plan_of(inputs, layout, weigh)
    x = jax.eval_shape(functools.partial(operands, plan), inputs)
    need = fused_kernels.fast_memory(plan, x, backward=True)
    if need > FAST_MEMORY:
        return f"a row needs {need / 2**20:.0f} MiB of fast memory, {FAST_MEMORY >> 20} are there"
    return None


def platform() -> str:
    """What the program is compiled for: a mesh's devices need not be of this machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return getattr(device, "platform", None) or jax.default_backend()


@functools.cache
def say_once(reason: str) -> None:
    """Says that `blocked` is used, and why."""
    print(f"model.attention=fused: blocked is used, {reason}", flush=True)


def _over_users(compute: Any, inputs: Inputs) -> jax.Array:
    """`compute(inputs)`, users split over the mesh of `jax.set_mesh`.

    The compiler cannot split a kernel by itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    automatic = not mesh.empty and all(kind == AxisType.Auto for kind in mesh.axis_types)
    if not automatic or mesh.size == 1 or len(inputs.q) % mesh.size:
        return compute(inputs)
    users = PartitionSpec(mesh.axis_names)
    specs = jax.tree.map(lambda _: users, inputs)
    if isinstance(specs.bias, RelativeBias):
        specs = specs._replace(bias=specs.bias.with_tables(PartitionSpec()))
    # check_vma: kernels do not say over which axes their results vary
    return jax.shard_map(compute, in_specs=(specs,), out_specs=users, check_vma=False)(inputs)


# -- one device --------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: Plan, inputs: Inputs) -> jax.Array:
    rows = fused_kernels.output(plan, *_scalars(plan, inputs), operands(plan, inputs))
    return _unpadded(plan, rows).reshape(inputs.v.shape)


def _attention_forward(plan: Plan, inputs: Inputs) -> tuple[jax.Array, Inputs]:
    return _attention(plan, inputs), inputs


def _attention_backward(plan: Plan, inputs: Inputs, upstream: jax.Array) -> tuple[Inputs]:
    x = operands(plan, inputs)
    rows = _padded(plan, _flat(upstream))
    found = fused_kernels.gradients(plan, *_scalars(plan, inputs), x, rows)
    cached, cached_count = inputs.cached, plan.layout.num_cached
    own = plan.earlier[cached_count:] - cached_count

    def positions(rows: jax.Array, tokens: jax.Array | None) -> jax.Array:
        """[B, T, N, H]; tokens are keys of their own segment and of later ones."""
        out = _unpadded(plan, rows)
        if tokens is not None and len(own):
            mine = tokens[:, cached_count : cached_count + len(own)].astype(out.dtype)
            out = out + _at_tokens(plan, mine)
        return out.reshape(inputs.q.shape)

    def of_cached(tokens: jax.Array | None, like: Array) -> jax.Array:
        if tokens is None:
            return jnp.zeros_like(like)
        return tokens[:, :cached_count].reshape(like.shape).astype(like.dtype)

    if cached is not None:
        cached = Cached(
            of_cached(found.tokens_k, cached.k), of_cached(found.tokens_v, cached.v), None
        )
    bias = inputs.bias
    if isinstance(bias, RelativeBias):
        _, pull = jax.vjp(functools.partial(_tables, plan), bias)
        time = None if found.time is None else found.time.sum(-1)[:, None]
        (bias,) = pull((found.distance, found.age, time))
    of_inputs = Inputs(
        q=_unpadded(plan, found.q).reshape(inputs.q.shape),
        k=positions(found.k, found.tokens_k),
        v=positions(found.v, found.tokens_v),
        valid=None,
        cached=cached,
        bias=bias,
    )
    return (of_inputs,)


_attention.defvjp(_attention_forward, _attention_backward)


# -- arrays as the kernels want them -----------------------------------------------------------


def _flat(x: Array) -> jax.Array:
    """[B, T, N, H] -> [B, T, N H]."""
    return jnp.asarray(x).reshape(*x.shape[:2], -1)


def _segments(plan: Plan, x: Array, rows: Callable[[KernelRun], int]) -> list[jax.Array]:
    """[B, T, ...] as [B, s, rows, ...] of every run, filled up with zeros."""
    out, start = [], 0
    for run in plan.runs:
        stop = start + run.count * run.length
        part = jnp.reshape(x[:, start:stop], (len(x), run.count, run.length, *x.shape[2:]))
        more = [(0, 0), (0, 0), (0, rows(run) - run.length)] + [(0, 0)] * (x.ndim - 2)
        out.append(jnp.pad(part, more))
        start = stop
    return out


def _padded(plan: Plan, x: jax.Array) -> jax.Array:
    """[B, T, D] -> [B, R, D]: segments begin at multiples of a register's rows."""
    if plan.rows == plan.layout.length:
        return x
    parts = _segments(plan, x, lambda run: run.rows)
    return jnp.concatenate([p.reshape(len(x), -1, x.shape[-1]) for p in parts], axis=1)


def _unpadded(plan: Plan, x: jax.Array) -> jax.Array:
    """[B, R, D] -> [B, T, D]."""
    if plan.rows == plan.layout.length:
        return x
    parts = []
    for run in plan.runs:
        part = x[:, run.start : run.start + run.count * run.rows]
        part = part.reshape(len(x), run.count, run.rows, -1)[:, :, : run.length]
        parts.append(part.reshape(len(x), -1, x.shape[-1]))
    return jnp.concatenate(parts, axis=1)


def _at_tokens(plan: Plan, x: jax.Array) -> jax.Array:
    """[B, T, D], 0 but for the layout's first tokens, x [B, c, D].

    A sum with it is part of what follows; a scatter would be a pass over memory of its own.
    """
    x = jnp.pad(x, ((0, 0), (0, plan.layout.num_tokens - x.shape[1]), (0, 0)))
    parts, start = [], 0
    for run in plan.layout.runs():
        stop = start + run.count * run.tokens
        part = x[:, start:stop].reshape(len(x), run.count, run.tokens, x.shape[-1])
        part = jnp.pad(part, ((0, 0), (0, 0), (run.items, 0), (0, 0)))
        parts.append(part.reshape(len(x), run.count * run.length, x.shape[-1]))
        start = stop
    return jnp.concatenate(parts, axis=1)


def _scalars(plan: Plan, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """int32 [B S] rows of each segment up to the last that exists, [2 S] ranges of tokens."""
    there = _segments(plan, inputs.valid, lambda run: run.length)
    last = [(part * np.arange(1, part.shape[2] + 1)[None, None]).max(2) for part in there]
    return (
        jnp.concatenate(last, axis=1).astype(jnp.int32).reshape(-1),
        jnp.asarray(plan.ranges.reshape(-1)),
    )


def _tables(plan: Plan, bias: RelativeBias) -> tuple[jax.Array | None, ...]:
    """Tables of the bias by block of pairs, by segment and token, by lane."""
    distance = age = time = None
    if bias.distance is not None:
        distance = bias.by_distance(plan.lanes // LANES, LANES)
    if bias.age is not None and plan.token_lanes:
        age = bias.by_age(np.arange(plan.segments), plan.earlier)
        age = jnp.pad(age, ((0, 0), (0, 0), (0, plan.token_lanes - age.shape[2])))
    if bias.time is not None:
        time = bias.time[:LANES].T[:, None]
    return distance, age, time


def operands(plan: Plan, inputs: Inputs) -> Operands:
    """What the kernels read."""
    q, k, v, valid, cached, bias = inputs
    bias = cast(RelativeBias | None, bias)
    count = plan.layout.num_cached
    query_times = key_times = jnp.zeros(valid.shape, jnp.int32)
    tokens_times = jnp.zeros((len(q), len(plan.earlier)), jnp.int32)
    distance = age = time = None
    if bias is not None:
        distance, age, time = _tables(plan, bias)
        if time is not None:
            query_times, key_times = bias.query_times, bias.key_times[:, count:]
            tokens_times = bias.key_times[:, plan.earlier]
    rows = [query_times, key_times, valid, valid]
    info = [
        jnp.concatenate(_segments(plan, x.astype(jnp.int32), lambda _: plan.lanes), axis=1)
        for x in rows
    ]
    x = Operands(
        q=_padded(plan, _flat(q)),
        k=_padded(plan, _flat(k)),
        v=_padded(plan, _flat(v)),
        info=jnp.stack(info, axis=2),
        distance=distance,
        age=age,
        time=time,
    )
    if not plan.token_lanes:
        return x

    def tokens(x: Array, before: Array | None) -> jax.Array:
        own = x[:, plan.earlier[count:] - count]
        found = own if before is None else jnp.concatenate([before, own], axis=1)
        more = plan.token_lanes - found.shape[1]
        return jnp.pad(found, [(0, 0), (0, more)] + [(0, 0)] * (found.ndim - 2))

    none = (None, None, None)
    cached_k, cached_v, cached_valid = none if cached is None else cached
    exists = tokens(valid, cached_valid).astype(jnp.int32)
    times = jnp.pad(tokens_times, ((0, 0), (0, plan.token_lanes - len(plan.earlier))))
    return x._replace(
        tokens_k=_flat(tokens(k, cached_k)),
        tokens_v=_flat(tokens(v, cached_v)),
        tokens_info=jnp.stack([times, exists], axis=1),
    )
