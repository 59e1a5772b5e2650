import itertools

import numpy as np
import pytest

from jaxrec.config import DataConfig, SyntheticConfig
from jaxrec.data.datasets import synthetic
from jaxrec.errors import DataError
from tests.data import source

CONFIG = SyntheticConfig(users=200, items=200, events=300, interests=20, returns=0.5, gap=100)


@pytest.fixture(scope="module")
def table():
    return synthetic.generate(CONFIG, seed=0)


def by_user(table):
    for user in np.unique(table.user):
        rows = table.user == user
        yield table.item[rows], table.time[rows], table.returning[rows]


def test_sizes(table):
    assert np.unique(table.user).tolist() == list(range(1, 201))
    assert set(np.unique(table.item)) <= set(range(1, 201))
    lengths = np.bincount(table.user)[1:]
    assert (lengths.min() >= 150, lengths.max() <= 450) == (True, True)
    assert abs(lengths.mean() - 300) < 20
    for _, times, _ in by_user(table):
        assert (np.diff(times) > 0).all()
    assert table.time.max() - table.time.min() < 2**31


def test_a_return_lies_beyond_the_gap_and_was_seen_early(table):
    durable = synthetic.durable_items(CONFIG)
    number = 0
    for items, _, returning in by_user(table):
        for place in np.flatnonzero(returning):
            earlier = np.flatnonzero(items[:place] == items[place])
            assert len(earlier) >= synthetic.REPEATS
            assert CONFIG.gap < place - earlier[-1] < 2 * CONFIG.gap
            assert items[place] in durable
            assert items[place - 1] == synthetic.OCCASION
            number += 1
    assert number > 5 * CONFIG.users


def test_the_window_tells_nothing_the_early_history_nearly_all(table):
    """Ideal predictors: one that knows the last `gap` events, one that knows everything."""
    durable = len(synthetic.durable_items(CONFIG))
    hits, candidates, uniform = [], [], []
    for items, _, returning in by_user(table):
        for place in np.flatnonzero(returning):
            known = set(items[:place][items[:place] <= durable + 1]) - {synthetic.OCCASION}
            recent = set(items[place - CONFIG.gap : place]) & known
            due = known - recent
            hits.append(items[place] in due)
            candidates.append(len(due))
            uniform.append(items[place])
    assert all(hits)
    assert max(candidates) <= synthetic.FAVOURITES
    # nothing but the user's own past singles items out: returns spread over all durable items
    share = np.bincount(uniform, minlength=durable + 2)[2:] / len(uniform)
    assert share.max() < 5 / durable
    assert np.sort(share)[-10:].sum() < 0.3


@pytest.mark.parametrize("favourites", [1, 5, 12])
def test_as_many_favourites_as_asked_for(favourites):
    config = SyntheticConfig(
        users=100, items=121, events=800, interests=12, returns=0.9, gap=24, favourites=favourites
    )
    table = synthetic.generate(config, seed=0)
    for items, _, returning in by_user(table):
        assert len(np.unique(items[returning])) == favourites
        assert len(np.unique(items[items < synthetic.durable_items(config)[-1] + 1])) == (
            favourites + 1  # the occasion
        )
        for place in np.flatnonzero(returning):
            earlier = np.flatnonzero(items[:place] == items[place])
            assert place - earlier[-1] > config.gap


def test_favourites_without_a_number_depend_on_the_gap():
    for gap, number in ((0, 1), (24, 2), (50, 4), (300, synthetic.FAVOURITES)):
        config = SyntheticConfig(users=50, items=200, interests=20, gap=gap)
        chosen = synthetic._favourites(config, 50, np.random.default_rng(0))
        assert chosen.shape == (50, number)


def test_more_favourites_than_interests_are_refused():
    for favourites, items in ((21, 200), (5, 10)):
        config = SyntheticConfig(items=items, interests=20, favourites=favourites)
        most = {200: 20, 10: 4}[items]
        with pytest.raises(DataError, match=rf"favourites={favourites}: at most {most}, "):
            synthetic.generate(config, 0)


def test_favourites_come_from_distinct_interests():
    rng = np.random.default_rng(0)
    chosen = synthetic._favourites(CONFIG, 500, rng)
    assert chosen.shape == (500, 8)
    interests = (chosen - 2) % CONFIG.interests
    assert all(len(set(row)) == 8 for row in interests)
    assert set(chosen.ravel()) == set(synthetic.durable_items(CONFIG))


