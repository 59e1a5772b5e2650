"""What an append added reaches the states once, and only it."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.config import DataConfig
from jaxrec.data import prepare
from jaxrec.errors import DataError
from jaxrec.serving import Catalog, Recommender, build, incremental
from tests.serving import standin


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)))
def test_later_events_are_told_by_times(old, new):
    """As `jaxrec.data.append` merges: by time, the old first."""
    times = np.asarray([*old, *new], np.int32)
    added = np.arange(len(times)) >= len(old)
    order = np.lexsort((added, times))
    is_later = incremental.later_events(np.sort(np.asarray(old, np.int32)), times[order])
    assert is_later.tolist() == added[order].tolist()


@pytest.fixture
def appended(tmp_path):
    """The data of a run, the same with a later file, and a model of the first."""
    rng = np.random.default_rng(0)
    for day, users in enumerate((8, 11)):
        pl.DataFrame(
            {
                "user_id": rng.integers(0, users, 150),
                "item_id": 1000 + rng.integers(0, 12 + 4 * day, 150),
                "timestamp": standin.ORIGIN + 90_000 * day + np.sort(rng.integers(0, 99_000, 150)),
            }
        ).write_parquet(tmp_path / f"day{day}.parquet")
    config = DataConfig(
        dataset="table",
        path=str(tmp_path / "day0.parquet"),
        min_item_events=1,
        min_user_events=1,
    )
    base = prepare(config, tmp_path / "data")
    later = dataclasses.replace(config, append=(str(tmp_path / "day1.parquet"),))
    counts = np.ones(base.num_items + 1, np.int64)
    catalog = Catalog(base.vocabulary, counts, base.time_origin)
    settings = standin.config()
    rec = Recommender(settings, standin.params_of(settings, base.num_items), catalog)
    return rec, base, prepare(later, tmp_path / "data")


def test_fed_once(appended, tmp_path):
    rec, base, data = appended
    unknown = sum(
        int((data.source[user].items > base.num_items).sum()) for user in range(data.num_users)
    )
    assert unknown > 0
    assert data.num_users > base.num_users
    with rec.create_store(tmp_path / "store") as store:
        build.build_states(rec, store, base)
        names = data.users.tolist()
        assert store.read(names)[0]["events"][: base.num_users].tolist() == base.lengths.tolist()
        # a user whose events came another way is left alone
        other = names[0]
        rec.append(store, [other], [base.vocabulary.ids[0]], [base.time_origin + 10**6])
        done = incremental.append_new_events(rec, store, base, data)
        assert done.changed == 1
        assert done.users == int((data.lengths[1:] > 0).sum())
        assert done.already_applied == 0
        events = store.read(names)[0]["events"]
        assert events[0] == base.lengths[0] + 1
        assert done.events == int(events[1:].sum()) - int(base.lengths[1:].sum())
        assert done.events + done.late + done.unknown_items <= 150
        assert done.unknown_items > 0
        again = incremental.append_new_events(rec, store, base, data)
        assert (again.events, again.users) == (0, 0)
        assert again.already_applied + again.changed == done.users + 1
        assert store.read(names)[0]["events"].tolist() == events.tolist()
        with pytest.raises(DataError, match="not appended to the data of the model's run"):
            incremental.append_new_events(rec, store, base, base)
