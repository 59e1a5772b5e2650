"""Prepared data is byte for byte what it was when `same_bytes.json` was written.

Runs name their data by its digest, so a preparation that gives other bytes for the same files
breaks them. After an intended change of `FORMAT`: `python -m tests.data.test_same_bytes`.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jaxrec.config import DataConfig, SyntheticConfig
from jaxrec.data import prepare, sorting
from tests.data import upstream

GOLDEN = Path(__file__).with_name("same_bytes.json")
FEW = {"min_item_events": 1, "min_user_events": 1}
BUCKETS = {"completejourney": 30_000}  # events of a shard
BUCKET = 200  # of the other cases: several shards


def day(folder: Path, number: int, events: int = 500) -> None:
    """Events with many ties, copies and repeats, of texts beyond ASCII and negative numbers."""
    rng = np.random.default_rng(number)
    kinds = [["buy", "view", "like"][n] for n in rng.integers(0, 1 + number, events)]
    columns = {
        "user_id": [
            f"ü{n}" if n % 3 else f"{chr(0x1F600 + n)}x" for n in rng.integers(0, 40, events)
        ],
        "number": rng.integers(-20, 20, events) * 10**15,
        "item_id": rng.integers(0, 30 + 5 * number, events) - 15,
        "timestamp": 10**9 + rng.integers(0, 50, events) + number // 2,
        "exact": 10**9 + rng.integers(0, 200, events) / 4,
        "kind": kinds,
    }
    frame = pl.DataFrame(columns)
    frame.write_parquet(folder / f"day{number}.parquet")
    gone = frame.with_columns(
        pl.when(pl.int_range(pl.len()) % 7 > 0).then("item_id"),
        pl.col("user_id").str.replace("ü", "0"),
    )
    gone.write_csv(folder / f"gone{number}.csv")


TABLES = {
    "core": {"core": True, "min_item_events": 22, "min_user_events": 25},
    "first": {**FEW, "repeats": "first", "duplicates": "drop"},
    "consecutive": {**FEW, "repeats": "consecutive", "event_types": ("view", "like")},
    "consecutive of all": {**FEW, "repeats": "consecutive", "event_column": ""},
    "long users": {**FEW, "max_user_events": 40},
    "limits": {"min_item_events": 30, "min_user_events": 20},
    "fractions": {**FEW, "time_column": "exact", "duplicates": "drop"},
    "fractions and first": {**FEW, "time_column": "exact", "repeats": "first"},
    "numbers": {**FEW, "user_column": "number"},
    "text items": {**FEW, "item_kind": "text", "user_column": "number"},
}


def write(folder: Path) -> dict[str, DataConfig]:
    """Name -> configuration of every case; writes their files below `folder`."""
    cases = {}
    for number in range(3):
        day(folder, number)
    table = {"dataset": "table", "path": str(folder / "day*.parquet"), "event_column": "kind"}
    for name, settings in TABLES.items():
        cases[f"table, {name}"] = DataConfig(**{**table, **settings})
    table["path"] = str(folder / "day[01].parquet")
    later = (str(folder / "day2.parquet"),)
    cases["table, append"] = DataConfig(**{**table, "append": later, "min_item_events": 3})
    cases["table, incomplete"] = DataConfig(
        dataset="table", path=str(folder / "gone*.csv"), incomplete="drop", min_item_events=2
    )
    for name, (dataset, make) in upstream.ALL.items():
        cases[name] = DataConfig(dataset=dataset, **FEW, **make(folder / name))
    small = SyntheticConfig(users=20, items=50, events=100, gap=20)
    cases["synthetic"] = DataConfig(dataset="synthetic", synthetic=small, min_item_events=1)
    cases["completejourney"] = DataConfig(dataset="completejourney", min_item_events=2000)
    return cases


def digests(config: DataConfig, folder: Path) -> dict[str, str]:
    """Digest of every part of the prepared data; records as they are, whatever packs them."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    data = prepare(config, folder)
    parts = {name: (data.folder / name) for name in ("vocabulary.json", "users.npy", "offsets.npy")}
    contents = {name: file.read_bytes() for name, file in parts.items()}
    if (data.folder / "texts.json").exists():
        contents["texts.json"] = (data.folder / "texts.json").read_bytes()
    shards = []
    for file in sorted((data.folder / "records").rglob("*.array_record*")):
        with ArrayRecordDataSource([str(file)]) as shard:
            shards.append([record.hex() for record in shard.__getitems__(range(len(shard)))])
    contents["records"] = json.dumps(shards).encode()
    known = data.report | {"time_origin": data.time_origin, "event_types": data.event_types}
    contents["report"] = json.dumps(known, sort_keys=True).encode()
    return {name: hashlib.blake2b(b, digest_size=8).hexdigest() for name, b in contents.items()}


def made(folder: Path, workers: int, memory: int) -> dict[str, dict[str, str]]:
    """Name -> digests of every case."""
    found = {}
    for number, (name, config) in enumerate(write(folder).items()):
        config.prepare_workers, config.prepare_memory = workers, memory
        sorting.BUCKET = BUCKETS.get(name, BUCKET)
        found[name] = digests(config, folder / "data" / str(number))
    return found


@pytest.mark.parametrize(("workers", "memory"), [(1, 1000), (3, 100)])
def test_the_bytes_that_were(tmp_path, monkeypatch, workers, memory):
    monkeypatch.setattr(sorting, "BUCKET", BUCKET)  # so that it is set back
    wanted = json.loads(GOLDEN.read_text())
    found = made(tmp_path, workers, memory)
    assert found.keys() == wanted.keys()
    assert [name for name in found if found[name] != wanted[name]] == []


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        GOLDEN.write_text(json.dumps(made(Path(place), 1, 1000), indent=1, sort_keys=True) + "\n")
    print(GOLDEN, file=sys.stderr)
