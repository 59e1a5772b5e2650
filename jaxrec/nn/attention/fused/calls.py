"""Calls of the fused kernels: their blocks, what they cost and what they need.

A program is (group of heads, user); users follow each other, so that gradients of tables add up.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxrec.nn.attention.fused.arrays import Gradients, Operands
from jaxrec.nn.attention.fused.kernels import Sums, backward, forward
from jaxrec.nn.attention.fused.plan import (
    BUCKETS,
    CHUNK,
    FAST_MEMORY,
    INFO,
    LANES,
    ROWS,
    TOKENS_INFO,
    Plan,
    padded,
)


def specs(plan: Plan) -> dict[str, pl.BlockSpec]:
    """Blocks of operands and gradients by name; a program is (group of heads, user)."""
    segments, width, group, tokens = (
        plan.segments,
        plan.width,
        plan.group,
        plan.token_lanes,
    )
    return {
        "row": pl.BlockSpec((1, plan.rows, width), lambda g, b, *_: (b, 0, g)),
        "tokens": pl.BlockSpec((1, tokens, width), lambda g, b, *_: (b, 0, g)),
        "info": pl.BlockSpec((1, segments, INFO, plan.lanes), lambda g, b, *_: (b, 0, 0, 0)),
        "tokens_info": pl.BlockSpec((1, TOKENS_INFO, tokens), lambda g, b, *_: (b, 0, 0)),
        "distance": pl.BlockSpec(
            (group, plan.lanes // LANES, CHUNK, LANES), lambda g, b, *_: (g, 0, 0, 0)
        ),
        "age": pl.BlockSpec((group, segments, tokens), lambda g, b, *_: (g, 0, 0)),
        "parts": pl.BlockSpec(
            (group, segments, plan.segment_rows, tokens), lambda g, b, *_: (g, 0, 0, 0)
        ),
        "time": pl.BlockSpec((group, 1, BUCKETS), lambda g, b, *_: (g, 0, 0)),
        "time_gradient": pl.BlockSpec((group, BUCKETS, LANES), lambda g, b, *_: (g, 0, 0)),
    }


def operand_specs(plan: Plan, x: Operands) -> Operands:
    """Blocks of the operands that there are."""
    block = specs(plan)
    row, tokens = block["row"], block["tokens"]
    named = Operands(
        row,
        row,
        row,
        block["info"],
        tokens,
        tokens,
        block["tokens_info"],
        block["distance"],
        block["age"],
        block["parts"],
        block["time"],
    )
    return Operands(*(None if a is None else spec for a, spec in zip(x, named, strict=True)))


def gradient_shapes(plan: Plan, x: Operands) -> tuple[Gradients, Gradients]:
    """Shapes and blocks of the gradients of these operands."""
    block = specs(plan)
    row, tokens = block["row"], block["tokens"]
    tables = (block[name] for name in ("distance", "age", "parts", "time_gradient"))
    blocks = Gradients(row, row, row, tokens, tokens, *tables)

    def shape(name: str) -> jax.ShapeDtypeStruct | None:
        value = getattr(x, name)
        if value is None:
            return None
        if name == "time":
            return jax.ShapeDtypeStruct((plan.heads, BUCKETS, LANES), jnp.float32)
        dtype = value.dtype if name in ("q", "k", "v") else jnp.float32
        return jax.ShapeDtypeStruct(value.shape, dtype)

    shapes = Gradients(*(shape(name) for name in Gradients._fields))
    return shapes, Gradients(
        *(None if s is None else b for s, b in zip(shapes, blocks, strict=True))
    )


def _parameters(plan: Plan) -> dict[str, Any]:
    if plan.interpret:
        return {"interpret": True}
    # programs of a group of heads add up gradients of its tables: in turn
    return {
        "compiler_params": pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=FAST_MEMORY
        )
    }


def _grid(plan: Plan, users: int, **kwargs: Any) -> pltpu.PrefetchScalarGridSpec:
    return pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2, grid=(plan.heads // plan.group, users), **kwargs
    )


def output(plan: Plan, last: jax.Array, ranges: jax.Array, x: Operands) -> jax.Array:
    """[B, R, N H] attention output; see `forward`."""
    return pl.pallas_call(
        functools.partial(forward, plan),
        grid_spec=_grid(
            plan,
            len(x.q),
            in_specs=[operand_specs(plan, x)],
            out_specs=specs(plan)["row"],
        ),
        out_shape=jax.ShapeDtypeStruct(x.q.shape, x.q.dtype),
        cost_estimate=cost(plan, x, backward=False),
        name="segment_attention",
        **_parameters(plan),
    )(last, ranges, x)


def gradients(
    plan: Plan, last: jax.Array, ranges: jax.Array, x: Operands, upstream: jax.Array
) -> Gradients:
    """Gradients of the operands; see `backward`."""
    shapes, blocks = gradient_shapes(plan, x)
    scratch = pltpu.VMEM((plan.segment_rows, plan.width), jnp.float32)
    (found,) = pl.pallas_call(
        functools.partial(backward, plan),
        grid_spec=_grid(
            plan,
            len(x.q),
            in_specs=[operand_specs(plan, x), specs(plan)["row"]],
            out_specs=[blocks],
            scratch_shapes=[Sums(scratch, scratch)],
        ),
        out_shape=[shapes],
        cost_estimate=cost(plan, x, backward=True),
        name="segment_attention_gradients",
        **_parameters(plan),
    )(last, ranges, x, upstream)
    return found


def _moved(blocks: Any, arrays: Any, groups: int, users: int) -> int:
    """Bytes between slow and fast memory: a block moves when its place changes."""
    total = 0
    for block, array in zip(jax.tree.leaves(blocks), jax.tree.leaves(arrays), strict=True):
        by_user = block.index_map(0, 0) != block.index_map(0, 1)
        times = groups * (users if by_user else 1)
        total += times * math.prod(block.block_shape) * array.dtype.itemsize
    return total


def cost(plan: Plan, x: Operands, *, backward: bool) -> pl.CostEstimate:
    """What a call costs when no segment is skipped."""
    users, groups = len(x.q), plan.heads // plan.group
    products, transcendentals = (5 + 2, 1) if backward else (2, 1)
    moved = _moved(operand_specs(plan, x), x, groups, users)
    if backward:
        shapes, blocks = gradient_shapes(plan, x)
        moved += _moved([blocks, specs(plan)["row"]], [shapes, x.q], groups, users)
    else:
        moved += _moved(specs(plan)["row"], x.q, groups, users)
    pairs = users * plan.pairs
    return pl.CostEstimate(
        flops=plan.flops(users, products),
        bytes_accessed=moved,
        transcendentals=pairs
        * (plan.heads * transcendentals + (groups if x.time is not None else 0)),
    )


def fast_memory(plan: Plan, x: Operands, *, backward: bool) -> int:
    """Bytes of fast memory: two buffers of every block, sums of a segment, a chunk's arrays."""
    blocks: list[Any] = [operand_specs(plan, x)]
    arrays: list[Any] = [x]
    if backward:
        shapes, of_gradients = gradient_shapes(plan, x)
        blocks += [of_gradients, specs(plan)["row"]]
        arrays += [shapes, x.q]
    else:
        blocks.append(specs(plan)["row"])
        arrays.append(x.q)
    total = 0
    for block, array in zip(jax.tree.leaves(blocks), jax.tree.leaves(arrays), strict=True):
        *leading, rows, lanes = block.block_shape
        tile = 4 // array.dtype.itemsize * ROWS
        size = math.prod(leading) * padded(rows, tile) * padded(lanes, LANES)
        total += 2 * size * array.dtype.itemsize
    sums = 2 * 4 * plan.segment_rows * padded(plan.width, LANES) if backward else 0
    return total + sums + plan.temporaries(backward)
