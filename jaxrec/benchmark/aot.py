"""Compiles a run for a TPU slice that is not there: does it fit, and how fast could it be?

    python -m jaxrec.benchmark.aot --topology=v5e:16x16 --config=configs/pod_hstu.py

The compiler of the `libtpu` package (extra `tpu-aot`) builds the training step, the compression
of histories into states, and the scoring of requests against the whole catalog, for every chip
of the slice. Per chip it prints memory against capacity, FLOPs, memory traffic and collectives with
loops counted as often as they turn, the heaviest operations and the largest buffers, and the
roofline time of a step: the longest of compute, memory and network time at their peaks, so a lower
bound. The same counts at the peaks of other chips stand below. Exit status 1 when something does
not fit.
"""

import argparse
import functools
import importlib.util
import os
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from jaxrec import ranking
from jaxrec.benchmark import config_file, roofline, timing
from jaxrec.benchmark.roofline import CHIPS
from jaxrec.config import Config, MeshConfig
from jaxrec.errors import ConfigError
from jaxrec.interop import item_towers
from jaxrec.layout import SegmentLayout
from jaxrec.model import cost, recommender, states, token_memory
from jaxrec.model.parameters import has_item_rows
from jaxrec.objective import sampling
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime import plan
from jaxrec.training import step as step_lib
from jaxrec.training import text_batches
from jaxrec.training.task import Task
from jaxrec.types import Batch, Json, Params, Tree

LIST = 100  # items of a recommendation list


def devices_of(topology: str) -> tuple[str, list[jax.Device]]:
    """Name of the chip of a slice such as `v5e:4x4`, and descriptions of its devices.

    Raises ConfigError for an unknown slice, and where the compiler is not installed.
    """
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise ConfigError(f"--topology={topology!r}: allowed are {', '.join(CHIPS)}, as in v5e:4x4")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("the compiler for TPUs is missing: pip install 'jaxrec[tpu-aot]'")
    # libtpu would ask a metadata server that exists on TPU machines only
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # a compiler holds no chip, so that several may run at once
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"--topology={topology!r}: {str(error).splitlines()[0]}") from error
    return name, list(described.devices)


