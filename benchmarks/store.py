"""The store of user states against the same bytes in a NumPy memmap and in one zarr3 array.

    python -m benchmarks.store --output=results/store.json

Three stores (`benchmarks.row_stores`) hold the same rows of random bytes:

    store    UserStateStore: OCDBT key-value rows, looked up by user id, checksum per row
    zarr3    one zarr3 array over OCDBT, a chunk per user, crc32c codec; looked up by row number,
             so finding a user's row number and listing users would come on top
    memmap   numpy.memmap by row number, `flush` (msync) after every batch: no atomicity, no
             checksums, no deletion; the cost of disk and NumPy alone

Timed in turn (store, zarr3, memmap, store, ...) on random users: reading batches, writing batches
durably (`write`), and reading, changing and writing them (`update`). Then reading with the page
cache of the files dropped (`cold read`), opening, iterating and compacting. Memory is the growth of
the peak of a fresh process that reads, updates and iterates.
"""

import argparse
import importlib.metadata
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

from benchmarks.row_stores import BINDING, Memmap, RowStore, Store, Zarr
from jaxrec.benchmark import timing
from jaxrec.state_store import UserStateStore
from jaxrec.types import Json

FILL = 4096  # users written at once while filling


def files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """All files below a folder."""
    return (path for path in folder.rglob("*") if path.is_file())


def disk_bytes(folder: pathlib.Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in files(folder))


def drop_cache(folder: pathlib.Path) -> None:
    """Drops the cached pages of a folder's files after syncing them."""
    for path in files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def seconds(function: Callable[..., object], *arguments: object) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def summary(samples: list[float], users: int) -> dict[str, float]:
    """Medians and spread of one operation on `users` users."""
    return {
        "users": users,
        "median_s": statistics.median(samples),
        "min_s": min(samples),
        "max_s": max(samples),
        "runs": len(samples),
        "users_per_s": users / statistics.median(samples),
    }


def random_rows(rng: np.random.Generator, count: int, row_bytes: int) -> np.ndarray:
    return np.frombuffer(rng.bytes(count * row_bytes), np.uint8).reshape(count, row_bytes)


Operation: TypeAlias = Callable[[RowStore, np.ndarray, np.ndarray], object]


def compare(
    stores: dict[str, RowStore], folder: pathlib.Path, args: argparse.Namespace
) -> dict[str, Json]:
    """Fills all stores with the same rows and times them in turn."""
    rng = np.random.default_rng(0)
    result = fill(stores, folder, rng, args)
    operations: dict[str, tuple[int, Operation]] = {
        "read": (args.read_batch, lambda store, users, rows: store.read(users)),
        "write": (args.write_batch, lambda store, users, rows: store.write(users, rows)),
        "update": (args.write_batch, lambda store, users, rows: store.update(users)),
    }
    for what, (count, act) in operations.items():
        samples: dict[str, list[float]] = {name: [] for name in stores}
        for turn in range(args.warmup + args.repeats):
            users = rng.choice(args.users, count, replace=False)
            rows = random_rows(rng, count, args.row_bytes)
            for name, store in stores.items():
                elapsed = seconds(act, store, users, rows)
                if turn >= args.warmup:
                    samples[name].append(elapsed)
        for name in stores:
            result[name][what] = show(name, what, summary(samples[name], count))
    users = rng.choice(args.users, args.read_batch, replace=False)
    first, *others = [store.read(users) for store in stores.values()]
    if any(not np.array_equal(first, other) for other in others):
        raise AssertionError("the stores hold different rows: the comparison means nothing")
    for name, store in stores.items():
        result[name] |= reopened(name, store, folder / name, rng, args)
    return result


def fill(
    stores: dict[str, RowStore],
    folder: pathlib.Path,
    rng: np.random.Generator,
    args: argparse.Namespace,
) -> dict[str, Json]:
    """Writes all rows to all stores; throughput and bytes on disk by store."""
    elapsed = dict.fromkeys(stores, 0.0)
    for start in range(0, args.users, FILL):
        rows = random_rows(rng, min(FILL, args.users - start), args.row_bytes)
        for name, store in stores.items():
            elapsed[name] += seconds(store.fill, start, rows)
        if start // FILL % 10 == 0:
            print(f"filled {start + len(rows):,} of {args.users:,} users", flush=True)
    return {
        name: {
            "fill": {"users": args.users, "users_per_s": args.users / elapsed[name]},
            "disk_bytes_after_fill": disk_bytes(folder / name),
        }
        for name in stores
    }


