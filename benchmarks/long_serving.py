"""A process that serves for long: memory, descriptors, programs and disk, by thousand calls.

    python -m benchmarks.long_serving --output=results/long_serving.json

A round is two calls on one open store: events of some users are appended, others are recommended
to, with random options. Every fifth round also opens the store for reading, recommends from it and
closes it. The rounds run twice, each time in a fresh process on an empty store: without compaction,
and with one behind every `--compact-every` rounds. `growth` is what was added since the first line,
when nearly every size of batch has been compiled.

`results/long_serving_before.json` is the same program at the revision that added it, which leaked.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import serving
from benchmarks.store import disk_bytes
from jaxrec.benchmark import timing
from jaxrec.config import Config
from jaxrec.runtime import environment
from jaxrec.serving import Recommender
from jaxrec.state_store.store import UserStateStore
from jaxrec.types import Json

OPEN_EVERY = 5  # rounds between two openings of the store
ORIGIN = 1_600_000_000  # seconds since 1970 of the first event
APPENDED, ASKED = 16, 64  # users of a call, at most
CATALOG = 1000


def main(argv: Sequence[str] | None = None) -> None:
    """Measures both, prints and saves."""
    args = parser().parse_args(argv)
    # a process of its own each: memory that the other one left would be counted
    with concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as fresh:
        runs = [fresh.submit(serve, args, every).result() for every in (0, args.compact_every)]
    report = timing.report(
        "benchmarks.long_serving",
        runs,
        revision=environment.git_revision(Path(__file__).parents[1]),
        settings={key: value for key, value in vars(args).items() if key != "output"},
    )
    timing.save(report, args.output)


def serve(args: argparse.Namespace, compact_every: int) -> Json:
    """All rounds in this process; compact_every: rounds between compactions, 0 is none."""
    rec = make_recommender()
    rng = np.random.default_rng(0)
    lines: list[Json] = []
    with tempfile.TemporaryDirectory(prefix="jaxrec-long-serving-") as folder:
        place = Path(folder) / "states"
        with rec.create_store(place, num_shards=args.shards) as store:
            start = time.perf_counter()
            for number in range(1, args.rounds + 1):
                serve_round(rec, store, place, rng, number, args.users)
                if compact_every and number % compact_every == 0:
                    store.compact()
                if number % args.report_every == 0:
                    lines.append(facts(rec, place, number, time.perf_counter() - start))
                    print(f"compaction every {compact_every}: {lines[-1]}", flush=True)
            store.compact()
            live = sum(shard.live_bytes for shard in store.stat())
        compacted = disk_bytes(place)
    return {
        "compact_every": compact_every,
        "rounds": lines,
        "growth": {key: lines[-1][key] - lines[0][key] for key in lines[0]},
        "compacted_disk_bytes": compacted,
        "live_bytes": live,
    }


def make_recommender() -> Recommender:
    """A small model: what is measured is what is around it."""
    config = Config()
    config.layout.segment_size, config.layout.tokens = 8, 2
    config.layout.max_segments, config.layout.recent_min = 8, 1
    config.model.width, config.model.layers, config.model.heads = 16, 2, 2
    return serving.make_recommender(config, CATALOG)


def serve_round(
    rec: Recommender,
    store: UserStateStore,
    place: Path,
    rng: np.random.Generator,
    number: int,
    users: int,
) -> None:
    """One append and one `recommend`, and every fifth time those of a store that is opened."""
    appended = rng.choice(users, rng.integers(1, APPENDED + 1), replace=False)
    ids = np.repeat(appended, rng.integers(1, 6, len(appended)))
    times = np.full(len(ids), ORIGIN + number * 60)
    rec.append(store, ids, rng.integers(0, CATALOG, len(ids)), times)
    recommend(rec, store, rng, users)
    if number % OPEN_EVERY == 0:
        with rec.open_store(place, mode="r") as opened:
            recommend(rec, opened, rng, users)


def recommend(
    rec: Recommender, store: UserStateStore, rng: np.random.Generator, users: int
) -> None:
    """A request of some users; half of them exclude items, a quarter choose among candidates."""
    asked = rng.integers(0, users, rng.integers(1, ASKED + 1))
    some = rng.integers(0, CATALOG, rng.integers(1, 30))
    kind = rng.integers(0, 4)
    rec.recommend(
        store,
        asked,
        k=int(rng.integers(1, 20)),
        exclude=some if kind < 2 else None,
        candidates=some if kind == 2 else None,
    )


def facts(rec: Recommender, place: Path, rounds: int, seconds: float) -> Json:
    """What this process and its store take after `rounds` (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rounds": rounds,
        "seconds": seconds,
        "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "python_blocks": sys.getallocatedblocks(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "programs": rec.traces.total(),
        "disk_bytes": disk_bytes(place),
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.long_serving", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5000, help="each an append and a request")
    parser.add_argument("--report-every", type=int, default=500, help="rounds")
    parser.add_argument("--compact-every", type=int, default=250, help="rounds, in the second run")
    parser.add_argument("--users", type=int, default=500, help="whose events come")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--output", default="", help="JSON file of the result")
    return parser


if __name__ == "__main__":
    main()
