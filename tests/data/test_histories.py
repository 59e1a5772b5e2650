import itertools
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.config import DataConfig
from jaxrec.data import prepare, sorting
from jaxrec.errors import DataError


def build(rows, min_items=1, min_users=1, **settings):
    """(user, item, time) rows, prepared."""
    config = DataConfig(
        dataset="table", min_item_events=min_items, min_user_events=min_users, **settings
    )
    names = [config.user_column, config.item_column, config.time_column]
    names += [config.event_column] if config.event_column else []
    with tempfile.TemporaryDirectory() as folder:
        config.path = str(Path(folder) / "log.parquet")
        columns = zip(*rows, strict=True)
        pl.DataFrame(dict(zip(names, columns, strict=True))).write_parquet(config.path)
        data = prepare(config, folder)
        assert data.histories is not None  # read before the folder is gone
        return data


def raw_items(data, user):
    return data.vocabulary.decode(data.histories.user(user)[0]).tolist()


def test_sorts_by_time_and_keeps_ties_in_input_order():
    rows = [(2, 9, 50), (1, 7, 30), (1, 5, 10), (1, 6, 10), (2, 5, 40), (1, 4, 10), (2, 7, 40)]
    data = build(rows)
    histories, words = data.histories, data.vocabulary
    assert data.time_origin == 10
    assert histories.users.tolist() == [1, 2]
    assert histories.offsets.tolist() == [0, 4, 7]
    items, times = histories.user(0)
    assert words.decode(items).tolist() == [5, 6, 4, 7]
    assert times.tolist() == [0, 0, 0, 20]
    assert words.decode(histories.user(1)[0]).tolist() == [5, 7, 9]
    assert histories.items.dtype == histories.times.dtype == np.int32
    assert histories.lengths.tolist() == [4, 3]
    assert len(histories) == 2


def test_text_ids_and_event_types_travel_along():
    rows = [("b", "y", 2, "buy"), ("a", "x", 1, "view"), ("b", "x", 1, "buy")]
    data = build(rows, event_column="kind")
    assert data.users.tolist() == ["a", "b"]
    assert data.vocabulary.decode(data.histories.items).tolist() == ["x", "x", "y"]
    assert data.event_types == ("buy", "view")
    assert data.source[0].event.tolist() == [1]
    assert data.source[1].event.tolist() == [0, 0]


def test_items_are_filtered_before_users_once():
    rows = [(1, 5, t) for t in range(3)] + [(2, 5, 9), (2, 6, 10), (2, 6, 11)]
    # item 6 (2 events) goes, user 2 then has 1 event and goes, item 5 keeps its 3 others
    data = build(rows, 3, 2)
    assert data.users.tolist() == [1]
    assert data.vocabulary.ids.tolist() == [5]
    assert len(data.histories.items) == 3
    assert data.time_origin == 0


def test_one_event_users():
    rows = [(1, 5, 10), (2, 5, 11), (2, 6, 12)]
    assert build(rows).lengths.tolist() == [1, 2]
    assert build(rows, 1, 2).users.tolist() == [2]


def test_nothing_left():
    rows = [(1, 5, 10), (2, 5, 11), (2, 6, 12)]
    with pytest.raises(
        DataError, match=r"log.parquet: no item has 3 events, the most .* 2 has 2.*min_item"
    ):
        build(rows, 3, 1)
    with pytest.raises(DataError, match=r"log.parquet: no user has 3 ev.*data\.min_user_ev"):
        build(rows, 1, 3)


def test_times_beyond_int32():
    rows = [(1, 5, 0), (1, 5, 2**31)]
    with pytest.raises(DataError, match=r"span 2147483648 seconds \(68 years\)"):
        build(rows)
    histories = build([(1, 5, 1), (1, 5, 2**31)]).histories
    assert histories.times.tolist() == [0, 2**31 - 1]


events = st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 3))


@given(st.lists(events, min_size=1, max_size=60), st.integers(1, 3), st.integers(1, 4))
def test_equals_the_plain_definition(rows, min_items, min_users):
    kept = [r for r in rows if sum(r[1] == other[1] for other in rows) >= min_items]
    kept = [r for r in kept if sum(r[0] == other[0] for other in kept) >= min_users]
    if not kept:
        with pytest.raises(DataError):
            build(rows, min_items, min_users)
        return
    data = build(rows, min_items, min_users)
    histories, words, origin = data.histories, data.vocabulary, data.time_origin
    assert origin == min(time for _, _, time in rows)
    assert sorted(words.ids.tolist()) == sorted({item for _, item, _ in kept})
    for index, user in enumerate(sorted({user for user, _, _ in kept})):
        wanted = sorted((r for r in kept if r[0] == user), key=lambda r: r[2])
        items, times = histories.user(index)
        assert histories.users[index] == user
        assert words.decode(items).tolist() == [item for _, item, _ in wanted]
        assert (times + origin).tolist() == [time for _, _, time in wanted]


@given(st.lists(events, min_size=1, max_size=60), st.integers(1, 3), st.integers(1, 4))
def test_core_is_the_largest_set_that_meets_both_bounds(rows, min_items, min_users):
    kept, before = rows, None
    while kept != before:
        before = kept
        kept = [r for r in kept if sum(r[1] == other[1] for other in kept) >= min_items]
        kept = [r for r in kept if sum(r[0] == other[0] for other in kept) >= min_users]
    if not kept:
        with pytest.raises(DataError):
            build(rows, min_items, min_users, core=True)
        return
    data = build(rows, min_items, min_users, core=True)
    assert sorted(data.vocabulary.ids.tolist()) == sorted({item for _, item, _ in kept})
    assert data.users.tolist() == sorted({user for user, _, _ in kept})
    assert len(data.histories.items) == len(kept)


