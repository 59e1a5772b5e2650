"""The device mesh and where every array lives on it.

Two axes: `data` (the batch) and `model` (rows of item tables). What is split over which axis
is said once, in `LOGICAL_AXES` and `PARAMETERS`; an unknown logical name raises instead of
being left unsharded.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrec.config import ConfigError, MeshConfig
from jaxrec.runtime import leaves
from jaxrec.types import Batch

AXES = ("data", "model")

# logical axis name -> mesh axis (None: every device holds the whole axis)
LOGICAL_AXES: dict[str, str | None] = {
    "batch": "data",
    "items": "model",  # rows of an item table
    "width": None,
}

# (text in a parameter's path, logical axes of its dimensions); every other parameter is
# replicated. Optimizer state carries the parameter's path inside its own, so one table
# places both.
PARAMETERS: tuple[tuple[str, tuple[str, ...]], ...] = (("item_embedding", ("items", "width")),)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, model) mesh over `devices` (default: all of them).

    `mesh.data=0` takes the devices that `mesh.model` leaves. Sizes that do not divide the
    devices raise ConfigError with the numbers. With both sizes given fewer devices than
    there are may be used, in a single process only.
    """
    devices = jax.devices() if devices is None else list(devices)
    count, model = len(devices), config.model
    if config.data == 0 and count % model:
        raise ConfigError(
            f"mesh.model={model}: must divide the number of devices, {count} "
            f"({devices[0].platform}), when mesh.data=0"
        )
    data = config.data or count // model
    if data * model > count or (data * model < count and jax.process_count() > 1):
        raise ConfigError(
            f"mesh.data={data} x mesh.model={model} = {data * model} devices, but there are "
            f"{count} ({devices[0].platform}); mesh.data=0 takes what mesh.model leaves"
        )
    return jax.make_mesh(
        (data, model), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices[: data * model]
    )


def spec(*logical: str | None) -> PartitionSpec:
    """The partition of an array whose dimensions have these logical names (None: not split).

    Raises ValueError on a name that `LOGICAL_AXES` does not have.
    """
    unknown = [name for name in logical if name is not None and name not in LOGICAL_AXES]
    if unknown:
        raise ValueError(
            f"unknown logical axis {unknown[0]!r}: known are {', '.join(LOGICAL_AXES)}"
        )
    axes = [None if name is None else LOGICAL_AXES[name] for name in logical]
    while axes and axes[-1] is None:  # P("data") and P("data", None) are not equal
        axes.pop()
    return PartitionSpec(*axes)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def shardings(mesh: Mesh, tree: Any) -> Any:
    """The NamedSharding of every leaf of `tree` (arrays or ShapeDtypeStructs) by its path.

    Raises ConfigError when a table's rows do not divide by `mesh.model`, and when
    `mesh.model` > 1 splits nothing.
    """
    size, split = mesh.shape["model"], 0

    def place(path: Any, leaf: Any) -> NamedSharding:
        nonlocal split
        name = leaves.path_name(path)
        for pattern, logical in PARAMETERS:
            if pattern not in name:
                continue
            if len(leaf.shape) != len(logical):
                raise ValueError(f"{name} has shape {tuple(leaf.shape)}, its rule {logical}")
            partition = spec(*logical)
            for dim, axis in enumerate(partition):
                if axis is not None and leaf.shape[dim] % mesh.shape[axis]:
                    raise ConfigError(
                        f"mesh.{axis}={mesh.shape[axis]}: must divide dimension {dim} of "
                        f"{name}, which has {leaf.shape[dim]} rows (shape {tuple(leaf.shape)})"
                    )
            split += "model" in partition
            return NamedSharding(mesh, partition)
        return replicated(mesh)

    placed = jax.tree_util.tree_map_with_path(place, tree)
    if size > 1 and not split:
        raise ConfigError(
            f"mesh.model={size}: splits nothing, no parameter path contains "
            f"{', '.join(pattern for pattern, _ in PARAMETERS)}; use mesh.model=1"
        )
    return placed


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every field of a Batch: split over its users."""
    return NamedSharding(mesh, spec("batch"))


def check_batch_size(mesh: Mesh, batch_size: int, key: str) -> None:
    """Raises ConfigError when `batch_size` (the value of config `key`) does not divide."""
    data = mesh.shape["data"]
    if batch_size % data:
        raise ConfigError(
            f"{key}={batch_size}: must be a multiple of the {data} devices along mesh.data"
        )


def put_batch(mesh: Mesh, batch: Batch) -> Batch:
    """A process's rows of a NumPy batch, as global arrays split over `data`."""
    sharding = NamedSharding(mesh, spec("batch"))
    return Batch(*(jax.make_array_from_process_local_data(sharding, np.asarray(x)) for x in batch))


def abstract(mesh: Mesh, make: Callable[[], Any]) -> Any:
    """Shapes, dtypes and shardings (`shardings`) of what `make()` returns, not computed."""
    shapes = jax.eval_shape(make)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings(mesh, shapes),
    )


def create(make: Callable[[], Any], like: Any) -> Any:
    """`make()` computed where `like` says: no device ever holds a whole split table."""
    return jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, like))()
