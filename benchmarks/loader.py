"""Does the input keep up? Batches per second of the loader alone against the training step.

    python -m benchmarks.loader --output=results/loader.json

The data of `--config` (default: the quickstart) is prepared as `train.py` does. Then batches are
read without training, steps are run on one batch that is already on the device, and steps are run
on batches as they come. Printed are examples per second of the first two, their ratio (exit status
1 below --limit), the time to read one batch, and the share of the last steps that waited for input
(exit status 1 above --wait_limit).
"""

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator

import jax

from jaxrec import data
from jaxrec.benchmark import config_file, timing
from jaxrec.config import Config
from jaxrec.data import pipeline
from jaxrec.data.prepared import Prepared
from jaxrec.errors import ConfigError
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from jaxrec.objective import sampling
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import step as step_lib
from jaxrec.training.task import Task
from jaxrec.types import Batch, Tree


def batches(config: Config, prepared: Prepared) -> Iterator[Batch]:
    """The training batches of a single process."""
    return pipeline.train_batches(
        prepared,
        config.layout,
        batch_size=config.train.batch_size,
        seed=config.seed,
        vary_recent=config.train.vary_recent,
        vary_segments=config.train.vary_segments,
        length_buckets=config.train.length_buckets,
        workers=config.data.workers,
        worker_processes=config.data.worker_processes,
    )


def loader_rate(config: Config, prepared: Prepared, count: int) -> float:
    """Examples per second of the loader alone, its start-up left out."""
    source = batches(config, prepared)
    for _ in range(max(1, count // 10)):
        next(source)
    start = time.perf_counter()
    for _ in range(count):
        next(source)
    return count * config.train.batch_size / (time.perf_counter() - start)


def step_rate(config: Config, prepared: Prepared, steps: int) -> tuple[float, float]:
    """(examples per second of the step on one batch, share of time spent waiting for input).

    The share is that of the same number of steps on batches as they are read (`input_wait` of a
    run).
    """
    layout = SegmentLayout.from_config(config.layout)
    model = recommender.build(config.model, config.loss, layout, prepared.num_items)
    mesh = mesh_lib.make_mesh(config.mesh)
    run = step_lib.assemble(config, Task(model.init, model.loss, model.negatives), mesh)
    batch = mesh_lib.put_batch(mesh, next(batches(config, prepared)))
    counts: Tree = prepared.counts
    if config.train.table_update != "adamw":
        counts = sampling.make_sampler(counts) if config.loss.sampling == "popularity" else None
    state = mesh_lib.create(run.new, run.like)
    for _ in range(2):
        state, metrics = run.step(state, batch, counts)
    jax.block_until_ready(metrics)
    start = time.perf_counter()
    for _ in range(steps):
        state, metrics = run.step(state, batch, counts)
    jax.block_until_ready(metrics)
    rate = steps * config.train.batch_size / (time.perf_counter() - start)
    source, waited = batches(config, prepared), 0.0
    next(source)
    begin = time.perf_counter()
    for _ in range(steps):
        start = time.perf_counter()
        host_batch = next(source)
        waited += time.perf_counter() - start
        state, metrics = run.step(state, mesh_lib.put_batch(mesh, host_batch), counts)
        jax.block_until_ready(metrics)
    return rate, waited / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loader", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--config", default="configs/quickstart.py", help="FILE.py[:ARGUMENT]")
    parser.add_argument("--data", default="", help="keeps the prepared data; default: nowhere")
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--limit", type=float, default=3.0, help="loader / step")
    parser.add_argument("--wait_limit", type=float, default=0.05, help="share of a step's time")
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            config = config_file.load(args.config)
            prepared = data.prepare(config.data, pathlib.Path(args.data or scratch))
        except ConfigError as error:
            sys.exit(f"loader: error: {error}")
        print("reading batches", flush=True)
        loader = loader_rate(config, prepared, args.batches)
        print(f"loader: {loader:,.0f} examples/s; training steps", flush=True)
        step, wait = step_rate(config, prepared, args.steps)
    row = {
        "loader_examples_per_s": loader,
        "step_examples_per_s": step,
        "ratio": loader / step,
        "batch_s": config.train.batch_size / loader,
        "input_wait": wait,
    }
    print(
        f"step: {step:,.1f} examples/s; loader / step {row['ratio']:.1f}; waiting for input "
        f"{wait:.2%} of the time",
        flush=True,
    )
    facts = {
        "config": args.config,
        "batch_size": config.train.batch_size,
        "workers": [config.data.workers, config.data.worker_processes],
    }
    timing.save(timing.report("benchmarks.loader", [row], settings=facts), args.output)
    if row["ratio"] < args.limit:
        sys.exit(
            f"the loader gives {row['ratio']:.1f} times what the step takes, below {args.limit}"
        )
    if wait > args.wait_limit:
        sys.exit(f"steps wait for input {wait:.1%} of the time, above {args.wait_limit:.0%}")


if __name__ == "__main__":
    main()
