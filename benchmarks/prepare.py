"""Preparing large tables: time, peak memory and events per second, against a plain group-by.

    python -m benchmarks.prepare --events=100000000 --output=results/prepare.json

Writes a log of `--events` events in time order as parquet files of two million rows (users and
items drawn from skewed distributions), prepares it in a process of its own and reads that process's
peak resident memory from the system. The plain way (read everything, sort, group by user) runs on
the first `--plain-events` events with polars, and with pandas if it is installed (0: not).
`--append-events` also measures `data.append` of that many later events to the prepared ones.
`content` is a digest of all prepared files but the completion record: equal ones are equal bytes.
On a busy machine compare processor seconds.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from jaxrec.benchmark import timing
from jaxrec.types import Json

ROWS = 2_000_000  # per file
EVENTS_PER_USER = 100
PLAIN = """
import glob, sys, time
files = sorted(glob.glob(sys.argv[1] + "/*.parquet"))[: int(sys.argv[2])]
start = time.perf_counter()
"""
PLAIN_PANDAS = (
    PLAIN
    + """
import pandas as pd
table = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
table = table.sort_values(["user_id", "timestamp"], kind="stable")
table["item"] = table["item_id"].astype("category").cat.codes + 1
lists = table.groupby("user_id")[["item", "timestamp"]].agg(list)
print(len(lists), time.perf_counter() - start)
"""
)
PLAIN_POLARS = (
    PLAIN
    + """