def test_long_users_are_dropped():
    rows = [(1, 5, 1), (2, 5, 1), (2, 6, 2), (2, 5, 3)]
    assert build(rows, max_user_events=2).users.tolist() == [1]
    with pytest.raises(DataError, match=r"no user has 2 to 2 events.*data\.max_user_events"):
        build(rows, 1, 2, max_user_events=2)


def test_repeat_rules():
    rows = [(1, item, time) for time, item in enumerate([5, 5, 6, 5, 5, 6])] + [(2, 5, 9)]
    assert raw_items(build(rows), 0) == [5, 5, 6, 5, 5, 6]
    data = build(rows, repeats="consecutive")
    assert raw_items(data, 0) == [5, 6, 5, 6]
    assert raw_items(data, 1) == [5]
    assert data.report["repeats"] == 2
    data = build(rows, repeats="first")
    assert raw_items(data, 0) == [5, 6]
    assert data.histories.user(0)[1].tolist() == [0, 2]


def test_duplicates_are_counted_and_dropped_on_demand(capsys):
    rows = [(1, 7, 3), (2, 7, 3), (1, 7, 3), (1, 8, 3), (1, 7, 4), (1, 7, 3)]
    kept = build(rows)
    assert kept.report["duplicates"] == 2
    assert raw_items(kept, 0) == [7, 7, 8, 7, 7]
    assert "2 rows repeat an earlier row: kept" in capsys.readouterr().err
    dropped = build(rows, duplicates="drop")
    assert raw_items(dropped, 0) == [7, 8, 7]
    # another type of event is another event
    typed = [(*row, kind) for row, kind in zip(rows, "aaabaa", strict=True)]
    assert build(typed, event_column="kind").report["duplicates"] == 2
    typed[2] = (*rows[2], "b")
    assert build(typed, event_column="kind").report["duplicates"] == 1


def test_event_types_are_chosen():
    rows = [(1, 5, 1, "view"), (1, 6, 2, "buy"), (2, 5, 3, "view")]
    data = build(rows, event_column="kind", event_types=("buy",))
    assert data.users.tolist() == [1]
    assert data.vocabulary.ids.tolist() == [6]
    assert data.time_origin == 2
    with pytest.raises(DataError, match=r"'sell', but no event .* 'kind' holds: buy, view"):
        build(rows, event_column="kind", event_types=("buy", "sell"))


def test_incomplete_rows_are_dropped_on_demand():
    rows = [(1, 5, 1), (None, 5, 2), (1, None, 3), (2, 5, None), (2, 6, 7)]
    with pytest.raises(DataError, match="null"):
        build(rows)
    data = build(rows, incomplete="drop")
    assert data.users.tolist() == [1, 2]
    assert len(data.histories.items) == 2


def test_fractions_order_events_of_one_second():
    rows = [(1, 5, 7.9), (1, 6, 7.1), (1, 7, 7.5), (1, 8, 6.0)]
    data = build(rows)
    assert raw_items(data, 0) == [8, 6, 7, 5]
    assert data.histories.user(0)[1].tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("text", [False, True])
def test_many_buckets_hold_what_one_holds(text, monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    users = rng.integers(-30, 30, 4000) * 10**12
    users[:1500] = 10**12  # one user fills several buckets' worth
    frame = pl.DataFrame(
        {
            "user_id": [f"ü{u}" for u in users] if text else users,
            "item_id": rng.integers(0, 2, 4000) * 10**15 + rng.integers(0, 50, 4000),
            "timestamp": rng.integers(0, 300, 4000),
        }
    )
    for part in range(4):
        frame[1000 * part : 1000 * (part + 1)].write_parquet(tmp_path / f"{part}.parquet")
    config = DataConfig(dataset="table", path=str(tmp_path / "*.parquet"), min_item_events=30)
    one = prepare(config, tmp_path / "one")
    monkeypatch.setattr(sorting, "BUCKET", 500)
    made = {}
    for workers in (1, 3):
        config.prepare_workers = workers
        made[workers] = prepare(config, tmp_path / f"workers{workers}")
    shards = sorted((made[1].folder / "records").rglob("*array_record*"))
    assert len(shards) > 4
    assert made[1].digest == made[3].digest == one.digest
    for name in ("users", "offsets"):
        assert (getattr(made[1], name) == getattr(one, name)).all()
    assert (made[1].histories.items == one.histories.items).all()
    assert (made[1].histories.times == one.histories.times).all()
    for file in made[1].folder.rglob("*"):
        if file.is_file() and file.suffix != ".npz":
            other = made[3].folder / file.relative_to(made[1].folder)
            assert file.read_bytes() == other.read_bytes(), file
    # and both are what the definition says
    frame = frame.filter(pl.len().over("item_id") >= 30)
    plain = sorted(set(frame["user_id"].to_list()))
    assert one.users.tolist() == plain
    for index, user in enumerate(plain):
        wanted = frame.filter(pl.col("user_id") == user).sort("timestamp", maintain_order=True)
        assert raw_items(one, index) == wanted["item_id"].to_list()
    assert all(a < b for a, b in itertools.pairwise(one.users.tolist()))
