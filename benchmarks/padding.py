"""Positions that training computes per input event, with and without batches of similar lengths.

    python -m benchmarks.padding --output=results/padding.json \
        --config=configs/completejourney_hstu.py --config=configs/movielens_quality.py:latest-small

Nothing is trained: every window of an epoch is counted once, in the rows of its bucket
(`jaxrec.data.buckets`), cut at random as in training. Every configuration (default: the quickstart)
has a row for each of --buckets.
"""

import argparse
import pathlib
import sys
import tempfile

import numpy as np

from jaxrec import data
from jaxrec.benchmark import config_file, timing
from jaxrec.config import Config
from jaxrec.data import buckets, windows
from jaxrec.data.buckets import Bucket
from jaxrec.errors import ConfigError
from jaxrec.layout import SegmentLayout
from jaxrec.types import Json


def count(config: Config, train_end: np.ndarray, length_buckets: int) -> Json:
    """Positions and input events of an epoch; `batches`: rows of a batch, positions of a row.

    train_end: int64 [U], training events per user.
    """
    layout = SegmentLayout.from_config(config.layout)
    planned = buckets.plan(
        train_end,
        config.layout,
        batch_size=config.train.batch_size,
        count=length_buckets,
        vary_segments=config.train.vary_segments,
    )
    if not planned:
        raise ConfigError(f"data.path={config.data.path!r}: no user has two training events")
    random = np.random.default_rng(config.seed)
    positions = sum(b.num_windows * layout.shortened(b.slots).length for b in planned)
    events = sum(_events(bucket, config, train_end, random) for bucket in planned)
    return {
        "length_buckets": length_buckets,
        "batches": [[bucket.rows, layout.shortened(bucket.slots).length] for bucket in planned],
        "windows": [bucket.num_windows for bucket in planned],
        "positions": positions,
        "events": events,
        "positions_per_event": positions / events,
    }


def _events(
    bucket: Bucket, config: Config, train_end: np.ndarray, random: np.random.Generator
) -> int:
    """Input events of all windows of a bucket, cut at random."""
    user = bucket.users_of(np.arange(bucket.num_windows))
    uniform = random.random((len(user), windows.NUM_DRAWS))
    size = np.full(len(user), config.layout.segment_size)
    if config.train.vary_segments and config.layout.mode == "compressed":
        size = windows.segment_sizes(config.layout, uniform[:, windows.SEGMENT_SIZE])
    cut = windows.train_cuts(
        user,
        train_end[user],
        config.layout,
        uniform,
        vary_recent=config.train.vary_recent,
        sizes=size,
    )
    return int((cut.segments * size + cut.recent).sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.padding", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--config", action="append", help="FILE.py[:ARGUMENT], may be repeated")
    parser.add_argument("--buckets", default="1,8", help="values of train.length_buckets")
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
                    rows.append({"config": name, "layout_mode": config.layout.mode, **row})
                    print(
                        f"{name}, {number} buckets: {row['positions_per_event']:.3f} positions per "
                        f"input event, {len(row['batches'])} sizes of batches",
                        flush=True,
                    )
            except ConfigError as error:
                sys.exit(f"padding: error: {error}")
    timing.save(timing.report("benchmarks.padding", rows), args.output)


if __name__ == "__main__":
    main()
