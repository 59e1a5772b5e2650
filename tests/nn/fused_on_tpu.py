"""Compiles the fused kernels for v5e, a program of `test_fused`: prints the kernels' names."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxrec.benchmark import aot
from jaxrec.layout import SegmentLayout
from jaxrec.nn import attention
from jaxrec.nn.attention.weights import Weighing
from tests.nn.test_fused import inputs_of

LAYOUT = SegmentLayout.stream(132, 4, 3)


def kernels(mesh, kind, dtype, users):
    """Names of the kernels of a gradient on a mesh of four chips."""
    inputs = inputs_of(LAYOUT, heads=4, width=64, users=users, dtype=dtype)
    whole = NamedSharding(mesh, PartitionSpec())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), inputs)

    def loss(q, k, v, inputs):
        inputs = inputs._replace(q=q, k=k, v=v)
        out = attention.BACKENDS["fused"](inputs, LAYOUT, Weighing(kind))
        return out.astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        text = gradient.lower(shapes.q, shapes.k, shapes.v, shapes).compile().as_text()
    return sorted(set(re.findall(r"%(segment_attention\w*)", text)))


def main():
    _, devices = aot.devices_of("v5e:2x2")
    mesh = jax.sharding.Mesh(np.reshape(devices, (4,)), ("data",), axis_types=(AxisType.Auto,))
    # four chips divide four users, not one: as when parameters are made
    cases = [("softmax", jnp.float32, 4), ("pointwise", jnp.bfloat16, 1)]
    print(json.dumps([kernels(mesh, *case) for case in cases]))


if __name__ == "__main__":
    main()