def test_occasions_return_with_the_probability_asked_for():
    for returns in (0.3, 0.8):
        config = SyntheticConfig(
            users=400, items=200, events=600, interests=20, returns=returns, gap=100
        )
        table = synthetic.generate(config, seed=1)
        followed = []
        for items, _, returning in by_user(table):
            late = np.arange(len(items) - 1) > 2 * config.gap
            followed += returning[1:][late & (items[:-1] == synthetic.OCCASION)].tolist()
        assert abs(np.mean(followed) - returns) < 0.06


def test_no_returns():
    table = synthetic.generate(SyntheticConfig(users=20, items=50, events=200, returns=0.0), 0)
    assert not table.returning.any()


def test_everyday_events_follow_the_one_before(table):
    first = synthetic.durable_items(CONFIG)[-1] + 1
    pairs = [
        (a, b)
        for items, _, _ in by_user(table)
        for a, b in itertools.pairwise(items)
        if min(a, b) >= first
    ]
    steps = np.asarray([b - a for a, b in pairs])
    # a step inside a group of 5 items (20 groups), around its end included
    assert np.isin(steps, [20, -80]).mean() > 0.7


def test_seeded():
    again = synthetic.generate(CONFIG, seed=0)
    other = synthetic.generate(CONFIG, seed=1)
    first = synthetic.generate(CONFIG, seed=0)
    for name in ("user", "item", "time", "returning"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.item[:1000], other.item[:1000])


def test_users_beyond_a_chunk(monkeypatch):
    monkeypatch.setattr(synthetic, "CHUNK", 64)
    table = synthetic.generate(CONFIG, seed=0)
    assert np.unique(table.user).tolist() == list(range(1, 201))
    # a smaller population is the beginning of a larger one
    fewer = synthetic.generate(SyntheticConfig(**{**vars(CONFIG), "users": 64}), seed=0)
    assert np.array_equal(fewer.item, table.item[: len(fewer)])


@pytest.mark.parametrize("changes", [{"items": 4}, {"gap": 0}, {"events": 4}, {"interests": 1}])
def test_smallest_settings(changes):
    base = {"users": 3, "items": 30, "events": 40, "interests": 3, "gap": 10}
    table = synthetic.generate(SyntheticConfig(**{**base, **changes}), seed=0)
    assert np.unique(table.user).tolist() == [1, 2, 3]
    assert table.item.max() <= changes.get("items", 30)
    assert table.item.min() >= 1


def test_too_few_items():
    with pytest.raises(DataError, match=r"data\.synthetic\.items=3: at least 4"):
        synthetic.generate(SyntheticConfig(items=3), 0)


def test_long_lives_stay_within_the_years():
    config = SyntheticConfig(users=2, items=50, events=200_000, gap=100)
    table = synthetic.generate(config, 0)
    assert table.time.max() - table.time.min() < 2**31


def test_read_uses_the_data_seed(tmp_path):
    config = DataConfig(dataset="synthetic", seed=5, synthetic=CONFIG)
    events, texts = source.read(config, tmp_path)
    assert np.array_equal(events.item, synthetic.generate(CONFIG, 5).item)
    assert texts is None


def test_chance_of_return_is_that_of_the_waits_that_are_left():
    config = SyntheticConfig(users=400, items=60, events=200, favourites=2, gap=24, interests=12)
    waits = np.arange(config.gap, config.gap + 13)  # spread 12, each as likely
    since = np.arange(0, 40)
    left = [(waits >= events).sum() for events in since]
    expected = [0.0 if e < 24 else 1 / max(n, 1) for e, n in zip(since, left, strict=True)]
    np.testing.assert_allclose(synthetic.chance_of_return(since, config), expected)
    # of generated histories: of favourites that came back, this share did so at each distance
    table = synthetic.generate(config, seed=0)
    counts = np.zeros(64, int)
    for items, _, returning in by_user(table):
        everyday = np.cumsum(synthetic.is_everyday(items, config))
        for place in np.flatnonzero(returning):
            last = np.flatnonzero(items[:place] == items[place])[-1]
            counts[everyday[place] - everyday[last]] += 1
    assert counts[:24].sum() == 0
    assert counts[38:].sum() == 0  # the first wait of each begins one later
    share = counts[25:37] / counts[24:38].sum()
    assert np.abs(share - 1 / 13).max() < 0.03
