"""The oracle knows what returns when, and nothing that was left to chance."""

import numpy as np

from jaxrec.experiments import gap, oracle, settings
from jaxrec.experiments.runs import Lab
from tests.experiments import tiny


def planted_lab(folder, **values):
    return Lab(settings.validate(tiny.planted(folder, events=80, **values)), folder, [].append)


def returns_of(session):
    """(history before it, item) of every planted return."""
    for user in range(session.prepared.num_users):
        items, returning = session.history(user), session.returning(user)
        for position in np.flatnonzero(returning):
            yield items[:position], items[position]


def test_of_real_histories_it_lists_what_may_be_due_most_likely_first(tmp_path):
    some = planted_lab(tmp_path)
    config = some.config.data.planted
    rule = oracle.rule(some.data)
    durable = {item for _, item in returns_of(some.data)}
    seen = 0
    for history, item in returns_of(some.data):
        listed = rule.personal_items(history)
        had = {i: len(history) - int(np.flatnonzero(history == i)[-1]) for i in history.tolist()}
        assert set(listed.tolist()) == durable & set(had)
        delays = np.arange(config.gap, config.gap + config.spread + 1)

        def chance(item, had=had, delays=delays):
            return (delays <= had[item]).mean() * (had[item] <= config.reach)

        chances = [chance(i) for i in listed.tolist()]
        assert chances == sorted(chances, reverse=True)
        assert chance(item) > 0
        seen += 1
    assert seen > 50


def test_without_spread_every_return_is_among_as_many_as_are_due(tmp_path):
    some = planted_lab(tmp_path, spread=0)
    config = some.config.data.planted
    rule = oracle.rule(some.data)
    places = []
    for history, item in returns_of(some.data):
        listed = rule.personal_items(history).tolist()
        last = {i: len(history) - int(np.flatnonzero(history == i)[-1]) for i in listed}
        due = sum(config.gap <= distance <= config.reach for distance in last.values())
        place = listed.index(item)
        assert place < due
        places.append((place + 0.5) / due)
    # each of those that are due is as likely, so the oracle can do no better than the middle
    assert 0.4 < np.mean(places) < 0.6


def test_generated_favourites_are_listed_by_how_long_they_waited(tmp_path):
    config = tiny.config(seeds=(0,), returns=True)
    config.data.synthetic.returns, config.data.synthetic.events = 0.9, 120
    config.data.synthetic.favourites = 3
    some = Lab(settings.validate(config), tmp_path, [].append)
    rule = oracle.rule(some.data)
    places = []
    for history, item in returns_of(some.data):
        listed = rule.personal_items(history).tolist()
        assert len(listed) <= 3  # favourites alone
        places.append(listed.index(item))
    assert len(places) > 50
    assert np.mean(np.array(places) == 0) > 0.6  # of three it mostly knows which


def test_no_oracle_where_nothing_returns_or_seen_items_are_no_candidates(tmp_path):
    every = Lab(tiny.config(seeds=(0,)), tmp_path, [].append)  # experiments.returns=False
    config = tiny.config(seeds=(0,), returns=True)
    config.eval.filter_seen = True
    filtered = Lab(config, tmp_path, [].append)
    for some in (every, filtered):
        experiment = gap.gap(some)
        assert not [cell.name for cell in experiment.cells if cell.name.startswith(oracle.NAME)]
        assert "oracle" not in experiment.method
