"""Arrays as the fused kernels want them: rows of users, tables of the bias, integers."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.nn.attention.fused.plan import LANES, KernelRun, Plan
from jaxrec.nn.attention.interface import Inputs
from jaxrec.nn.bias import RelativeBias
from jaxrec.types import Array


class Operands(NamedTuple):
    """Arrays of a kernel; users B, rows R, segments S, lanes W of keys and C of tokens.

    q, k, v: [B, R, N H]. tokens_k, tokens_v: [B, C, N H]. info: int32 [B, S, 4, W], query times,
    key times, and whether the key exists. tokens_info: int32 [B, 2, C], times and existence.
    distance: float32 [N, W / 128, 128, 128], see `RelativeBias.by_distance`; age: float32
    [N, S, C]; parts: float32 [N, S, P, C], P rows of the longest segment; time: float32
    [N, 1, 128].
    None: there are none.
    """

    q: Any
    k: Any
    v: Any
    info: Any
    tokens_k: Any = None
    tokens_v: Any = None
    tokens_info: Any = None
    distance: Any = None
    age: Any = None
    parts: Any = None
    time: Any = None


class Gradients(NamedTuple):
    """Of the operands of the same names; `time` per bucket and lane, [N, 128, 128]."""

    q: Any
    k: Any
    v: Any
    tokens_k: Any = None
    tokens_v: Any = None
    distance: Any = None
    age: Any = None
    parts: Any = None
    time: Any = None


def flat(x: Array) -> jax.Array:
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


def padded_rows(plan: Plan, x: jax.Array) -> jax.Array:
    """[B, T, D] -> [B, R, D]: segments begin at multiples of a register's rows."""
    if plan.rows == plan.layout.length:
        return x
    parts = _segments(plan, x, lambda run: run.rows)
    return jnp.concatenate([p.reshape(len(x), -1, x.shape[-1]) for p in parts], axis=1)


def unpadded_rows(plan: Plan, x: jax.Array) -> jax.Array:
    """[B, R, D] -> [B, T, D]."""
    if plan.rows == plan.layout.length:
        return x
    parts = []
    for run in plan.runs:
        part = x[:, run.start : run.start + run.count * run.rows]
        part = part.reshape(len(x), run.count, run.rows, -1)[:, :, : run.length]
        parts.append(part.reshape(len(x), -1, x.shape[-1]))
    return jnp.concatenate(parts, axis=1)


def at_tokens(plan: Plan, x: jax.Array) -> jax.Array:
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


def scalars(plan: Plan, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """int32 [B S] rows of each segment up to the last that exists, [2 S] ranges of tokens."""
    there = _segments(plan, inputs.valid, lambda run: run.length)
    last = [(part * np.arange(1, part.shape[2] + 1)[None, None]).max(2) for part in there]
    return (
        jnp.concatenate(last, axis=1).astype(jnp.int32).reshape(-1),
        jnp.asarray(plan.ranges.reshape(-1)),
    )


def tables(plan: Plan, bias: RelativeBias) -> tuple[jax.Array | None, ...]:
    """Tables of the bias, float32: by block of pairs, segment and token, those and row, lane."""
    wide = {
        name: getattr(bias, name).astype(jnp.float32)
        for name in ("distance", "age", "parts", "time")
        if getattr(bias, name) is not None
    }
    bias = dataclasses.replace(bias, **wide)
    distance = age = parts = time = None
    if bias.distance is not None:
        distance = bias.by_distance(plan.lanes // LANES, LANES)
    if bias.age is not None and plan.token_lanes:
        age = _token_lanes(plan, bias.by_age(np.arange(plan.segments), plan.earlier))
    if bias.parts is not None and plan.token_lanes:
        found = bias.by_part(np.arange(plan.segments), plan.earlier, plan.segment_rows)
        parts = _token_lanes(plan, found)
    if bias.time is not None:
        time = bias.time[:LANES].T[:, None]
    return distance, age, parts, time


def _token_lanes(plan: Plan, x: Array) -> jax.Array:
    """[..., K] -> [..., C], filled up with zeros."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, plan.token_lanes - x.shape[-1])])


def operands(plan: Plan, inputs: Inputs) -> Operands:
    """What the kernels read."""
    q, k, v, valid, cached, bias = inputs
    bias = cast(RelativeBias | None, bias)
    count = plan.layout.num_cached
    query_times: Array
    key_times: Array
    tokens_times: Array
    query_times = key_times = jnp.zeros(valid.shape, jnp.int32)
    tokens_times = jnp.zeros((len(q), len(plan.earlier)), jnp.int32)
    distance = age = parts = time = None
    if bias is not None:
        distance, age, parts, time = tables(plan, bias)
        if time is not None:
            query_times, key_times = bias.query_times, bias.key_times[:, count:]
            tokens_times = bias.key_times[:, plan.earlier]
    rows = [query_times, key_times, valid, valid]
    info = [
        jnp.concatenate(_segments(plan, x.astype(jnp.int32), lambda _: plan.lanes), axis=1)
        for x in rows
    ]
    x = Operands(
        q=padded_rows(plan, flat(q)),
        k=padded_rows(plan, flat(k)),
        v=padded_rows(plan, flat(v)),
        info=jnp.stack(info, axis=2),
        distance=distance,
        age=age,
        parts=parts,
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
    times = _token_lanes(plan, tokens_times)
    return x._replace(
        tokens_k=flat(tokens(k, cached_k)),
        tokens_v=flat(tokens(v, cached_v)),
        tokens_info=jnp.stack([times, exists], axis=1),
    )
