"""What a training step will need, found by compiling it; nothing is allocated."""

import math

import jax
from jax.sharding import Mesh

from jaxrec.config import Config
from jaxrec.runtime import leaves, plan
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import step as step_lib
from jaxrec.training.task import Task
from jaxrec.types import Array, Batch, Json, Tree


def dry_run(
    config: Config, task: Task, *, batch: Batch, mesh: Mesh, flops: float = 0.0
) -> tuple[Json, list[str]]:
    """(JSON value, lines for people) of the step that `fit` would compile for this task.

    batch: this process's rows of one batch. flops: of the layout, per example; those of texts are
    not among them.
    """
    assembled = step_lib.assemble(config, task, mesh)
    placed: Tree
    if task.texts is None:
        sharding = mesh_lib.batch_sharding(mesh)

        def whole(x: Array) -> jax.ShapeDtypeStruct:
            shape = (x.shape[0] * jax.process_count(), *x.shape[1:])
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)

        placed = jax.tree.map(whole, batch)
    else:
        placed = task.texts.put(0, batch)
    with jax.set_mesh(mesh):  # as in `fit`
        compiled = assembled.step.lower(assembled.like, placed, task.sampling).compile()
    report = plan.describe(compiled)
    report["parameters"] = {
        name: {"shape": list(x.shape), "per_device": list(x.sharding.shard_shape(x.shape))}
        for name, x in leaves.flatten(assembled.like.params).items()
    }
    report["layout_flops"] = flops * config.train.batch_size / mesh.size
    lines = [f"mesh: {' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items())}"]
    lines += _parameter_lines(report["parameters"])
    lines += plan.lines(report)
    if task.texts is not None:
        chunks, rows, length = placed.tokens.shape
        lines.append(f"texts: up to {chunks} x {rows} rows of {length} positions")
    lines.append(f"FLOPs per device by the layout: {report['layout_flops']:.4g}")
    return report, lines


def _parameter_lines(parameters: Json) -> list[str]:
    """How many parameters there are, and which of them are split over devices."""
    count = sum(math.prod(p["shape"]) for p in parameters.values())
    return [f"parameters: {count:,}"] + [
        f"    {name}: {p['shape']}, {p['per_device']} on each device"
        for name, p in parameters.items()
        if p["shape"] != p["per_device"]
    ]
