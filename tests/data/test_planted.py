"""Returns planted into a table: the table stays whole, and every return has a reason."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.config import Config, DataConfig, PlantedConfig, validate
from jaxrec.data import prepare
from jaxrec.data.datasets import planted
from jaxrec.errors import ConfigError, DataError

USERS, ITEMS, EVENTS = 30, 40, 80


def table(rng=0):
    rng = np.random.default_rng(rng)
    frame = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(USERS), EVENTS),
            "item_id": rng.integers(0, ITEMS, USERS * EVENTS),
            "timestamp": np.tile(np.arange(EVENTS) // 3 + 10, USERS),  # with ties
        }
    )
    return frame.sample(fraction=1, shuffle=True, seed=1).sort("timestamp", maintain_order=True)


def configured(path, **values):
    settings = PlantedConfig(
        **{"durable": 0.3, "gap": 6, "spread": 8, "reach": 30, "rate": 0.5} | values
    )
    return DataConfig(
        dataset="planted", path=str(path), planted=settings, min_item_events=1, min_user_events=1
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "events.parquet"
    table().write_parquet(path)
    return path


def frames(config):
    [chunk] = planted.read(config, None).chunks()
    return chunk.frame


def test_the_table_is_whole_and_in_order(file):
    made = frames(configured(file))
    occasion = ITEMS  # one more than the largest id
    real = made.filter(~pl.col("returning") & (pl.col("item") != occasion))
    events = table().sort("user_id", "timestamp", maintain_order=True)
    assert real["user"].to_list() == events["user_id"].to_list()
    assert real["item"].to_list() == events["item_id"].to_list()
    assert real["time"].to_list() == events["timestamp"].to_list()
    assert made.sort("user", "time", maintain_order=True).equals(made)
    assert made.equals(frames(configured(file)))  # a function of the file and the settings
    assert not made.equals(frames(configured(file, rate=0.4)))


@given(
    gap=st.integers(1, 12),
    spread=st.integers(0, 12),
    more=st.integers(0, 30),
    returns=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 100),
)
def test_returns(gap, spread, more, returns, seed):
    users, items = table(seed).sort("user_id", maintain_order=True)[["user_id", "item_id"]]
    reach = gap + spread + more
    config = PlantedConfig(
        durable=0.3, rate=0.5, returns=returns, gap=gap, spread=spread, reach=reach
    )
    source, place, returning = planted.plant(users.to_numpy(), items.to_numpy(), config, seed)
    whose = users.to_numpy()[place]
    item = np.where(source < 0, -1, items.to_numpy()[source])
    assert (np.diff(place) >= 0).all()
    assert (whose == users.to_numpy()[np.where(source < 0, place, source)]).all()
    durable = set(item[returning].tolist())
    for user in range(USERS):
        own, comes_back = item[whose == user], returning[whose == user]
        for position in np.flatnonzero(comes_back):
            seen = np.flatnonzero(own[:position] == own[position])
            assert gap <= position - seen[-1] <= reach
            assert own[position - 1] == -1
        occasions = np.flatnonzero(own == -1)
        if returns == 1:
            assert comes_back[occasions + 1].all()
    assert -1 not in durable
    if returns == 0:
        assert not returning.any()
    assert len(durable) < ITEMS / 2  # a share of the items
    assert len(source) - (source < 0).sum() - returning.sum() == len(users)


def distances(spread):
    """Events between every return and the item before it, in long histories of few items."""
    items = np.random.default_rng(0).integers(0, 300, 40_000)
    config = PlantedConfig(durable=0.03, rate=0.5, gap=20, spread=spread, reach=100)
    source, _, returning = planted.plant(np.zeros(len(items), np.int64), items, config, 0)
    item = np.where(source < 0, -1, items[source]).tolist()
    last, found = {}, []
    for position, (one, comes_back) in enumerate(zip(item, returning.tolist(), strict=True)):
        if comes_back:
            found.append(position - last[one])
        last[one] = position
    return np.array(found)


def test_spread_draws_a_delay_for_every_item():
    sharp, soft = distances(0), distances(40)
    assert min(sharp.min(), soft.min()) >= 20
    assert len(soft) > 2000
    # with few items due at a time, most return soon after they are due
    assert (sharp < 30).mean() > 0.4
    assert (soft < 30).mean() < 0.25
    # and no quarter of the spread has most of them
    quarters = np.histogram(soft, [20, 30, 40, 50, 60])[0]
    assert quarters.max() < 0.4 * quarters.sum()


def test_ids_of_text(tmp_path):
    path = tmp_path / "events.parquet"
    named = table().with_columns(item_id="film " + pl.col("item_id").cast(pl.String))
    named.write_parquet(path)
    made = frames(configured(path))
    assert (made["item"] == "occasion").any()
    assert made.filter(pl.col("returning"))["item"].str.starts_with("film").all()
    named.with_columns(item_id=pl.lit("occasion")).write_parquet(path)
    with pytest.raises(DataError, match="'occasion'"):
        frames(configured(path))


def test_prepared(file, tmp_path):
    data = prepare(configured(file), tmp_path / "prepared")
    rows = [data.source[user] for user in range(USERS)]
    assert sum(row.returning.sum() for row in rows) > USERS
    assert data.report["items"] == ITEMS + 1
    other = prepare(configured(file, gap=7), tmp_path / "prepared")
    assert other.digest != data.digest


@pytest.mark.parametrize("text_ids", [False, True])
def test_texts_of_items(tmp_path, text_ids):
    kind = pl.String if text_ids else pl.Int64
    table().with_columns(pl.col("item_id").cast(kind)).write_parquet(tmp_path / "events.parquet")
    # an item without events has the id that the occasion gets
    items = pl.DataFrame(
        {"item_id": range(ITEMS + 1), "title": [f"t{n}" for n in range(ITEMS + 1)]}
    )
    items.with_columns(pl.col("item_id").cast(kind)).write_parquet(tmp_path / "items.parquet")
    config = dataclasses.replace(
        configured(tmp_path / "events.parquet"),
        items_path=str(tmp_path / "items.parquet"),
        text_columns=("title",),
    )
    data = prepare(config, tmp_path / "prepared")
    occasion = "occasion" if text_ids else ITEMS
    for raw, text in zip(data.vocabulary.ids.tolist(), data.texts["title"][1:], strict=True):
        assert text == ("occasion" if raw == occasion else f"t{raw}")


def test_what_cannot_be_planted(file, tmp_path):
    config = Config(data=configured(file, reach=5))
    with pytest.raises(ConfigError, match=r"data\.planted\.reach=5.*gap=6 .*spread=8"):
        validate(config)
    floats = tmp_path / "floats.parquet"
    table().with_columns(pl.col("item_id") + 0.5).write_parquet(floats)
    with pytest.raises(DataError, match="'item_id'"):
        frames(configured(floats))
    empty = tmp_path / "empty.parquet"
    table().clear().write_parquet(empty)
    with pytest.raises(DataError, match="no events"):
        frames(configured(empty))


def test_incomplete_rows_are_those_of_a_table(tmp_path, capsys):
    holes = tmp_path / "holes.parquet"
    number = pl.col("item_id")
    table().with_columns(pl.when(number > 3).then(number).alias("item_id")).write_parquet(holes)
    with pytest.raises(DataError, match=r"column 'item_id' is null in \d+ rows"):
        frames(configured(holes))
    made = frames(dataclasses.replace(configured(holes), incomplete="drop"))
    whole = table().filter(number > 3)
    assert f"{USERS * EVENTS - len(whole):,} of {USERS * EVENTS:,} rows" in capsys.readouterr().err
    real = made.filter(~pl.col("returning") & (pl.col("item") != ITEMS))
    assert len(real) == len(whole)


def test_files_of_different_kinds_are_refused(tmp_path):
    table().write_parquet(tmp_path / "a.parquet")
    text = table().with_columns(pl.col("item_id").cast(pl.String))
    text.write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: column types .*data\.item_kind=text"):
        frames(configured(tmp_path / "*.parquet"))
    moments = table().with_columns(pl.from_epoch("timestamp"))
    moments.write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: column types "):
        frames(configured(tmp_path / "*.parquet"))


@given(
    events=st.integers(1, 60),
    gap=st.integers(1, 20),
    spread=st.integers(0, 12),
    reach=st.integers(20, 50),
)
def test_chance_of_return_counts_the_delays_that_have_passed(events, gap, spread, reach):
    config = PlantedConfig(gap=gap, spread=spread, reach=reach)
    due = [gap + more <= events <= reach for more in range(spread + 1)]
    [chance] = planted.chance_of_return(np.array([events]), config)
    assert chance == pytest.approx(np.mean(due))
