"""A training step of ours and of the peers' at the same shape, taken in turns in one run.

    python -m benchmarks.peers.speed --rectools-python=RECTOOLS/bin/python \
        --recbole-python=RECBOLE/bin/python --output=results/peers_speed.json

Same width, layers, heads, length, batch, catalog and optimizer, full softmax everywhere, histories
of random items that fill the length. A sequence of RecBole predicts its last event alone, the
others predict every event; so both rates are printed. Each program runs in its own environment,
`--rounds` times in turn, and prints medians of `--steps` steps after one that is not counted.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks.peers import options
from benchmarks.peers.exchange import Events, Json

NAMES = ("jaxrec-hstu", "rectools-hstu", "jaxrec-sasrec", "rectools-sasrec", "recbole-sasrec")
SHAPE = {"width": 64, "layers": 2, "heads": 2, "length": 200, "batch": 32, "items": 10_000}


def random_events(args: argparse.Namespace) -> Events:
    """Users whose training events fill the length, every item among them."""
    rng = np.random.default_rng(0)
    users = max(2 * args.batch, -(-args.items // (args.length + 1)))
    size = users * (args.length + 1)
    items = np.concatenate([np.arange(args.items), rng.integers(0, args.items, size)])[:size] + 1
    offsets = np.arange(users + 1) * (args.length + 1)
    times = 10**9 + np.cumsum(rng.integers(1, 10**4, size))
    ends = np.diff(offsets)
    return Events(
        offsets, items.astype(np.int32), times, ends, ends, np.arange(1), args.items, "random"
    )


def step_of_ours(args: argparse.Namespace) -> Callable[[], None]:
    import jax
    import optax

    from benchmarks.step import make_step
    from jaxrec.benchmark.workload import random_batch
    from jaxrec.config import LossConfig, ModelConfig
    from jaxrec.layout import SegmentLayout
    from jaxrec.model import recommender

    layout = SegmentLayout.full(args.length)
    config = ModelConfig(
        backbone=args.worker.partition("-")[2],
        width=args.width,
        layers=args.layers,
        heads=args.heads,
    )
    config.sasrec.block = "classic"
    model = recommender.build(config, LossConfig(kind="softmax"), layout, args.items)
    optimizer = optax.adamw(1e-3, weight_decay=0.0)
    batch = jax.device_put(random_batch(layout, args.batch, args.items))
    params = model.init(jax.random.key(0))
    state = [params, optimizer.init(params)]
    step = jax.jit(make_step(model, optimizer), donate_argnums=(0, 1))

    def run() -> None:
        *state[:], loss = step(*state, batch, jax.random.key(1))
        jax.block_until_ready(loss)

    return run


def step_of_rectools(args: argparse.Namespace) -> Callable[[], None]:
    from benchmarks.peers import rectools_models

    settings = {
        "n_factors": args.width,
        "n_blocks": args.layers,
        "n_heads": args.heads,
        "batch_size": args.batch,
        "loss": "softmax",
    }
    model = rectools_models.build(args.worker, args.length, settings)
    model._build_model_from_dataset(rectools_models.dataset_of(random_events(args)))
    module = model.lightning_model.train()
    module.log = lambda *rest, **named: None  # there is no trainer to log to
    optimizer = module.configure_optimizers()
    batch = next(iter(model.data_preparator.get_dataloader_train()))

    def run() -> None:
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()

    return run


def step_of_recbole(args: argparse.Namespace) -> Callable[[], None]:
    import torch

    from benchmarks.peers import recbole_models

    settings = {
        "n_layers": args.layers,
        "n_heads": args.heads,
        "hidden_size": args.width,
        "inner_size": args.width,
        "loss_type": "CE",
        "train_batch_size": args.batch,
    }
    _, loader, model = recbole_models.prepare(random_events(args), args.length, 0, settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = next(iter(loader))
    model.train()

    def run() -> None:
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()

    return run


STEPS = {"jaxrec": step_of_ours, "rectools": step_of_rectools, "recbole": step_of_recbole}


def work(args: argparse.Namespace) -> None:
    """The worker: times of steps as a line of JSON, the last one printed."""
    threads = options.use_cores(args.cores)
    project = args.worker.partition("-")[0]
    if project != "jaxrec":
        import torch

        torch.set_num_threads(threads)
    run = STEPS[project](args)
    run()
    wall, processor = [], []
    for _ in range(args.steps):
        begin, spent = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - begin)
        processor.append(time.process_time() - spent)
    print(json.dumps({"wall": wall, "processor": processor, "threads": threads}))


def rows(by_name: dict[str, list[Json]], args: argparse.Namespace) -> list[Json]:
    """Medians over all rounds, and rates per sequence and per predicted event."""
    table = []
    for name, rounds in by_name.items():
        wall = [t for timed in rounds for t in timed["wall"]]
        median = statistics.median(wall)
        targets = 1 if name.startswith("recbole") else args.length
        table.append(
            {
                "name": name,
                "step_seconds": median,
                "step_seconds_fastest": min(wall),
                "processor_seconds": statistics.median(
                    t for timed in rounds for t in timed["processor"]
                ),
                "ms_per_sequence": median / args.batch * 1e3,
                "us_per_target": median / args.batch / targets * 1e6,
                "rounds": len(rounds),
                "threads": rounds[0]["threads"],
            }
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.speed", description=__doc__.split("\n\n")[0]
    )
    for key, value in SHAPE.items():
        parser.add_argument(f"--{key}", type=int, default=value)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--cores", default="", help="processor numbers, such as 0,1; empty: all")
    parser.add_argument("--rectools-python", default="")
    parser.add_argument("--recbole-python", default="")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file of the result")
    parser.add_argument("--worker", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    pythons = {
        "jaxrec": sys.executable,
        "rectools": args.rectools_python,
        "recbole": args.recbole_python,
    }
    shape = [f"--{key}={getattr(args, key)}" for key in (*SHAPE, "steps", "cores")]
    by_name: dict[str, list[Json]] = {}
    environment = os.environ | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
    for _ in range(args.rounds):
        for name in args.only:
            python = pythons[name.partition("-")[0]]
            if not python:
                parser.error(f"{name}: give its environment, or leave it out with --only")
            line = [python, "-m", "benchmarks.peers.speed", f"--worker={name}", *shape]
            done = subprocess.run(line, env=environment, stdout=subprocess.PIPE, check=True)
            by_name.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
    table = rows(by_name, args)
    for row in table:
        print(
            f"{row['name']:<18}{row['step_seconds'] * 1e3:9.0f} ms per step"
            f"{row['ms_per_sequence']:9.2f} ms per sequence"
            f"{row['us_per_target']:10.1f} us per predicted event"
        )
    if args.output:
        from jaxrec.benchmark import timing

        settings = {key: getattr(args, key) for key in (*SHAPE, "steps", "rounds", "cores")}
        result = timing.report(
            "benchmarks.peers.speed", table, kind="peers_speed", settings=settings
        )
        result["command"] = options.command_line("speed", sys.argv[1:])
        timing.save(result, str(args.output))


if __name__ == "__main__":
    main()
