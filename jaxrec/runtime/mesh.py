"""The device mesh and where every array lives on it.

Three axes. `model` splits the rows of item tables, `fsdp` splits large dense parameters, and the
batch is split over all of them, so no two devices compute the same, wherever the parameters are.
What is split over which axis is defined once, in `LOGICAL_AXES`, `ITEM_ROWS` and
`fsdp_dimension`; an unknown logical name raises instead of being left unsharded. Which parameters
have a row per item is up to the caller (`jaxrec.model.parameters.has_item_rows`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jaxrec.config import MeshConfig
from jaxrec.errors import ConfigError
from jaxrec.runtime import leaves
from jaxrec.types import Batch, Params, Tree

DATA, FSDP, MODEL = AXES = ("data", "fsdp", "model")

# logical axis name -> mesh axes (None: every device holds the whole axis)
LOGICAL_AXES: dict[str, str | tuple[str, ...] | None] = {
    "batch": AXES,
    "items": MODEL,  # rows of an item table
    "width": None,
}

# Logical axes of an array with a row per item; one with a single number per row has the first
# alone. Optimizer state carries the parameter's path inside its own and is placed alike.
ITEM_ROWS = ("items", "width")

# Smaller parameters are not worth a gather in every step: replicated. Elements.
FSDP_MINIMUM = 2**14


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp, model) mesh over `devices` (default: all of them).

    `mesh.data=0` takes the devices that the other axes leave. Sizes that do not divide the
    devices raise ConfigError with the numbers. With all sizes given, some
    devices may stay unused, in a single process only.
    """
    devices = jax.devices() if devices is None else list(devices)
    count, others = len(devices), config.fsdp * config.model
    if config.data == 0 and count % others:
        named = f"mesh.model={config.model}"
        if config.fsdp > 1:
            named = f"mesh.fsdp={config.fsdp} x {named} = {others}"
        raise ConfigError(
            f"{named}: must divide the number of devices, {count} "
            f"({devices[0].platform}), when mesh.data=0"
        )
    data = config.data or count // others
    if data * others > count or (data * others < count and jax.process_count() > 1):
        fsdp = f" x mesh.fsdp={config.fsdp}" if config.fsdp > 1 else ""
        raise ConfigError(
            f"mesh.data={data}{fsdp} x mesh.model={config.model} = {data * others} devices, but "
            f"there are {count} ({devices[0].platform}); mesh.data=0 takes what the others leave"
        )
    return jax.make_mesh(
        (data, config.fsdp, config.model),
        AXES,
        axis_types=(AxisType.Auto,) * 3,
        devices=devices[: data * others],
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


def fsdp_dimension(shape: Sequence[int], devices: int) -> int | None:
    """The dimension of a dense parameter that `mesh.fsdp` splits; None: it is replicated.

    The longest of the last two that the devices divide; an earlier dimension counts the layers of
    a scan, which every device needs one by one.
    """
    if devices == 1 or len(shape) < 2 or math.prod(shape) < FSDP_MINIMUM:
        return None
    divisible = [dim for dim in (len(shape) - 1, len(shape) - 2) if shape[dim] % devices == 0]
    return max(divisible, key=lambda dim: shape[dim], default=None)


def splits_weights() -> bool:
    """Whether the mesh of `jax.set_mesh` splits dense parameters."""
    return jax.sharding.get_abstract_mesh().shape.get(FSDP, 1) > 1


def whole(params: Tree, layers: int, dtype: DTypeLike) -> Tree:
    """One layer's parameters, put together from `mesh.fsdp` where and when they are needed.

    params: leaves without the axis of the `layers`. Split leaves come out as `dtype`, which is
    what travels; their gradients are summed into the parts that the devices keep. Explicit because
    the compiler, left alone, moves activations of the whole batch instead of weights. Only needed
    where `splits_weights()`.
    """
    devices = jax.sharding.get_abstract_mesh().shape[FSDP]

    def gather(leaf: jax.Array) -> jax.Array:
        dimension = fsdp_dimension((layers, *leaf.shape), devices)
        if not dimension:  # None: not split; 0: by layers, of leaves with a single dimension
            return leaf
        return _gathered(leaf, PartitionSpec(*[None] * (dimension - 1), FSDP), dtype)

    return jax.tree.map(gather, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(leaf: jax.Array, part: PartitionSpec, dtype: DTypeLike) -> jax.Array:
    # constrained twice, so that it is converted before it travels
    leaf = jax.lax.with_sharding_constraint(leaf.astype(dtype), part)
    return jax.lax.with_sharding_constraint(leaf, PartitionSpec())


def _gathered_forward(
    leaf: jax.Array, part: PartitionSpec, dtype: DTypeLike
) -> tuple[jax.Array, None]:
    return _gathered(leaf, part, dtype), None


def _gathered_backward(
    part: PartitionSpec, dtype: DTypeLike, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, part).astype(jnp.float32),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def by_users(x: jax.Array) -> jax.Array:
    """Activations [B, ...] kept with their users where `mesh.fsdp` splits weights (see `whole`)."""
    if not splits_weights() or x.shape[0] % jax.sharding.get_abstract_mesh().size:
        return x
    return jax.lax.with_sharding_constraint(x, spec("batch"))


def axes_of_users(count: int) -> tuple[str, ...]:
    """Axes of the mesh of `jax.set_mesh` over which `count` rows of users are split.

    Empty where they are not: without a mesh, on one device, when the devices do not divide them,
    and inside `jax.shard_map`, where they are split already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    automatic = not mesh.empty and all(kind == AxisType.Auto for kind in mesh.axis_types)
    splits = automatic and mesh.size > 1 and count % mesh.size == 0
    return tuple(mesh.axis_names) if splits else ()


@dataclasses.dataclass(frozen=True)
class MeshPlacement:
    """Weights and activations on the mesh of `jax.set_mesh` (`nn.depth.WeightPlacement`)."""

    def splits_weights(self) -> bool:
        """See `splits_weights`."""
        return splits_weights()

    def gather(self, params: Params, layers: int, dtype: DTypeLike) -> Params:
        """See `whole`."""
        return whole(params, layers, dtype)

    def constrain(self, x: jax.Array) -> jax.Array:
        """See `by_users`."""
        return by_users(x)


PLACEMENT = MeshPlacement()


def shardings(mesh: Mesh, tree: Tree, has_item_rows: Callable[[str], bool]) -> Tree:
    """The NamedSharding of every leaf of `tree` (arrays or ShapeDtypeStructs) by its path.

    has_item_rows: whether the leaf of a path such as `params/item/embedding` has a row per item,
    in its first dimension. Raises ConfigError when the rows do not divide by `mesh.model`, and
    when `mesh.model` or `mesh.fsdp` > 1 splits nothing.
    """
    split: set[str] = set()

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = leaves.path_name(path)
        if has_item_rows(name):
            split.add(MODEL)
            return _by_item_rows(mesh, name, tuple(leaf.shape))
        dimension = fsdp_dimension(leaf.shape, mesh.shape[FSDP])
        if dimension is None:
            return replicated(mesh)
        split.add(FSDP)
        return NamedSharding(mesh, PartitionSpec(*[None] * dimension, FSDP))

    placed = jax.tree_util.tree_map_with_path(place, tree)
    if mesh.shape[MODEL] > 1 and MODEL not in split:
        raise ConfigError(
            f"mesh.model={mesh.shape[MODEL]}: splits nothing, no parameter has a row per item; "
            "use mesh.model=1"
        )
    if mesh.shape[FSDP] > 1 and FSDP not in split:
        raise ConfigError(
            f"mesh.fsdp={mesh.shape[FSDP]}: splits nothing, no dense parameter has "
            f"{FSDP_MINIMUM} elements and a dimension that it divides; use mesh.fsdp=1"
        )
    return placed


def _by_item_rows(mesh: Mesh, name: str, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of an array [R] or [R, W] with a row per item."""
    if not 1 <= len(shape) <= len(ITEM_ROWS):
        raise ValueError(f"{name} has shape {shape}, its rule {ITEM_ROWS}")
    if shape[0] % mesh.shape[MODEL]:
        raise ConfigError(
            f"mesh.model={mesh.shape[MODEL]}: must divide dimension 0 of {name}, which has "
            f"{shape[0]} rows (shape {shape})"
        )
    return NamedSharding(mesh, spec(*ITEM_ROWS[: len(shape)]))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every field of a Batch: its users are split over all devices."""
    return NamedSharding(mesh, spec("batch"))


def check_batch_size(mesh: Mesh, batch_size: int, key: str) -> None:
    """Raises ConfigError when `batch_size` (the value of config `key`) does not divide."""
    if batch_size % mesh.size:
        shape = " x ".join(f"mesh.{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
        raise ConfigError(
            f"{key}={batch_size}: must be a multiple of the {mesh.size} devices of the mesh "
            f"({shape}): the batch is split over all of them"
        )


def put_batch(mesh: Mesh, batch: Batch) -> Batch:
    """A process's rows of a NumPy batch, as global arrays split over all devices."""
    sharding = batch_sharding(mesh)
    return Batch(*(jax.make_array_from_process_local_data(sharding, np.asarray(x)) for x in batch))


def abstract(mesh: Mesh, make: Callable[[], Tree], has_item_rows: Callable[[str], bool]) -> Tree:
    """Shapes, dtypes and shardings (`shardings`) of what `make()` returns, not computed."""
    shapes = jax.eval_shape(make)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings(mesh, shapes, has_item_rows),
    )


def create(make: Callable[[], Tree], like: Tree) -> Tree:
    """`make()` computed where `like` places it: no device ever holds a whole split table."""
    return jax.jit(make, out_shardings=formats(like))()


def by_rows(like: Tree, has_item_rows: Callable[[str], bool]) -> Tree:
    """`like` with tables that lie row by row in memory, for programs that read and write few rows.

    Left alone, a TPU keeps a table of less than 128 numbers per row column by column, which needs
    less room, and a step would turn all of it around, and back.
    """

    def place(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if not has_item_rows(leaves.path_name(path)):
            return x
        form = Format(Layout(tuple(range(x.ndim))), x.sharding)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=form)

    return jax.tree_util.tree_map_with_path(place, like)


def formats(like: Tree) -> Tree:
    """The sharding of every leaf, with its layout in memory where it has one (`by_rows`)."""
    return jax.tree.map(lambda x: x.sharding if x.format.layout is None else x.format, like)


def laid_out(tree: Tree, like: Tree) -> Tree:
    """Arrays in the layouts that `like` asks for, where they have others."""

    def place(x: Any, wanted: Any) -> jax.Array:
        layout = wanted.format.layout
        if layout is None or x.format.layout.major_to_minor == layout.major_to_minor:
            return x
        return jax.device_put(x, wanted.format)

    return jax.tree.map(place, tree, like)
