import dataclasses

import numpy as np
import polars as pl
import pytest

from jaxrec.config import DataConfig
from jaxrec.data import building, prepare, sorting
from jaxrec.errors import DataError


@pytest.fixture
def log(tmp_path):
    """Four days of events in four files, with new users and items every day."""
    rng = np.random.default_rng(0)
    for day in range(4):
        size = 120
        pl.DataFrame(
            {
                "user_id": [f"u{n}" for n in rng.integers(0, 8 + 2 * day, size)],
                "item_id": rng.integers(0, 10 + 5 * day, size),
                "timestamp": 10**6 + 86_400 * day + np.sort(rng.integers(0, 86_400, size)),
                "kind": [["view", "buy", "return"][n] for n in rng.integers(0, 2 + day // 2, size)],
            }
        ).write_parquet(tmp_path / f"day{day}.parquet")
    return tmp_path


def config(log, days, append=(), **changes):
    return DataConfig(
        dataset="table",
        path=str(log / days),
        append=tuple(str(log / name) for name in append),
        **{"min_item_events": 1, "min_user_events": 1, "event_column": "kind", **changes},
    )


def contents(data):
    """User -> (raw item, time, type) of its events."""
    found = {}
    for index, user in enumerate(data.users.tolist()):
        record = data.source[index]
        kinds = [data.event_types[kind] for kind in record.event]
        items = data.vocabulary.decode(record.items).tolist()
        times = (record.times + data.time_origin).tolist()
        found[user] = list(zip(items, times, kinds, strict=True))
    return found


def test_equals_all_files_together_up_to_numbering(log, tmp_path, monkeypatch):
    whole = prepare(config(log, "day*.parquet"), tmp_path / "whole")
    base = prepare(config(log, "day[01].parquet"), tmp_path / "data")
    monkeypatch.setattr(sorting, "BUCKET", 100)  # several shards
    later = ["day2.parquet", "day3.parquet"]
    data = prepare(config(log, "day[01].parquet", later), tmp_path / "data")
    assert contents(data) == contents(whole)
    assert data.report["events"] == data.report["rows"] == 480
    # numbers of the old users and items stay
    assert data.users[: base.num_users].tolist() == base.users.tolist()
    assert data.vocabulary.ids[: base.num_items].tolist() == base.vocabulary.ids.tolist()
    assert data.num_users > base.num_users
    assert data.num_items > base.num_items
    assert data.event_types[: len(base.event_types)] == base.event_types
    assert data.digest != base.digest
    assert data.counts.sum() == data.boundaries.train_end.sum()
    assert len(list((data.folder / "records").rglob("*array_record*"))) > 2


def test_the_old_files_are_not_read_again(log, tmp_path, monkeypatch):
    first = config(log, "day0.parquet", ["day1.parquet"])
    prepare(dataclasses.replace(first, append=()), tmp_path / "data")
    built = []
    build = building.build
    monkeypatch.setattr(building, "build", lambda *rest: (built.append(1), build(*rest))[1])
    one = prepare(first, tmp_path / "data")
    assert not built
    again = prepare(first, tmp_path / "data")
    assert (again.folder, again.digest) == (one.folder, one.digest)


def test_rare_new_users_and_items_are_left_out(log, tmp_path):
    rows = {
        "user_id": ["u0", "u0", "u0", "new", "new", "rare"],
        "item_id": [900, 900, 901, 900, 0, 0],
        "timestamp": [10**6 + 90_000 + n for n in range(6)],
        "kind": ["view"] * 6,
    }
    pl.DataFrame(rows).write_parquet(log / "later.parquet")
    limits = {"min_item_events": 2, "min_user_events": 2}
    data = prepare(config(log, "day0.parquet", ["later.parquet"], **limits), tmp_path / "data")
    found = contents(data)
    assert "rare" not in found
    assert [item for item, _, _ in found["new"]] == [900, 0]
    assert [item for item, _, _ in found["u0"]][-2:] == [900, 900]
    assert 901 not in data.vocabulary.ids


def test_files_that_cannot_follow(log, tmp_path):
    with pytest.raises(DataError, match=r"day0\.parquet: times .* do not follow.*first event"):
        prepare(config(log, "day1.parquet", ["day0.parquet"]), tmp_path / "data")
    other = pl.read_parquet(log / "day2.parquet").with_columns(pl.col("item_id").cast(pl.String))
    other.write_parquet(log / "text.parquet")
    with pytest.raises(DataError, match=r"text\.parquet: ids of items are <U.*prepared data int64"):
        prepare(config(log, "day0.parquet", ["text.parquet"]), tmp_path / "data")
    other[:1].with_columns(user_id=pl.lit("x"), item_id=pl.lit(777)).write_parquet(
        log / "one.parquet"
    )
    with pytest.raises(DataError, match="no new event is left"):
        prepare(config(log, "day0.parquet", ["one.parquet"], min_item_events=3), tmp_path / "data")
    # what was prepared before is still there
    assert prepare(config(log, "day0.parquet"), tmp_path / "data").report["events"] == 120
