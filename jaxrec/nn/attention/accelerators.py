"""What the kernels of all accelerators have in common: where they run, what they cannot compute."""

import functools
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from jaxrec.layout import SegmentLayout
from jaxrec.nn.attention.interface import Inputs
from jaxrec.nn.attention.weights import Weigh, Weighing
from jaxrec.nn.bias import RelativeBias
from jaxrec.runtime.mesh import axes_of_users


def platform() -> str:
    """What the program is compiled for: a mesh's devices need not be of this machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return getattr(device, "platform", None) or jax.default_backend()


@functools.cache
def say_once(reason: str) -> None:
    """Says that `blocked` is used, and why."""
    print(f"model.attention=fused: blocked is used, {reason}", flush=True)


def unfit(inputs: Inputs, layout: SegmentLayout, weigh: Weigh) -> str | None:
    """Why no kernel computes a call; None: there may be one."""
    if layout.view.structure != "segments":
        return "visible pairs do not lie in segments"
    if not isinstance(weigh, Weighing):
        return "these weights have no kernel"
    if not isinstance(inputs.bias, RelativeBias | None):
        return f"a {type(inputs.bias).__name__} has no kernel"
    if inputs.v.shape != inputs.k.shape:
        return "values and keys differ in width"
    return None


def over_users(compute: Callable[[Inputs], jax.Array], inputs: Inputs) -> jax.Array:
    """`compute(inputs)`, users split over the mesh of `jax.set_mesh`; all of them on every device
    where the devices do not divide them.

    The compiler cannot split a kernel by itself, and refuses one that is not told how.
    """
    if not axes_of_users(0):
        return compute(inputs)
    users = PartitionSpec(axes_of_users(len(inputs.q)))
    specs = jax.tree.map(lambda _: users, inputs)
    if isinstance(specs.bias, RelativeBias):
        specs = specs._replace(bias=specs.bias.with_tables(PartitionSpec()))
    # check_vma: kernels do not say over which axes their results vary
    return jax.shard_map(compute, in_specs=(specs,), out_specs=users, check_vma=False)(inputs)
