"""Calls of the kernels for Hopper: their grids, their shared memory, and the gradient."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrec.nn.attention.hopper import kernels
from jaxrec.nn.attention.hopper.tiles import BUCKETS, TILE, Clock, Memory, Operands, Shape, Upstream
from jaxrec.types import Array

SHARED_MEMORY = 227 * 2**10  # bytes that a block of threads of a Hopper GPU may use
SWIZZLE = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))  # as products read it


def memory(width: int, dtype: Any, *, times: bool) -> dict[str, Memory]:
    """Shared memory of each kernel. width: of a head; times: whether there is a time bias."""
    row = plgpu.SMEM((TILE, width), dtype, transforms=SWIZZLE)
    square = plgpu.SMEM((TILE, TILE), dtype, transforms=SWIZZLE)
    vector = plgpu.SMEM((TILE,), jnp.float32)
    clock = Clock(*[plgpu.SMEM((TILE,), jnp.int32)] * 2) if times else None

    def of(needs: str, once: int, step: int) -> Memory:
        """once, step: how many copies arrive."""
        there = {
            **dict.fromkeys(("q", "k", "v", "above", "out"), row),
            **dict.fromkeys(("weights", "gradients"), square),
            **dict.fromkeys(("seen", "total", "mean"), vector),
            "bias": plgpu.SMEM((TILE, TILE), jnp.float32),
            "by_bucket": plgpu.SMEM((BUCKETS, TILE), jnp.float32),
        }
        fields: dict[str, Any] = dict.fromkeys(Memory._fields)
        fields |= {name: there[name] for name in needs.split()}
        fields |= {"once": plgpu.Barrier(num_arrivals=once), "clock": clock}
        return Memory(**fields | {"step": plgpu.Barrier(num_arrivals=step)})

    one = int(times)  # a copy of times comes with queries, and one with keys
    common = "q k v bias seen total"
    backward = f"{common} mean above"
    return {
        "forward": of(f"{common} out weights", 1 + one, 4 + one),
        "of_queries": of(f"{backward} out gradients", 4 + one, 4 + one),
        "of_keys": of(f"{backward} out weights gradients", 3 + one, 5 + one),
        "of_bias": of(f"{backward} by_bucket" if times else backward, 1, 7 + 2 * one),
    }


def shared_memory(width: int, *, times: bool) -> dict[str, int]:
    """Bytes of shared memory of each kernel, without its two barriers of eight bytes."""

    def size(part: Any) -> int:
        return math.prod(part.shape) * jnp.dtype(part.dtype).itemsize

    return {
        name: sum(size(part) for part in jax.tree.leaves(parts[:-2]))
        for name, parts in memory(width, jnp.bfloat16, times=times).items()
    }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attention(shape: Shape, interpret: Any, x: Operands) -> jax.Array:
    """[G, N, P, H] of folded segments. interpret: parameters of Pallas' interpreter, or None."""
    return _forward(shape, interpret, x)[0]


def _call(
    name: str,
    compute: Callable[..., None],
    grid: dict[str, int],
    out: list[jax.ShapeDtypeStruct],
    given: Any,
    interpret: Any,
) -> Any:
    """Results of `compute(given, results, memory)`, all in the GPU's memory."""
    x = given[0]
    leaves, structure = jax.tree.flatten(given)
    parts, of_memory = jax.tree.flatten(
        memory(x.q.shape[-1], x.q.dtype, times=x.times is not None)[name]
    )

    def body(*refs: Any) -> None:
        *mine, scratch = refs
        inside = jax.tree.unflatten(structure, mine[: len(leaves)])
        compute(inside, tuple(mine[len(leaves) :]), jax.tree.unflatten(of_memory, scratch))

    return plgpu.kernel(
        body,
        out_type=out,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        scratch_types=[tuple(parts)],
        kernel_name=f"segment_attention_{name}",
        **({} if interpret is None else {"interpret": interpret}),
    )(*leaves)


def _forward(shape: Shape, interpret: Any, x: Operands) -> tuple[jax.Array, jax.Array]:
    """The output and the logarithms of totals, float32 [G, N, P] (HIDDEN for `pointwise`)."""
    count, heads, length, _ = x.q.shape

    def compute(given: tuple[Operands], results: Any, memory: Memory) -> None:
        out, total = results
        kernels.forward(shape, given[0], out, total, memory)

    grid = {"tile": length // TILE, "head": heads, "row": count}
    like = [_like(x.q), jax.ShapeDtypeStruct(x.q.shape[:3], jnp.float32)]
    out, total = _call("forward", compute, grid, like, (x,), interpret)
    return out, total


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _attention_forward(shape: Shape, interpret: Any, x: Operands) -> tuple[jax.Array, Any]:
    out, total = _forward(shape, interpret, x)
    return out, (x, out, total)


def _attention_backward(
    shape: Shape, interpret: Any, kept: tuple[Operands, jax.Array, jax.Array], upstream: jax.Array
) -> tuple[Operands]:
    x, out, total = kept
    mean = jnp.sum(upstream.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    above = Upstream(upstream.astype(x.q.dtype), total, mean)
    count, heads, length, _ = x.q.shape
    queries, keys = length // TILE, x.k.shape[2] // TILE

    def call(name: str, x: Operands, grid: dict[str, int], out: list[jax.ShapeDtypeStruct]) -> Any:
        def compute(given: tuple[Operands, Upstream], results: Any, memory: Memory) -> None:
            getattr(kernels, name)(shape, *given, results, memory)

        return _call(name, compute, grid, out, (x, above), interpret)

    rows = {"head": heads, "row": count}
    turned = x._replace(bias=jnp.swapaxes(x.bias, 2, 3))
    (of_q,) = call("of_queries", x, {"tile": queries, **rows}, [_like(x.q)])
    of_k, of_v = call("of_keys", turned, {"tile": keys, **rows}, [_like(x.k), _like(x.v)])
    grid = {"key": keys, "query": queries, "head": heads, "segment": shape.segments}
    like = [_like(x.bias)]
    if x.times is not None:
        buckets = (heads, shape.segments, queries, keys, BUCKETS, TILE)
        like.append(jax.ShapeDtypeStruct(buckets, jnp.float32))
    there = np.zeros(x.there.shape, jax.dtypes.float0)
    of_bias, *by_bucket = call("of_bias", x, grid, like)
    times = x.times
    if times is not None:
        none: dict[str, Any] = {
            name: np.zeros(a.shape, jax.dtypes.float0) for name, a in times._asdict().items()
        }
        none |= {"starts": jnp.zeros_like(times.starts)}
        times = times._replace(**none | {"table": by_bucket[0].sum((1, 2, 3, 5))})
    return (Operands(of_q, of_k, of_v, jnp.zeros_like(x.seen), of_bias, there, times),)


attention.defvjp(_attention_forward, _attention_backward)
