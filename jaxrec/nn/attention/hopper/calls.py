"""Calls of the kernels for Hopper: their grids, their shared memory, and the gradient."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrec.nn.attention.hopper import kernels
from jaxrec.nn.attention.hopper.kernels import TILE, Inputs, Shape, Upstream
from jaxrec.types import Array

SHARED_MEMORY = 227 * 2**10  # bytes that a block of threads of a Hopper GPU may use
SWIZZLE = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))  # as products read it


def memory(width: int, dtype: Any) -> dict[str, tuple[Any, ...]]:
    """Shared memory of each kernel, in the order in which it names it. width: of a head."""
    wide = plgpu.SMEM((TILE, width), dtype, transforms=SWIZZLE)  # rows
    narrow = plgpu.SMEM((TILE, TILE), dtype, transforms=SWIZZLE)  # weights, for a product
    pairs = plgpu.SMEM((TILE, TILE), jnp.float32)
    vector = plgpu.SMEM((TILE,), jnp.float32)

    def arrivals(once: int, step: int) -> tuple[Any, Any]:
        """Where the first copies arrive, and those of a step."""
        return plgpu.Barrier(num_arrivals=once), plgpu.Barrier(num_arrivals=step)

    return {
        "forward": (*[wide] * 4, narrow, pairs, vector, vector, arrivals(1, 4)),
        "of_queries": (*[wide] * 5, narrow, pairs, *[vector] * 3, arrivals(4, 4)),
        "of_keys": (*[wide] * 5, narrow, narrow, pairs, *[vector] * 3, arrivals(3, 5)),
        "of_bias": (*[wide] * 4, pairs, *[vector] * 3, arrivals(1, 7)),
    }


def shared_memory(width: int) -> dict[str, int]:
    """Bytes of shared memory of each kernel."""
    return {
        name: sum(
            math.prod(part.shape) * jnp.dtype(part.dtype).itemsize
            for part in parts[:-1]  # barriers have 8 bytes each
        )
        for name, parts in memory(width, jnp.bfloat16).items()
    }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attention(shape: Shape, interpret: Any, x: Inputs) -> jax.Array:
    """[G, N, P, H] of folded segments. interpret: parameters of Pallas' interpreter, or None."""
    return _forward(shape, interpret, x)[0]


def _call(
    name: str, body: Callable[..., None], grid: dict[str, int], out: Any, x: Inputs, interpret: Any
) -> Callable[..., Any]:
    return plgpu.kernel(
        body,
        out_type=out,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        scratch_types=[memory(x.q.shape[-1], x.q.dtype)[name]],
        kernel_name=f"segment_attention_{name}",
        **({} if interpret is None else {"interpret": interpret}),
    )


def _forward(shape: Shape, interpret: Any, x: Inputs) -> tuple[jax.Array, jax.Array]:
    """The output and the logarithms of totals, float32 [G, N, P] (HIDDEN for `pointwise`)."""
    count, heads, length, _ = x.q.shape

    def body(*refs: Any) -> None:
        *given, out, total, memory = refs
        kernels.forward(shape, Inputs(*given), out, total, memory)

    grid = {"tile": length // TILE, "head": heads, "row": count}
    like = [_like(x.q), jax.ShapeDtypeStruct(x.q.shape[:3], jnp.float32)]
    out, total = _call("forward", body, grid, like, x, interpret)(*x)
    return out, total


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _attention_forward(shape: Shape, interpret: Any, x: Inputs) -> tuple[jax.Array, Any]:
    out, total = _forward(shape, interpret, x)
    return out, (x, out, total)


def _attention_backward(
    shape: Shape, interpret: Any, kept: tuple[Inputs, jax.Array, jax.Array], upstream: jax.Array
) -> tuple[Inputs]:
    x, out, total = kept
    mean = jnp.sum(upstream.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    above = Upstream(upstream.astype(x.q.dtype), total, mean)
    count, heads, length, _ = x.q.shape
    queries, keys = length // TILE, x.k.shape[2] // TILE

    def call(name: str, x: Inputs, grid: dict[str, int], out: list[jax.ShapeDtypeStruct]) -> Any:
        def body(*refs: Any) -> None:
            given, rest = refs[: len(x)], refs[len(x) :]
            outs, memory = rest[len(above) : -1], rest[-1]
            kernel = getattr(kernels, name)
            kernel(shape, Inputs(*given), Upstream(*rest[: len(above)]), outs, memory)

        return _call(name, body, grid, out, x, interpret)(*x, *above)

    rows = {"head": heads, "row": count}
    turned = x._replace(bias=jnp.swapaxes(x.bias, 2, 3))
    (of_q,) = call("of_queries", x, {"tile": queries, **rows}, [_like(x.q)])
    of_k, of_v = call("of_keys", turned, {"tile": keys, **rows}, [_like(x.k), _like(x.v)])
    grid = {"key": keys, "query": queries, "head": heads, "segment": shape.segments}
    (of_bias,) = call("of_bias", x, grid, [_like(x.bias)])
    return (Inputs(of_q, of_k, of_v, jnp.zeros_like(x.seen), of_bias),)


attention.defvjp(_attention_forward, _attention_backward)
