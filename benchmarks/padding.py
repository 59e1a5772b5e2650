"""Positions that are computed per event, in training and when the states of all users are built.

    python -m benchmarks.padding --output=results/padding.json --buckets=1,8,20 \
        --config=configs/completejourney_hstu.py --config=configs/movielens_quality.py:latest-small

Nothing is trained: the batches of a whole cycle are planned as in training
(`jaxrec.data.batch_plan`) and their rows are counted. Every configuration (default: the quickstart)
has a row for each of --buckets, and one for `build-states` where it has tokens.
"""

import argparse
import pathlib
import sys
import tempfile
from collections import Counter

import numpy as np

from jaxrec import data
from jaxrec.benchmark import config_file, timing
from jaxrec.config import Config
from jaxrec.data import batch_plan
from jaxrec.errors import ConfigError
from jaxrec.serving.buckets import BATCH, SHAPES, size_of
from jaxrec.serving.updates import of_similar_work
from jaxrec.types import Json


def count(config: Config, train_end: np.ndarray, length_buckets: int) -> Json:
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
    found: Counter[tuple[int, int]] = Counter()
    events = 0
    for number in range(sum(plan.turns)):
        cut, layout, sizes = plan(number)
        size = config.layout.segment_size if sizes is None else sizes
        events += int((cut.segments * size + cut.recent).sum())
        found[len(cut.user), layout.length] += 1
    positions = sum(rows * length * batches for (rows, length), batches in found.items())
    return {
        "length_buckets": length_buckets,
        "sizes": len(found),
        "batches": [[*shape, number] for shape, number in sorted(found.items())],
        "positions": positions,
        "events": events,
        "positions_per_event": positions / events,
    }


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
    parser.add_argument("--buckets", default="1,8,20", help="values of train.length_buckets")
    parser.add_argument("--data", default="", help="keeps the prepared data; default: nowhere")
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.config or ["configs/quickstart.py"]:
            try:
                config = config_file.load(name)
                prepared = data.prepare(config.data, pathlib.Path(args.data or scratch))
                for number in map(int, args.buckets.split(",")):
                    row = count(config, prepared.boundaries.train_end, number)
                    rows.append({"config": name, "work": "training", **row})
                    print(
                        f"{name}, training, {number} sizes at most: "
                        f"{row['positions_per_event']:.3f} positions per event, "
                        f"{row['sizes']} sizes",
                        flush=True,
                    )
                if config.layout.mode == "compressed":
                    row = built(config, prepared.lengths)
                    rows.append({"config": name, "work": "build-states", **row})
                    print(
                        f"{name}, build-states: {row['positions_per_event']:.3f} positions per "
                        "event",
                        flush=True,
                    )
            except ConfigError as error:
                sys.exit(f"padding: error: {error}")
    timing.save(timing.report("benchmarks.padding", rows), args.output)


if __name__ == "__main__":
    main()