def shapes(tree: Tree, sharding: NamedSharding) -> Tree:
    """Arrays as shapes with a sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def batch_shape(layout: SegmentLayout, users: int) -> Batch:
    """Shapes of a training batch."""
    slots = layout.num_items + 1

    def batch() -> Batch:
        return Batch(
            items=jnp.zeros((users, slots), jnp.int32),
            times=jnp.zeros((users, slots), jnp.int32),
            lengths=jnp.zeros((users, layout.num_segments), jnp.int32),
            weights=jnp.zeros((users, slots), jnp.float32),
            user=jnp.zeros(users, jnp.int32),
            history=jnp.zeros(users, jnp.int32),
        )

    return jax.eval_shape(batch)


def lower_train(config: Config, model: recommender.Model, mesh: Mesh) -> jax.stages.Lowered:
    """The training step of `train.py` on a mesh."""
    mesh_lib.check_batch_size(mesh, config.train.batch_size, "train.batch_size")
    loss = functools.partial(model.loss, item_dropout=config.train.item_dropout)
    counts = None
    if config.loss.kind != "softmax" and config.loss.sampling == "popularity":
        whole = jax.ShapeDtypeStruct((model.num_items + 1,), jnp.float32)
        row_update = config.train.table_update != "adamw"
        counts = shapes(_sampler(model) if row_update else whole, mesh_lib.replicated(mesh))
    batch = batch_shape(model.layout, config.train.batch_size)
    if config.model.texts.train != "frozen":
        tower = item_towers.tower_of(config.model)
        texts = text_batches.abstract_text_items(config, tower, mesh)
        init = text_batches.with_tower(model.init, tower)
        run = step_lib.assemble(config, Task(init, loss, texts=texts), mesh)
        return run.step.lower(run.like, texts.put(0, batch), None)
    run = step_lib.assemble(config, Task(model.init, loss, model.negatives), mesh)
    return run.step.lower(run.like, shapes(batch, mesh_lib.batch_sharding(mesh)), counts)


def _sampler(model: recommender.Model, width: int = 1024) -> sampling.Sampler:
    """Shapes of `sampling.make_sampler` for the model's catalog."""
    blocks = -(-model.num_items // width)
    return jax.eval_shape(
        lambda: sampling.Sampler(jnp.zeros((blocks,)), jnp.zeros((blocks, width)))
    )


def state_sharding(state: states.UserState, mesh: Mesh) -> states.UserState:
    """Users are spread over all devices; K and V have the layers before the users."""
    rows = mesh_lib.batch_sharding(mesh)
    by_layer = NamedSharding(mesh, mesh_lib.spec(None, "batch"))
    out = jax.tree.map(lambda _: rows, state)
    axes = token_memory.user_axes(state.tokens)
    return out._replace(tokens=jax.tree.map(lambda axis: by_layer if axis else rows, axes))


def abstract_params(model: recommender.Model, mesh: Mesh) -> Params:
    """Parameters as `Session.trained_model` places them."""
    like = mesh_lib.abstract(mesh, lambda: model.init(jax.random.key(0)), has_item_rows)
    return mesh_lib.by_rows(like, has_item_rows)


def lower_compress(config: Config, model: recommender.Model, mesh: Mesh) -> jax.stages.Lowered:
    """Compression of whole histories, `eval.batch_size` users at once."""
    users, events = config.eval.batch_size, config.layout.history
    rows = mesh_lib.batch_sharding(mesh)
    params = abstract_params(model, mesh)
    history = shapes(jax.ShapeDtypeStruct((users, events), jnp.int32), rows)
    counts = shapes(jax.ShapeDtypeStruct((users,), jnp.int32), rows)
    compress = functools.partial(states.compress, model)
    like = jax.eval_shape(compress, params, history, history, counts)
    out = state_sharding(like, mesh)
    return jax.jit(compress, out_shardings=out).lower(params, history, history, counts)


def lower_score(config: Config, model: recommender.Model, mesh: Mesh) -> jax.stages.Lowered:
    """Top lists over the whole catalog from states; the item table is not gathered."""
    params = abstract_params(model, mesh)
    state = jax.eval_shape(lambda: states.empty(model, config.eval.batch_size))
    state = jax.tree.map(shapes, state, state_sharding(state, mesh))

    def score(params: Params, state: states.UserState) -> tuple[jax.Array, jax.Array]:
        return ranking.top_k(
            states.query(model, params, state),
            model.item_index(params, mesh),
            LIST,
            history=states.history_items(model, state),
            chunk=config.eval.chunk,
        )

    return jax.jit(score).lower(params, state)


LOWER: dict[str, Callable[[Config, recommender.Model, Mesh], jax.stages.Lowered]] = {
    "train": lower_train,
    "compress": lower_compress,
    "score": lower_score,
}


def flops(name: str, config: Config, model: recommender.Model, mesh: Mesh) -> float:
    """FLOPs of one call over all chips, counted from the layout (2 per multiply-add)."""
    layout, users = model.layout, config.eval.batch_size
    if name == "train":
        per_user = cost.training_flops(config.model, config.loss, layout, model.num_items)
        return float(config.train.batch_size * per_user) + _text_flops(config, layout, mesh)
    if name == "compress":
        return float(users * cost.forward_flops(config.model, layout))
    per_user = cost.forward_flops(config.model, layout.request())
    return float(users * (per_user + 2 * model.num_items * config.model.width))


def _text_flops(config: Config, layout: SegmentLayout, mesh: Mesh) -> float:
    """FLOPs of a trained item tower when all texts of a step differ and have full length."""
    if config.model.texts.train == "frozen":
        return 0.0
    tower = item_towers.tower_of(config.model)
    batch = batch_shape(layout, config.train.batch_size)
    chunks, rows, length = text_batches.abstract(config, batch, tower, mesh).tokens.shape
    row = cost.forward_flops(tower.text.config, SegmentLayout.full(length))
    return float(3 * chunks * rows * row)


def measure(name: str, config: Config, model: recommender.Model, mesh: Mesh, chip: str) -> Json:
    """One function, compiled; `fits` is False where the compiler refuses or memory overflows."""
    try:
        with jax.set_mesh(mesh):  # as in training, so that sharding constraints apply
            compiled = LOWER[name](config, model, mesh).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"function": name, "fits": False, "error": str(error).splitlines()[0][:500]}
    description = plan.describe(compiled)
    total = flops(name, config, model, mesh)
    if cheapest := description["cheapest_branches"]:
        cheapest["roofline"] = roofline.roofline(total, cheapest, CHIPS[chip], mesh.size)
    return {
        "function": name,
        "fits": description["memory"]["total"] <= CHIPS[chip].memory,
        "memory_capacity": CHIPS[chip].memory,
        "flops_per_chip": total / mesh.size,
        **description,
        "roofline": roofline.roofline(total, description, CHIPS[chip], mesh.size),
        "other_chips": {
            "note": roofline.OTHER_CHIPS_NOTE.format(chip=chip),
            **roofline.on_other_chips(chip, total, description, mesh.size),
        },
    }


