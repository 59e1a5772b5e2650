"""What a training step will need, found by compiling it; nothing is allocated."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrec.config import Config
from jaxrec.runtime import leaves, plan
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import step as step_lib
from jaxrec.training.text_step import TextItems
from jaxrec.types import Batch, Params


def dry_run(
    config: Config,
    *,
    init: Callable[[jax.Array], Params],
    loss: Any,
    batch: Batch,
    mesh: Mesh,
    item_counts: Any = None,
    negatives: Callable[[jax.Array, Any], Any] | None = None,
    flops: float = 0.0,
    texts: TextItems | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """(JSON value, lines for people) of the step that `fit` would compile from these arguments.

    batch: this process's rows of one batch. flops: of the layout, per example; those of texts are
    not among them.
    """
    tower = None if texts is None else texts.tower
    parts = step_lib.assemble(config, init, loss, negatives, mesh, tower)
    rows = mesh_lib.batch_sharding(mesh)

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        whole = (x.shape[0] * jax.process_count(), *x.shape[1:])
        return jax.ShapeDtypeStruct(whole, x.dtype, sharding=rows)

    given: Any = Batch(*map(shape, batch)) if texts is None else texts.put(0, batch)
    with jax.set_mesh(mesh):  # as in `fit`
        compiled = parts.step.lower(parts.like, given, item_counts).compile()
    found = plan.describe(compiled)
    found["parameters"] = {
        name: {"shape": list(x.shape), "per_device": list(x.sharding.shard_shape(x.shape))}
        for name, x in leaves.flatten(parts.like.params).items()
    }
    found["layout_flops"] = flops * config.train.batch_size / mesh.size
    text = [f"mesh: {' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items())}"]
    count = sum(int(np.prod(p["shape"])) for p in found["parameters"].values())
    text.append(f"parameters: {count:,}")
    for name, p in found["parameters"].items():
        if p["shape"] != p["per_device"]:
            text.append(f"    {name}: {p['shape']}, {p['per_device']} on each device")
    text += plan.lines(found)
    if texts is not None:
        chunks, rows_of_chunk, length = given.words.shape
        text.append(f"texts: up to {chunks} x {rows_of_chunk} rows of {length} positions")
    text.append(f"FLOPs per device by the layout: {found['layout_flops']:.4g}")
    return found, text
