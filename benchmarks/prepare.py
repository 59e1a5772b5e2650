"""Preparing large tables: time, peak memory and events a second, beside a plain group-by.

    python -m benchmarks.prepare --events=100000000 --output=results/prepare.json

Writes a log of `--events` events in time order as parquet files of two million rows (users and
items drawn from skewed distributions), prepares it in a process of its own, and reads that
process's peak resident memory from the system. The plain way (read everything, sort, group by
user) runs on the first `--plain-events` events with pandas, if it is installed, and polars.
`--append-events` also measures `data.append` of that many later events to the prepared ones.
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
from typing import Any

import numpy as np

ROWS = 2_000_000  # of a file
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
import json, sys, time
from jaxrec.config import DataConfig
from jaxrec.data import prepare
start = time.perf_counter()
settings = json.loads(sys.argv[1])
settings["append"] = tuple(settings.get("append", ()))
prepared = prepare(DataConfig(**settings), sys.argv[2])
print(json.dumps({"seconds": time.perf_counter() - start, **prepared.report}))
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
    """`count` events behind those of `write_log`: the same users and items, a few new ones."""
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
) -> list[dict[str, Any]]:
    """Rows of the result: the preparation, an append to it (`data.append`), and the plain ways
    that can run here."""
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    say(f"writing {events:,} events")
    write_log(folder / "log", events)
    size = sum(file.stat().st_size for file in (folder / "log").iterdir())
    settings = {
        "dataset": "table",
        "path": str(folder / "log" / "*.parquet"),
        "min_item_events": 5,
        "min_user_events": 5,
        "prepare_workers": workers,
    }
    command = [sys.executable, "-c", PREPARE, json.dumps(settings), str(folder / "data")]
    text, facts = run(command, folder)
    found = json.loads(text)
    rows: list[dict[str, Any]] = [
        {
            "method": "jaxrec.cli.prepare",
            "events": events,
            "input_bytes": size,
            "events_per_s": events / found["seconds"],
            **found,
            **facts,
        }
    ]
    _print(rows[-1])
    if append_events:
        write_later(folder / "later.parquet", events, append_events)
        settings["append"] = [str(folder / "later.parquet")]
        command[3] = json.dumps(settings)
        text, facts = run(command, folder)
        found = json.loads(text)
        rows.append(
            {
                "method": "data.append",
                "events": events + append_events,
                "new_events": append_events,
                "events_per_s": (events + append_events) / found["seconds"],
                "records_bytes": sum(
                    file.stat().st_size for file in (folder / "data").rglob("*.array_record*")
                )
                // 2,  # before and after
                **found,
                **facts,
            }
        )
        _print(rows[-1])
    files = max(min(plain_events, events) // ROWS, 1)
    for name, script in (("pandas", PLAIN_PANDAS), ("polars", PLAIN_POLARS)):
        if importlib.util.find_spec(name) is None:
            say(f"{name} is not installed: left out")
            continue
        text, facts = run([sys.executable, "-c", script, str(folder / "log"), str(files)], folder)
        number = min(files * ROWS, events)
        seconds = float(text.split()[1])
        rows.append(
            {
                "method": f"{name} group-by",
                "events": number,
                "users": int(text.split()[0]),
                "seconds": seconds,
                "events_per_s": number / seconds,
                **facts,
            }
        )
        _print(rows[-1])
    return rows


def _print(row: dict[str, Any]) -> None:
    print(
        f"{row['method']}: {row['events']:,} events in {row['seconds']:.1f} s, "
        f"{row['events_per_s']:,.0f} a second, peak {row['peak_bytes'] / 1e9:.2f} GB, "
        f"{row['peak_bytes'] / row['events']:.0f} bytes an event",
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
    from jaxrec.benchmark import timing

    facts = {
        "events": args.events,
        "workers": args.workers,
        "plain_events": args.plain_events,
        "append_events": args.append_events,
    }
    timing.save(timing.report("prepare", rows, settings=facts), args.output)


if __name__ == "__main__":
    main()
