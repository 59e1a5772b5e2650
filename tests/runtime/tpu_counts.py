"""Compiles small programs with the TPU's compiler and prints what is counted of them, as JSON.

A program of its own: where `libtpu` is loaded, the profiler of later tests does not start.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrec.benchmark import aot
from jaxrec.runtime import hlo_cost, plan

TURNS, ROWS, WIDTH = 5, 2**16, 2**11  # 256 MiB of activations: more than fast memory holds
DECLARED = {"flops": 10**12, "bytes_accessed": 10**9, "transcendentals": 3}
TOPOLOGIES = ("v5e:4x4", "v5p:2x2x1", "v6e:4x4")


def layer(x, w):
    """Two products, so that the loop's carry can be written where it was read."""
    return jnp.tanh(jnp.tanh(x @ w) @ w)


def looped(x, w):
    return jax.lax.fori_loop(0, TURNS, lambda _, x: layer(x, w), x)


def unrolled(x, w):
    for _ in range(TURNS):
        x = layer(x, w)
    return x


def double(x, out):
    out[...] = 2 * x[...]


def kernels(x):
    block = pl.BlockSpec((128, 256), lambda i: (i, 0))
    kernel = pl.pallas_call(
        double,
        out_shape=jax.ShapeDtypeStruct((256, 256), jnp.float32),
        grid=(2,),
        in_specs=[block],
        out_specs=block,
        cost_estimate=pl.CostEstimate(**DECLARED),
    )
    return jax.lax.fori_loop(0, TURNS, lambda _, x: jnp.sin(kernel(x)), x)


def count(function, dtype, *shapes):
    _, devices = aot.devices_of("v5e:2x2")
    sharding = NamedSharding(Mesh(np.array(devices[:1]), ("data",)), P())
    given = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape in shapes]
    # donated: a loop would copy its first argument before it changes it
    compiled = jax.jit(function, donate_argnums=0).lower(*given).compile()
    found = hlo_cost.count(compiled.as_text())
    return {
        "bytes": found.bytes,
        "flops": found.flops,
        "assumed": found.assumed,
        "heaviest": plan.heaviest_operations(found)[0],
    }


def main():
    shapes = (ROWS, WIDTH), (WIDTH, WIDTH)
    found = {
        "looped": count(looped, jnp.bfloat16, *shapes),
        "unrolled": count(unrolled, jnp.bfloat16, *shapes),
        "kernels": count(kernels, jnp.float32, (256, 256)),
        "devices": {
            name: [aot.devices_of(name)[0], len(aot.devices_of(name)[1])] for name in TOPOLOGIES
        },
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
