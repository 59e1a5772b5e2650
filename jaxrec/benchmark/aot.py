"""Does it fit, and how fast could it be? Compiles for a TPU slice without having one.

    python -m jaxrec.benchmark.aot --topology=v5e:16x16 --config=configs/pod_hstu.py

The compiler of the `libtpu` package (extra `tpu-aot`) builds the training step, the compression
of histories into states and the scoring of requests against the whole catalog, for every chip of
the slice. Printed per chip: memory against capacity, FLOPs, collectives and the roofline time of
a step: the longest of compute, memory and network, each at its peak, so a lower bound. Exit status
1 when something does not fit.
"""

import argparse
import functools
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from jaxrec.benchmark import timing
from jaxrec.config import Config, MeshConfig, validate
from jaxrec.errors import ConfigError
from jaxrec.interop import item_towers
from jaxrec.items import table
from jaxrec.layout import SegmentLayout
from jaxrec.model import cost, recommender, states, token_memory
from jaxrec.model.parameters import has_item_rows
from jaxrec.objective import sampling
from jaxrec.ranking import sharded
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime import plan
from jaxrec.training import step as step_lib
from jaxrec.training import text_batches
from jaxrec.training.task import Task
from jaxrec.types import Batch

LIST = 100  # items of a recommendation list


class Chip(NamedTuple):
    """Peaks of one chip, from cloud.google.com/tpu/docs/system-architecture-tpu-vm (2025):
    bfloat16 FLOP/s, HBM bytes, HBM bytes/s, bytes/s over all links to other chips."""

    flops: float
    memory: float
    bandwidth: float
    network: float


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 448e9),
}


def devices_of(topology: str) -> tuple[Chip, list[Any]]:
    """The chip and the described (not present) devices of a slice such as `v5e:4x4`."""
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise ConfigError(f"--topology={topology!r}: allowed are {', '.join(CHIPS)}, as in v5e:4x4")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("the compiler for TPUs is missing: pip install 'jaxrec[tpu-aot]'")
    # libtpu would ask a metadata server that is only there on a TPU machine
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"--topology={topology!r}: {str(error).splitlines()[0]}") from error
    return CHIPS[name], list(described.devices)


def load_config(argument: str) -> Config:
    """The configuration of `FILE.py[:ARGUMENT]`."""
    path, _, given = argument.partition(":")
    found = importlib.util.spec_from_file_location("recipe", path)
    if not Path(path).is_file() or found is None or found.loader is None:
        raise ConfigError(f"--config={path}: not a Python file")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return validate(module.get_config(given) if given else module.get_config())