def show(row: Json) -> None:
    """Prints a row."""
    if "memory" not in row:
        print(f"{row['function']}: does not fit: {row['error']}", flush=True)
        return
    size, limit = row["memory"]["total"] / 2**30, row["memory_capacity"] / 2**30
    verdict = "fits" if row["fits"] else "does not fit"
    print(f"{row['function']}: {verdict}, {size:.2f} of {limit:.0f} GiB per chip", flush=True)
    for line in plan.lines(row):
        print(f"    {line}", flush=True)
    print(f"    FLOPs per chip by the layout: {row['flops_per_chip']:.4g}", flush=True)
    print(f"    roofline, ms: {_times(row['roofline'])}", flush=True)
    if cheapest := row["cheapest_branches"]:
        print(f"    with the cheapest branches: {_times(cheapest['roofline'])}", flush=True)
    for line in plan.named_lines(row):
        print(f"    {line}", flush=True)
    print(f"    other chips, ms; {row['other_chips']['note']}", flush=True)
    for chip, times in row["other_chips"].items():
        if chip != "note":
            print(f"        {chip}: {_times(times)}", flush=True)


def _times(times: Json) -> str:
    resources = ", ".join(f"{k[:-2]} {times[k] * 1e3:.2f}" for k in times if k.endswith("_s"))
    return f"{resources} (bound by {times['bound']}), {times['share_of_peak']:.1%} of peak"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxrec.benchmark.aot", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--topology", default="v5e:4x4", help="v5e:16x16, v5p:2x2x1, v6e:4x4 ...")
    parser.add_argument("--config", default="configs/pod_hstu.py", help="FILE.py[:ARGUMENT]")
    parser.add_argument(
        "--items", type=int, default=10**8 - 1, help="catalog; with padding, mesh.model divides it"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=0,
        help="another train.batch_size, and eval.batch_size in proportion",
    )
    parser.add_argument(
        "--mesh", type=int, nargs=3, metavar=("DATA", "FSDP", "MODEL"), help="another mesh"
    )
    parser.add_argument("--functions", nargs="+", choices=list(LOWER), default=list(LOWER))
    parser.add_argument("--output", default="", help="JSON file of the result")
    return parser


def main() -> None:
    """The program."""
    args = parser().parse_args()
    try:
        chip, devices = devices_of(args.topology)
        config = config_file.load(args.config)
        if args.batch:
            users, rest = divmod(config.eval.batch_size * args.batch, config.train.batch_size)
            if rest or args.batch < 0:
                raise ConfigError(
                    f"--batch={args.batch}: eval.batch_size={config.eval.batch_size} per "
                    f"train.batch_size={config.train.batch_size} is no whole number of users"
                )
            config.eval.batch_size, config.train.batch_size = users, args.batch
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
    report = timing.report("jaxrec.benchmark.aot", rows, **facts, settings=batch)
    timing.save(report, args.output)
    if not all(row["fits"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
