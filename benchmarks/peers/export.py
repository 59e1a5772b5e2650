"""Prepares a data set with jaxrec and writes it for the peers (`exchange`).

    python -m benchmarks.peers.export --runs=runs/peers --data=completejourney
    python -m benchmarks.peers.export --runs=runs/peers --data=ml-100k --ml-100k=WHEEL_OR_FOLDER

--ml-latest-small  folder with interactions.parquet (columns user_id, item_id, timestamp), or the
                   zip of GroupLens
--ml-100k          folder of recbole's `dataset_example/ml-100k`, or a recbole wheel that holds it
"""

import argparse
import pathlib

import numpy as np

from benchmarks.peers import exchange, recipes
from benchmarks.peers.exchange import Events
from jaxrec import data
from jaxrec.config import Config
from jaxrec.data.prepared import Prepared


def events_of(prepared: Prepared, validated: np.ndarray) -> Events:
    """The prepared data set as it goes to the peers. validated: users of validation."""
    histories = prepared.histories
    return Events(
        offsets=prepared.offsets,
        items=histories.items,
        times=histories.times.astype(np.int64) + prepared.time_origin,
        train_end=prepared.boundaries.train_end,
        validation_end=prepared.boundaries.validation_end,
        validated=validated,
        num_items=prepared.num_items,
        digest=prepared.digest,
    )


def validated(prepared: Prepared, config: Config) -> np.ndarray:
    """The users whose validation targets choose weights: all, or a sample drawn with seed 0.

    The sample of a run with seed 0; runs with other seeds draw others, of the same size.
    """
    bounds = prepared.boundaries
    able = np.flatnonzero(bounds.validation_end > bounds.train_end)
    order = np.random.default_rng(0).permutation(able)
    return np.sort(order[: config.train.validation_users or None])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.export", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/peers"))
    parser.add_argument("--data", choices=sorted(recipes.DATA), required=True)
    recipes.add_sources(parser)
    args = parser.parse_args()
    recipes.locate(args)
    config = recipes.config_of(args.data)
    prepared = data.prepare(config.data, args.runs / "data")
    events = events_of(prepared, validated(prepared, config))
    exchange.save_events(args.runs / args.data / exchange.EVENTS, events)
    wanted = {split: len(exchange.targets(events, split).user) for split in exchange.SPLITS}
    print(f"{args.data}: {len(events.lengths)} users, {events.num_items} items, {wanted}")


if __name__ == "__main__":
    main()