def shapes(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays as shapes that lie on the mesh."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def batch_shape(layout: SegmentLayout, users: int) -> Batch:
    slots = layout.num_items + 1
    of = jax.ShapeDtypeStruct
    wide, narrow = (users, slots), (users,)
    return Batch(
        items=of(wide, jnp.int32),
        times=of(wide, jnp.int32),
        lengths=of((users, layout.num_segments), jnp.int32),
        weights=of(wide, jnp.float32),
        user=of(narrow, jnp.int32),
        history=of(narrow, jnp.int32),
    )


def lower_train(config: Config, model: recommender.Model, mesh: Mesh) -> Any:
    """The training step of `train.py` for a mesh of devices that need not be here."""
    mesh_lib.check_batch_size(mesh, config.train.batch_size, "train.batch_size")
    loss = functools.partial(model.loss, item_dropout=config.train.item_dropout)
    counts = None
    if config.loss.kind != "softmax" and config.loss.sampling == "popularity":
        whole = jax.ShapeDtypeStruct((model.num_items + 1,), jnp.float32)
        by_rows = config.train.table_update != "adamw"
        counts = shapes(_sampler(model) if by_rows else whole, mesh_lib.replicated(mesh))
    batch = batch_shape(model.layout, config.train.batch_size)
    if config.model.texts.train != "frozen":
        tower = item_towers.tower_of(config.model)
        texts = text_batches.abstract_text_items(config, tower, mesh)
        init = text_batches.with_tower(model.init, tower)
        parts = step_lib.assemble(config, Task(init, loss, texts=texts), mesh)
        return parts.step.lower(parts.like, texts.put(0, batch), None)
    parts = step_lib.assemble(config, Task(model.init, loss, model.negatives), mesh)
    return parts.step.lower(parts.like, shapes(batch, mesh_lib.batch_sharding(mesh)), counts)


def _sampler(model: recommender.Model) -> Any:
    blocks = -(-model.num_items // 1024)
    of = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    return sampling.Sampler(of((blocks,)), of((blocks, 1024)))


def state_sharding(state: states.UserState, mesh: Mesh) -> states.UserState:
    """Users over all devices; K and V of a state carry the layers before the users."""
    rows, by_layer = (
        mesh_lib.batch_sharding(mesh),
        NamedSharding(mesh, mesh_lib.spec(None, "batch")),
    )
    out = jax.tree.map(lambda _: rows, state)
    axes = token_memory.user_axes(state.tokens)
    return out._replace(tokens=jax.tree.map(lambda axis: by_layer if axis else rows, axes))


def lower_compress(config: Config, model: recommender.Model, mesh: Mesh) -> Any:
    """States of whole histories, as many users at once as in evaluation."""
    users, events = config.eval.batch_size, config.layout.history
    rows = mesh_lib.batch_sharding(mesh)
    params = mesh_lib.abstract(mesh, lambda: model.init(jax.random.key(0)), has_item_rows)
    history = shapes(jax.ShapeDtypeStruct((users, events), jnp.int32), rows)
    counts = shapes(jax.ShapeDtypeStruct((users,), jnp.int32), rows)
    compress = functools.partial(states.compress, model)
    like = jax.eval_shape(compress, params, history, history, counts)
    out = state_sharding(like, mesh)
    return jax.jit(compress, out_shardings=out).lower(params, history, history, counts)


def lower_score(config: Config, model: recommender.Model, mesh: Mesh) -> Any:
    """Top lists over the whole catalog from states, without gathering the table."""
    params = mesh_lib.abstract(mesh, lambda: model.init(jax.random.key(0)), has_item_rows)
    state = jax.eval_shape(lambda: states.empty(model, config.eval.batch_size))
    state = jax.tree.map(shapes, state, state_sharding(state, mesh))

    def vectors(dense: Any, part: jax.Array) -> jax.Array:
        return model.item_table(table.join({table.EMBEDDING: part}, dense))

    def score(params: Any, state: Any) -> Any:
        how: Any = {"mesh": mesh, "num_items": model.num_items, "chunk": config.eval.chunk}
        x = states.query(model, params, state)
        if config.model.item_hash != "none":
            return sharded.top_k(x, model.candidates(params), LIST, **how)
        rows, dense = table.split(params)
        how |= {"vectors": vectors, "params": dense}
        return sharded.top_k(x, rows[table.EMBEDDING], LIST, **how)

    return jax.jit(score).lower(params, state)


LOWER = {"train": lower_train, "compress": lower_compress, "score": lower_score}


def flops(name: str, config: Config, model: recommender.Model, mesh: Mesh) -> float:
    """Matrix products of one call by the layout, over all chips (2 per multiply-add)."""
    layout, users = model.layout, config.eval.batch_size
    if name == "train":
        one = cost.training_flops(config.model, config.loss, layout, model.num_items)
        return float(config.train.batch_size * one) + _text_flops(config, layout, mesh)
    if name == "compress":
        return float(users * cost.forward_flops(config.model, layout))
    one = cost.forward_flops(config.model, layout.request())
    return float(users * (one + 2 * model.num_items * config.model.width))


def _text_flops(config: Config, layout: SegmentLayout, mesh: Mesh) -> float:
    """Of a trained item tower in a step whose texts are all different and as long as may be."""
    if config.model.texts.train == "frozen":
        return 0.0
    tower = item_towers.tower_of(config.model)
    batch = batch_shape(layout, config.train.batch_size)
    chunks, rows, length = text_batches.abstract(config, batch, tower, mesh).tokens.shape
    row = cost.forward_flops(tower.text.config, SegmentLayout.full(length))
    return float(3 * chunks * rows * row)


def roofline(
    work: float, found: dict[str, Any], chip: Chip, devices: int
) -> dict[str, float | str]:
    """Seconds that each resource needs at its peak, and which one decides."""
    moved = sum(
        row["bytes"] * (2 if kind == "all-reduce" else 1)
        for kind, row in found["collectives"].items()
    )
    parts = {
        "compute_s": max(work / devices, found["xla_flops"]) / chip.flops,
        "memory_s": found["xla_bytes_accessed"] / chip.bandwidth,
        "network_s": moved / chip.network,
    }
    slowest = max(parts, key=lambda name: parts[name])
    return {**parts, "step_s": parts[slowest], "bound": slowest.removesuffix("_s")}


def measure(
    name: str, config: Config, model: recommender.Model, mesh: Mesh, chip: Chip
) -> dict[str, Any]:
    """One function, compiled; `fits` is False where the compiler refuses or memory overflows."""
    try:
        with jax.set_mesh(mesh):  # as in training: what is said of the mesh counts here too
            compiled = LOWER[name](config, model, mesh).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"function": name, "fits": False, "error": str(error).splitlines()[0][:500]}
    found = plan.describe(compiled)
    work = flops(name, config, model, mesh)
    return {
        "function": name,
        "fits": found["memory"]["total"] <= chip.memory,
        "memory_capacity": chip.memory,
        "flops_per_chip": work / mesh.size,
        **found,
        "roofline": roofline(work, found, chip, mesh.size),
        "largest_collectives": [
            {"kind": one.kind, "bytes": one.bytes, "times": times, "shapes": one.shapes}
            for one, times in sorted(
                plan.collectives(compiled.as_text()), key=lambda c: -c[0].bytes * c[1]
            )[:8]
        ],
    }


def show(row: dict[str, Any]) -> None:
    if "memory" not in row:
        print(f"{row['function']}: does not fit: {row['error']}", flush=True)
        return
    size, limit = row["memory"]["total"] / 2**30, row["memory_capacity"] / 2**30
    verdict = "fits" if row["fits"] else "does not fit"
    print(f"{row['function']}: {verdict}, {size:.2f} of {limit:.0f} GiB per chip", flush=True)
    for line in plan.lines(row):
        print(f"    {line}", flush=True)
    print(f"    FLOPs per chip by the layout: {row['flops_per_chip']:.4g}", flush=True)
    times = row["roofline"]
    parts = ", ".join(f"{k[:-2]} {times[k] * 1e3:.2f}" for k in times if k.endswith("_s"))
    print(f"    roofline, ms: {parts} (bound by {times['bound']})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxrec.benchmark.aot", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--topology", default="v5e:4x4", help="v5e:4x4, v5e:16x16, v5p:2x2x1 ...")
    parser.add_argument("--config", default="configs/pod_hstu.py", help="FILE.py[:ARGUMENT]")
    parser.add_argument(
        "--items", type=int, default=10**8 - 1, help="catalog; with padding, mesh.model divides it"
    )
    parser.add_argument("--batch", type=int, default=0, help="another train.batch_size")
    parser.add_argument(
        "--mesh", type=int, nargs=3, metavar=("DATA", "FSDP", "MODEL"), help="another mesh"
    )
    parser.add_argument("--functions", nargs="+", choices=list(LOWER), default=list(LOWER))
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    try:
        chip, devices = devices_of(args.topology)
        config = load_config(args.config)
        if args.batch:
            config.train.batch_size = config.eval.batch_size = args.batch
        if args.mesh:
            config.mesh = MeshConfig(*args.mesh)
        mesh = mesh_lib.make_mesh(config.mesh, devices)
        layout = SegmentLayout.from_config(config.layout)
        model = recommender.build(config.model, config.loss, layout, args.items)
        print(f"{args.topology}: {len(devices)} chips, mesh {dict(mesh.shape)}", flush=True)
        rows = []
        for name in args.functions:
            rows.append(measure(name, config, model, mesh, chip))
            show(rows[-1])
    except ConfigError as error:
        sys.exit(f"aot: error: {error}")
    facts = {"topology": args.topology, "mesh": dict(mesh.shape), "items": args.items}
    batch = {"train.batch_size": config.train.batch_size, "eval.batch_size": config.eval.batch_size}
    timing.save(timing.report("aot", rows, **facts, settings=batch), args.output)
    if not all(row["fits"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
