"""The store of user states beside the same bytes in a NumPy memmap and in one zarr3 array.

    python -m benchmarks.store --output=results/store.json

Three places hold the same rows of random bytes:

    store    UserStateStore: OCDBT key-value rows, looked up by user id, checksum per row
    zarr3    one zarr3 array over OCDBT, chunk of one user, crc32c codec; looked up by row number,
             so what finds a user's row number and lists users would come on top
    memmap   numpy.memmap by row number, `flush` (msync) after every batch: no atomicity, no
             checksums, no deletion; what the disk and NumPy cost alone

Timed in turn (store, zarr3, memmap, store, ...): reading batches, writing batches durably
without looking (`write`) and reading, changing and writing them (`update`), all of random
users; then reading with the page cache of the files dropped (`cold read`), opening, iterating,
compacting. Memory is the growth of the peak of a fresh process that reads, updates and iterates.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import tensorstore as ts

from jaxrec.benchmark import timing
from jaxrec.state_store import Binding, RowSpec, UserStateStore, database

BINDING = Binding(params="benchmark", layout="", vocabulary="", form="float32")
FILL = 4096


class Place(Protocol):
    """Where rows uint8 [B, row_bytes] lie, by user number [B]."""

    def fill(self, start: int, rows: np.ndarray) -> None: ...
    def read(self, users: np.ndarray) -> np.ndarray: ...
    def write(self, users: np.ndarray, rows: np.ndarray) -> None: ...
    def update(self, users: np.ndarray) -> None: ...
    def reopen(self) -> "Place": ...


class Store:
    """The state store."""

    def __init__(self, folder: pathlib.Path, users: int, row_bytes: int, shards: int) -> None:
        self.folder = folder
        spec = RowSpec.of({"row": np.zeros((1, row_bytes), np.uint8)})
        self.store = UserStateStore.create(folder, spec, BINDING, shards)

    def fill(self, start: int, rows: np.ndarray) -> None:
        self.store.write(range(start, start + len(rows)), {"row": rows})

    def read(self, users: np.ndarray) -> np.ndarray:
        return self.store.read(users)[0]["row"]

    def write(self, users: np.ndarray, rows: np.ndarray) -> None:
        self.store.write(users, {"row": rows})

    def update(self, users: np.ndarray) -> None:
        self.store.update(users, lambda ids, columns, found: {"row": columns["row"] ^ 1})

    def reopen(self) -> "Store":
        self.store.close()
        self.store = UserStateStore.open(self.folder, BINDING, mode="w")
        return self


class Zarr:
    """One zarr3 array; every batch is one atomic transaction, as in the store."""

    def __init__(self, folder: pathlib.Path, users: int, row_bytes: int) -> None:
        self.spec = {
            "driver": "zarr3",
            "kvstore": {
                "driver": "ocdbt",
                "base": {"driver": "file", "path": f"{folder}/"},
                "config": {"max_decoded_node_bytes": database.NODE_BYTES, "compression": None},
            },
            "path": "rows",
        }
        self.array = ts.open(
            self.spec,
            create=True,
            dtype=ts.uint8,
            shape=[users, row_bytes],
            chunk_layout=ts.ChunkLayout(chunk_shape=[1, row_bytes]),
            codec=ts.CodecSpec(
                {"driver": "zarr3", "codecs": [{"name": "bytes"}, {"name": "crc32c"}]}
            ),
        ).result()

    def fill(self, start: int, rows: np.ndarray) -> None:
        self.write(np.arange(start, start + len(rows)), rows)

    def read(self, users: np.ndarray) -> np.ndarray:
        return self.array[users].read().result()

    def write(self, users: np.ndarray, rows: np.ndarray) -> None:
        with database.transaction() as transaction:
            self.array.with_transaction(transaction)[users].write(rows).result()

    def update(self, users: np.ndarray) -> None:
        with database.transaction() as transaction:
            view = self.array.with_transaction(transaction)[users]
            view.write(view.read().result() ^ 1).result()

    def reopen(self) -> "Zarr":
        self.array = ts.open(self.spec, open=True, context=ts.Context()).result()
        return self


class Memmap:
    """One file of rows."""

    def __init__(self, folder: pathlib.Path, users: int, row_bytes: int) -> None:
        folder.mkdir()
        self.path, self.shape = folder / "rows", (users, row_bytes)
        self.rows: Any = np.memmap(self.path, np.uint8, "w+", shape=self.shape)

    def fill(self, start: int, rows: np.ndarray) -> None:
        self.rows[start : start + len(rows)] = rows
        self.rows.flush()

    def read(self, users: np.ndarray) -> np.ndarray:
        return self.rows[users]

    def write(self, users: np.ndarray, rows: np.ndarray) -> None:
        self.rows[users] = rows
        self.rows.flush()

    def update(self, users: np.ndarray) -> None:
        self.write(users, self.rows[users] ^ 1)

    def reopen(self) -> "Memmap":
        self.rows = None  # unmapped
        self.rows = np.memmap(self.path, np.uint8, "r+", shape=self.shape)
        return self


def files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def disk_bytes(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def drop_cache(folder: pathlib.Path) -> None:
    """Forgets the cached pages of a folder's files (they are synced: nothing is lost)."""
    for path in files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
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


