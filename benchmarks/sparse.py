"""Training step against the size of the catalog: rows that a step touches, or the whole table.

    python -m benchmarks.sparse --output=results/sparse.json

The batch shape and the model are the same for catalogs of 10⁵, 10⁶ and 10⁷ items. With
train.table_update=adagrad or adam a step reads and writes only the rows of its batch and
negatives, so its time must not grow. The ratio of the slowest to the fastest step is printed; exit
status 1 says that it exceeds --limit. `adamw` (the whole table) is measured for comparison on the
catalogs that --dense allows. Memory is XLA's plan beside the bytes of parameters and state.
"""

import argparse
import sys

import jax
import numpy as np

from jaxrec.benchmark import timing
from jaxrec.benchmark.workload import random_batch
from jaxrec.config import Config
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from jaxrec.objective import sampling
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import step as step_lib
from jaxrec.training.task import Task
from jaxrec.types import Json, Tree


class Runner:
    """A training step over one catalog, ready to be repeated."""

    def __init__(self, config: Config, items: int) -> None:
        layout = SegmentLayout.from_config(config.layout)
        model = recommender.build(config.model, config.loss, layout, items)
        mesh = mesh_lib.make_mesh(config.mesh)
        run = step_lib.assemble(config, Task(model.init, model.loss, model.negatives), mesh)
        self.counts: Tree = None
        if config.loss.sampling == "popularity":
            self.counts = 1.0 / np.arange(1, items + 2)
            if config.train.table_update != "adamw":
                self.counts = sampling.make_sampler(self.counts)
            self.counts = jax.device_put(self.counts, mesh_lib.replicated(mesh))
        users = config.train.batch_size
        self.batch = mesh_lib.put_batch(mesh, random_batch(layout, users, items))
        self.state = mesh_lib.create(run.new, run.like)
        self.compiled = run.step.lower(self.state, self.batch, self.counts).compile()
        plan = self.compiled.memory_analysis()
        assert plan is not None
        self.memory = {
            "state": sum(x.nbytes for x in jax.tree.leaves(self.state)),
            "reused_in_place": int(plan.alias_size_in_bytes),
            "temporaries": int(plan.temp_size_in_bytes),
        }

    def __call__(self) -> Tree:
        self.state, metrics = self.compiled(self.state, self.batch, self.counts)
        return metrics


def settings(args: argparse.Namespace, update: str) -> Config:
    config = Config()
    config.layout.segment_size, config.layout.max_segments = args.segment, 4
    config.model.width, config.model.layers, config.model.heads = args.width, 2, 2
    config.loss.kind, config.loss.negatives = "sampled_softmax", args.negatives
    config.loss.sampling = args.sampling
    config.train.batch_size, config.train.table_update = args.batch, update
    config.mesh.data = 1
    return config


def measure(args: argparse.Namespace, update: str, catalogs: list[int]) -> Json:
    """Steps of one kind of update over all catalogs, timed in turn."""
    runners: dict[str, Runner] = {}
    for items in catalogs:
        runners[str(items)] = Runner(settings(args, update), items)
        print(f"{update}, {items:,} items: ready", flush=True)
    times = timing.interleaved(runners, repeats=args.repeats)
    medians = [row["median_s"] for row in times.values()]
    for name, row in times.items():
        size = runners[name].memory["state"] / 2**20
        print(
            f"{update}, {int(name):,} items: {row['median_s'] * 1e3:.1f} ms, {size:,.0f} MiB",
            flush=True,
        )
    ratio = max(medians) / min(medians)
    print(f"{update}: slowest / fastest {ratio:.2f}", flush=True)
    memory = {name: runner.memory for name, runner in runners.items()}
    return {"update": update, "times": times, "ratio": ratio, "bytes": memory}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sparse", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--catalogs", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument(
        "--dense", type=int, default=10**6, help="largest catalog for adamw; 0: off"
    )
    parser.add_argument("--updates", nargs="+", choices=["adagrad", "adam"], default=["adagrad"])
    parser.add_argument("--sampling", choices=["uniform", "popularity"], default="popularity")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--segment", type=int, default=50)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--negatives", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--limit", type=float, default=1.3, help="of slowest / fastest")
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    rows = [measure(args, update, args.catalogs) for update in args.updates]
    slow = [row for row in rows if row["ratio"] > args.limit]
    small = [items for items in args.catalogs if items <= args.dense]
    if small:
        rows.append(measure(args, "adamw", small))
    facts = {key: value for key, value in vars(args).items() if key != "output"}
    timing.save(timing.report("benchmarks.sparse", rows, settings=facts), args.output)
    if slow:
        sys.exit(f"the step grows with the catalog: {slow[0]['ratio']:.2f} > {args.limit}")


if __name__ == "__main__":
    main()