import polars as pl
table = pl.concat([pl.read_parquet(file) for file in files])
table = table.sort("user_id", "timestamp", maintain_order=True)
table = table.with_columns(item=pl.col("item_id").rank("dense"))
lists = table.group_by("user_id", maintain_order=True).agg("item", "timestamp")
print(len(lists), time.perf_counter() - start)
"""
)
PREPARE = """
import hashlib, json, sys, time
from jaxrec.config import DataConfig
from jaxrec.data import prepare
start = time.perf_counter()
settings = json.loads(sys.argv[1])
settings["append"] = tuple(settings.get("append", ()))
prepared = prepare(DataConfig(**settings), sys.argv[2])
seconds = time.perf_counter() - start
files = json.loads((prepared.folder / "complete.json").read_text())["content"]["files"]
content = hashlib.blake2b(json.dumps(files, sort_keys=True).encode(), digest_size=16).hexdigest()
print(json.dumps({"seconds": seconds, "content": content, **prepared.report}))
"""


def write_log(folder: Path, events: int, seed: int = 0) -> None:
    """`events` rows in time order: user_id and item_id int64, timestamp seconds."""
    import polars as pl

    rng = np.random.default_rng(seed)
    users, items = max(events // EVENTS_PER_USER, 10), max(events // 500, 10)
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, events, ROWS)):
        rows = min(ROWS, events - first)
        # squares and cubes of uniforms: long histories and popular items, scattered over the ids
        user = (users * rng.random(rows) ** 2).astype(np.int64)
        item = (items * rng.random(rows) ** 3).astype(np.int64)
        moment = 1_500_000_000 + (first + np.arange(rows)) * 10**8 // events
        columns = {
            "user_id": user * 7919 % (users * 16) + 1_000_000,
            "item_id": item * 104_729 % (items * 64),
            "timestamp": moment,
        }
        pl.DataFrame(columns).write_parquet(folder / f"events-{number:05d}.parquet")


def write_later(file: Path, events: int, count: int) -> None:
    """`count` events after those of `write_log`: the same users and items and a few new ones."""
    import polars as pl

    rng = np.random.default_rng(1)
    users, items = max(events // EVENTS_PER_USER, 10), max(events // 500, 10)
    user = (users * 1.01 * rng.random(count) ** 2).astype(np.int64)
    item = (items * 1.01 * rng.random(count) ** 3).astype(np.int64)
    columns = {
        "user_id": np.where(user < users, user * 7919 % (users * 16) + 1_000_000, user),
        "item_id": np.where(item < items, item * 104_729 % (items * 64), items * 64 + item),
        "timestamp": 1_600_000_000 + np.arange(count) // 10,
    }
    pl.DataFrame(columns).write_parquet(file)


def run(command: list[str], folder: Path) -> tuple[str, dict[str, float]]:
    """Output of a process, its wall and processor seconds and peak resident bytes."""
    start = time.perf_counter()
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"benchmark: a measured process ended with {process.returncode}")
        output.seek(0)
        text = output.read()
    facts = {
        "wall_s": time.perf_counter() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }
    return text, facts


def measure(
    folder: Path, events: int, plain_events: int, workers: int, append_events: int = 0
) -> list[Json]:
    """Rows of the preparation, of an append to it (`data.append`), and of plain group-bys."""
    _say(f"writing {events:,} events")
    write_log(folder / "log", events)
    settings: Json = {
        "dataset": "table",
        "path": str(folder / "log" / "*.parquet"),
        "min_item_events": 5,
        "min_user_events": 5,
        "prepare_workers": workers,
    }
    rows = [prepared(folder, settings, events)]
    if append_events:
        rows.append(appended(folder, settings, events, append_events))
    if not plain_events:
        return rows
    files = max(min(plain_events, events) // ROWS, 1)
    for name, script in (("pandas", PLAIN_PANDAS), ("polars", PLAIN_POLARS)):
        if importlib.util.find_spec(name) is None:
            _say(f"{name} is not installed: left out")
            continue
        rows.append(plain(folder, name, script, files, min(files * ROWS, events)))
    return rows


def _prepare(folder: Path, settings: Json) -> tuple[Json, dict[str, float]]:
    """The report of a preparation in a process of its own, and what the process took."""
    command = [sys.executable, "-c", PREPARE, json.dumps(settings), str(folder / "data")]
    text, usage = run(command, folder)
    return json.loads(text), usage


def prepared(folder: Path, settings: Json, events: int) -> Json:
    """The preparation of the log."""
    size = sum(file.stat().st_size for file in (folder / "log").iterdir())
    report, usage = _prepare(folder, settings)
    row = {
        "method": "jaxrec.cli.prepare",
        "events": events,
        "input_bytes": size,
        "events_per_s": events / report["seconds"],
        **report,
        **usage,
    }
    _print(row)
    return row


def appended(folder: Path, settings: Json, events: int, append_events: int) -> Json:
    """The preparation of later events behind a prepared log."""
    later = folder / "later.parquet"
    write_later(later, events, append_events)
    report, usage = _prepare(folder, settings | {"append": [str(later)]})
    records = sum(file.stat().st_size for file in (folder / "data").rglob("*.array_record*"))
    row = {
        "method": "data.append",
        "events": events + append_events,
        "new_events": append_events,
        "events_per_s": (events + append_events) / report["seconds"],
        "records_bytes": records // 2,  # those before the append are there too
        **report,
        **usage,
    }
    _print(row)
    return row


def plain(folder: Path, name: str, script: str, files: int, events: int) -> Json:
    """A group-by of the first `files` files, which hold `events` events."""
    command = [sys.executable, "-c", script, str(folder / "log"), str(files)]
    text, usage = run(command, folder)
    users, seconds = text.split()
    row = {
        "method": f"{name} group-by",
        "events": events,
        "users": int(users),
        "seconds": float(seconds),
        "events_per_s": events / float(seconds),
        **usage,
    }
    _print(row)
    return row


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print(row: Json) -> None:
    print(
        f"{row['method']}: {row['events']:,} events in {row['seconds']:.1f} s, "
        f"{row['events_per_s']:,.0f} per second, peak {row['peak_bytes'] / 1e9:.2f} GB, "
        f"{row['peak_bytes'] / row['events']:.0f} bytes per event",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prepare", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--plain-events", type=int, default=6_000_000)
    parser.add_argument(
        "--append-events", type=int, default=0, help="later events that are appended (0: none)"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", default="", help="where files go (default: a temporary folder)")
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="jaxrec-prepare-", dir=args.folder or None))
    try:
        rows = measure(folder, args.events, args.plain_events, args.workers, args.append_events)
    finally:
        shutil.rmtree(folder)
    facts = {
        "events": args.events,
        "workers": args.workers,
        "plain_events": args.plain_events,
        "append_events": args.append_events,
    }
    timing.save(timing.report("benchmarks.prepare", rows, settings=facts), args.output)


if __name__ == "__main__":
    main()