def compare(
    places: dict[str, Place], folder: pathlib.Path, args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Fills all places with the same rows and times them in turn."""
    rng = np.random.default_rng(0)
    spent = dict.fromkeys(places, 0.0)
    for start in range(0, args.users, FILL):
        rows = random_rows(rng, min(FILL, args.users - start), args.row_bytes)
        for name, place in places.items():
            spent[name] += seconds(place.fill, start, rows)
        if start // FILL % 10 == 0:
            print(f"filled {start + len(rows):,} of {args.users:,} users", flush=True)
    result: dict[str, dict[str, Any]] = {
        name: {
            "fill": {"users": args.users, "users_per_s": args.users / spent[name]},
            "disk_bytes_after_fill": disk_bytes(folder / name),
        }
        for name in places
    }
    operations: dict[str, tuple[int, Callable[[Place, np.ndarray, np.ndarray], Any]]] = {
        "read": (args.read_batch, lambda p, users, rows: p.read(users)),
        "write": (args.write_batch, lambda p, users, rows: p.write(users, rows)),
        "update": (args.write_batch, lambda p, users, rows: p.update(users)),
    }
    for what, (count, act) in operations.items():
        samples: dict[str, list[float]] = {name: [] for name in places}
        for turn in range(args.warmup + args.repeats):
            users = rng.choice(args.users, count, replace=False)
            rows = random_rows(rng, count, args.row_bytes)
            for name, place in places.items():
                took = seconds(act, place, users, rows)
                if turn >= args.warmup:
                    samples[name].append(took)
        for name in places:
            result[name][what] = show(name, what, summary(samples[name], count))
    same = rng.choice(args.users, args.read_batch, replace=False)
    first, *others = [place.read(same) for place in places.values()]
    if any(not np.array_equal(first, other) for other in others):
        raise AssertionError("the places hold different rows: the comparison means nothing")
    for name, place in places.items():
        result[name]["open_s"] = min(seconds(place.reopen) for _ in range(5))
        cold = []
        for _ in range(args.cold):
            place.reopen()
            drop_cache(folder / name)
            users = rng.choice(args.users, args.read_batch, replace=False)
            cold.append(seconds(place.read, users))
        if cold:
            result[name]["cold read"] = show(name, "cold read", summary(cold, args.read_batch))
        result[name]["disk_bytes"] = disk_bytes(folder / name)
    return result


def show(name: str, what: str, row: dict[str, float]) -> dict[str, float]:
    print(
        f"{name:7} {what:9} {int(row['users']):5} users: {row['median_s'] * 1e3:7.1f} ms "
        f"({row['min_s'] * 1e3:.1f} to {row['max_s'] * 1e3:.1f}), "
        f"{row['users_per_s']:9,.0f} users/s",
        flush=True,
    )
    return row


def whole(place: Store, folder: pathlib.Path, empty_open_s: float) -> dict[str, Any]:
    """What concerns the whole store: opening, iterating, compacting."""
    store = place.store
    result: dict[str, Any] = {"open_s_empty": empty_open_s}
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
    call = f"memory({str(folder)!r}, {args.read_batch}, {args.write_batch})"
    code = f"from jaxrec.benchmark.store import memory; print({call})"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
    return int(done.stdout.split()[-1])


def main() -> None:
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
    args = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="jaxrec-store-", dir=args.folder))
    try:
        store = Store(folder / "store", args.users, args.row_bytes, args.shards)
        empty_open_s = min(seconds(store.reopen) for _ in range(5))
        places: dict[str, Place] = {
            "store": store,
            "zarr3": Zarr(folder / "zarr3", args.users, args.row_bytes),
            "memmap": Memmap(folder / "memmap", args.users, args.row_bytes),
        }
        rows = compare(places, folder, args)
        rows["store"] |= whole(store, folder / "store", empty_open_s)
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
    result = timing.report("store", rows, settings=settings, tensorstore=version("tensorstore"))
    timing.save(result, args.output)


def version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)


if __name__ == "__main__":
    main()