def reopened(
    name: str,
    store: RowStore,
    folder: pathlib.Path,
    rng: np.random.Generator,
    args: argparse.Namespace,
) -> Json:
    """Opening, and reading without page cache."""
    row: Json = {"open_s": min(seconds(store.reopen) for _ in range(5))}
    cold = []
    for _ in range(args.cold):
        store.reopen()
        drop_cache(folder)
        users = rng.choice(args.users, args.read_batch, replace=False)
        cold.append(seconds(store.read, users))
    if cold:
        row["cold read"] = show(name, "cold read", summary(cold, args.read_batch))
    row["disk_bytes"] = disk_bytes(folder)
    return row


def show(name: str, what: str, row: dict[str, float]) -> dict[str, float]:
    """Prints a timing and returns it."""
    print(
        f"{name:7} {what:9} {int(row['users']):5} users: {row['median_s'] * 1e3:7.1f} ms "
        f"({row['min_s'] * 1e3:.1f} to {row['max_s'] * 1e3:.1f}), "
        f"{row['users_per_s']:9,.0f} users/s",
        flush=True,
    )
    return row


def maintenance(store: UserStateStore, folder: pathlib.Path, empty_open_s: float) -> Json:
    """Timings of operations on the whole store: opening, iterating, compacting."""
    result: Json = {"open_s_empty": empty_open_s}
    result["iterate_s"] = seconds(lambda: [len(ids) for ids, _ in store.iterate()])
    result["stat_s"] = seconds(store.stat)
    result["compact_s"] = seconds(store.compact)
    result["disk_bytes_after_compact"] = disk_bytes(folder)
    result["live_bytes"] = sum(shard.live_bytes for shard in store.stat())
    return result


def memory(folder: str, read_batch: int, write_batch: int) -> int:
    """Growth of this process's peak, in bytes, over opening and using a store."""
    before = peak_bytes()
    rng = np.random.default_rng(1)
    with UserStateStore.open(folder, BINDING, mode="w") as store:
        users = sum(shard.users for shard in store.stat())
        for _ in range(20):
            store.read(rng.choice(users, read_batch, replace=False))
            ids = rng.choice(users, write_batch, replace=False)
            store.update(ids, lambda ids, columns, found: {"row": columns["row"] ^ 1})
        for _ in store.iterate():
            pass
    return peak_bytes() - before


def peak_bytes() -> int:
    """Largest resident memory of this process so far (Linux).

    Not `ru_maxrss`: a child starts with that of the process that started it.
    """
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak) * 1024


def in_fresh_process(folder: pathlib.Path, args: argparse.Namespace) -> int:
    """`memory` of a new process."""
    call = f"memory({str(folder)!r}, {args.read_batch}, {args.write_batch})"
    code = f"from benchmarks.store import memory; print({call})"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
    return int(done.stdout.split()[-1])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.store", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--row-bytes", type=int, default=4096)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--read-batch", type=int, default=1000)
    parser.add_argument("--write-batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--cold", type=int, default=5, help="batches read without page cache")
    parser.add_argument("--folder", default=None, help="disk to measure (default: temporary)")
    parser.add_argument("--output", default="", help="JSON file of the result")
    return parser


def main() -> None:
    args = parser().parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="jaxrec-store-", dir=args.folder))
    try:
        store = Store(folder / "store", args.users, args.row_bytes, args.shards)
        empty_open_s = min(seconds(store.reopen) for _ in range(5))
        stores: dict[str, RowStore] = {
            "store": store,
            "zarr3": Zarr(folder / "zarr3", args.users, args.row_bytes),
            "memmap": Memmap(folder / "memmap", args.users, args.row_bytes),
        }
        rows = compare(stores, folder, args)
        rows["store"] |= maintenance(store.store, folder / "store", empty_open_s)
        store.store.close()
        rows["store"]["memory_bytes"] = in_fresh_process(folder / "store", args)
    finally:
        shutil.rmtree(folder)
    facts = rows["store"]
    print(
        f"store: open {facts['open_s'] * 1e3:.1f} ms (empty {empty_open_s * 1e3:.1f} ms), "
        f"iterate {facts['iterate_s']:.1f} s, compact {facts['compact_s']:.1f} s, "
        f"disk {facts['disk_bytes'] / 1e6:.0f} MB, compacted "
        f"{facts['disk_bytes_after_compact'] / 1e6:.0f} MB, memory "
        f"{facts['memory_bytes'] / 1e6:.0f} MB"
    )
    settings = {key: value for key, value in vars(args).items() if key not in ("output", "folder")}
    result = timing.report(
        "benchmarks.store",
        rows,
        settings=settings,
        tensorstore=importlib.metadata.version("tensorstore"),
    )
    timing.save(result, args.output)


if __name__ == "__main__":
    main()
