"""Positions that are computed per event, in training and when the states of all users are built.

    python -m benchmarks.padding --output=results/padding.json --buckets=1,8,25 --time \
        --config=configs/completejourney_hstu.py --config=configs/movielens_quality.py:latest-small

The batches of a whole cycle are planned as in training (`jaxrec.data.batch_plan`) and their rows
are counted. Every configuration (default: the quickstart) has a row for each of --buckets, and one
for `build-states` where it has tokens. With --time a training step on a batch of every size is
timed, all in turn; events per second are those of a cycle whose batches take the median times of
their sizes.
"""

import argparse
import functools
import pathlib
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import numpy as np

from jaxrec.benchmark import config_file, timing
from jaxrec.config import Config
from jaxrec.data import batch_plan
from jaxrec.data.batch_plan import Planned
from jaxrec.data.pipeline import read_batch
from jaxrec.errors import ConfigError
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.serving.buckets import BATCH, SHAPES, size_of
from jaxrec.serving.updates import of_similar_work
from jaxrec.session import Session
from jaxrec.training import step as step_lib
from jaxrec.types import Batch, Json

Shape: TypeAlias = tuple[int, int]  # rows, positions of a row


class Counted(NamedTuple):
    """A cycle of training: its row of the result, and of each shape a batch and how many."""

    row: Json
    examples: dict[Shape, Planned]
    batches: Counter[Shape]


def count(config: Config, train_end: np.ndarray, length_buckets: int) -> Counted:
    """Positions and input events of training; `batches`: how many have so many rows, positions.

    train_end: int64 [U], training events per user.
    """
    plan = batch_plan.make(
        train_end,
        config.layout,
        batch_size=config.train.batch_size,
        seed=config.seed,
        vary_recent=config.train.vary_recent,
        vary_segments=config.train.vary_segments,
        length_buckets=length_buckets,
    )
    if plan is None:
        raise ConfigError(f"data.path={config.data.path!r}: no user has two training events")
    found: Counter[Shape] = Counter()
    examples: dict[Shape, Planned] = {}
    events = 0
    for number in range(sum(plan.turns)):
        planned = plan(number)
        cut, layout, sizes = planned
        size = config.layout.segment_size if sizes is None else sizes
        events += int((cut.segments * size + cut.recent).sum())
        shape = len(cut.user), layout.length
        found[shape] += 1
        examples.setdefault(shape, planned)
    positions = sum(rows * length * batches for (rows, length), batches in found.items())
    row = {
        "length_buckets": length_buckets,
        "sizes": len(found),
        "batches": [[*shape, number] for shape, number in sorted(found.items())],
        "positions": positions,
        "events": events,
        "positions_per_event": positions / events,
    }
    return Counted(row, examples, found)


def add_times(session: Session, counted: Sequence[Counted]) -> None:
    """Adds `events_per_s` of training to the rows; steps on batches of all shapes take turns."""
    mesh = mesh_lib.make_mesh(session.config.mesh)
    task = session.task(fresh=True)
    with jax.set_mesh(mesh):
        assembled = step_lib.assemble(session.config, task, mesh)
        state = [jax.jit(assembled.new)()]

        def step(batch: Batch) -> object:
            state[0], metrics = assembled.step(state[0], batch, task.sampling)
            return metrics

        shapes = {shape: planned for each in counted for shape, planned in each.examples.items()}
        source = session.prepared.source
        steps = {}
        for shape, (cut, layout, sizes) in shapes.items():
            batch = mesh_lib.put_batch(mesh, read_batch(cut, layout, source, sizes))
            steps[str(shape)] = functools.partial(step, batch)
            jax.block_until_ready(step(batch))
        print(f"timing steps of {len(steps)} shapes ...", flush=True)
        times = timing.interleaved(steps, repeats=9)
    for row, _, batches in counted:
        median = {shape: times[str(shape)]["median_s"] for shape in batches}
        row["seconds"] = {str(shape): times[str(shape)] for shape in sorted(batches)}
        cycle = sum(median[shape] * number for shape, number in batches.items())
        row["events_per_s"] = row["events"] / cycle


def built(config: Config, lengths: np.ndarray) -> Json:
    """The same of `build-states`: segments of users of similar length, compressed in turn.

    lengths: int64 [U], events per user. Events of the recent window wait uncompressed.
    """
    layout = config.layout
    complete = np.maximum(lengths - layout.recent_min, 0) // layout.segment_size
    complete = np.sort(complete)  # as users are by `build_states`
    batches = [complete[start : start + BATCH] for start in range(0, len(complete), BATCH)]
    parts = [batch[rows] for batch in batches for rows in of_similar_work(batch, SHAPES.users)]
    segments = sum(size_of(len(part), SHAPES.users) * int(part.max()) for part in parts)
    positions = segments * (layout.segment_size + layout.tokens)
    events = int(complete.sum()) * layout.segment_size
    return {"positions": positions, "events": events, "positions_per_event": positions / events}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.padding", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--config", action="append", help="FILE.py[:ARGUMENT], may be repeated")
    parser.add_argument("--buckets", default="1,8,25", help="values of train.length_buckets")
    parser.add_argument("--time", action="store_true", help="also times training steps")
    parser.add_argument("--data", default="", help="keeps the prepared data; default: nowhere")
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.config or ["configs/quickstart.py"]:
            try:
                config = config_file.load(name)
                folder = pathlib.Path(args.data or scratch)
                config.data.cache_dir = str(folder / "data")
                session = Session(config, folder)
                prepared = session.prepared
                counted = [
                    count(config, prepared.boundaries.train_end, number)
                    for number in map(int, args.buckets.split(","))
                ]
                if args.time:
                    add_times(session, counted)
                made = [{"work": "training", **each.row} for each in counted]
                if config.layout.mode == "compressed":
                    made.append({"work": "build-states", **built(config, prepared.lengths)})
            except ConfigError as error:
                sys.exit(f"padding: error: {error}")
            for row in made:
                text = (
                    f"{name}, {row['work']}: {row['positions_per_event']:.3f} positions per event"
                )
                text += f", {row['sizes']} sizes" if "sizes" in row else ""
                if "events_per_s" in row:
                    text += f", {row['events_per_s']:,.0f} events/s"
                print(text, flush=True)
            rows += [{"config": name, **row} for row in made]
    timing.save(timing.report("benchmarks.padding", rows), args.output)


if __name__ == "__main__":
    main()
