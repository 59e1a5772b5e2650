"""Records of users: processor seconds to encode and to decode them.

    python -m benchmarks.records --output=results/records.json

Encodes the histories of `--events` events in all, for users with few and with many of them, and
decodes them again. `content` is a digest of the records, so that checkouts with different encoders
can be compared: run the file in each, with `--label` saying which one it is.
"""

import argparse
import hashlib
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from jaxrec.benchmark import timing
from jaxrec.data import examples
from jaxrec.types import Json

T = TypeVar("T")
TURNS = 3
LENGTHS = (10, 100, 1000)  # events of a user


def measure(events: int, length: int, label: str) -> Json:
    """Seconds of users with about `length` events, the fewest of some turns."""
    rng = np.random.default_rng(0)
    counts = np.maximum(rng.poisson(length, events // length), 1)
    size = int(counts.sum())
    lists = {
        "items": rng.integers(1, 200_000, size).astype(np.int32),
        "times": rng.integers(0, 10**8, size).astype(np.int32),
    }
    users = np.arange(len(counts))
    ids = (users * 7919 - 5).tolist()
    examples.decode(list(examples.encode(users[:1], ids[:1], counts[:1], lists)))  # imports

    encode_s, records = _fewest(lambda: list(examples.encode(users, ids, counts, lists)))
    decode_s, _ = _fewest(lambda: examples.decode(records))
    return {
        "method": label,
        "users": len(counts),
        "events": size,
        "encode_cpu_s": encode_s,
        "decode_cpu_s": decode_s,
        "content": hashlib.blake2b(b"".join(records), digest_size=16).hexdigest(),
    }


def _fewest(function: Callable[[], T]) -> tuple[float, T]:
    """(processor seconds, result) of a call."""
    seconds = []
    for _ in range(TURNS):
        begin = time.process_time()
        result = function()
        seconds.append(time.process_time() - begin)
    return min(seconds), result


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.records", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--label", default="jaxrec.data.examples")
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    rows = [measure(args.events, length, args.label) for length in LENGTHS]
    for row in rows:
        print(row, flush=True)
    facts = {"events": args.events, "turns": TURNS}
    timing.save(timing.report("benchmarks.records", rows, settings=facts), args.output)


if __name__ == "__main__":
    main()
