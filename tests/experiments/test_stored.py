"""Old states and stored forms of a tiny run, against states made by hand."""

import jax
import numpy as np
import pytest

from jaxrec import ranking
from jaxrec.experiments import staleness, stored
from jaxrec.experiments.runs import Lab
from jaxrec.model import states
from jaxrec.serving.state_rows import Events
from tests.experiments import tiny

AGES, LAST = (0, 1, 8), 2


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tiny.config(seeds=(0,)), tmp_path_factory.mktemp("runs"), lambda line: None)


@pytest.fixture(scope="module")
def aged(lab):
    """(session, subject, users, histories, what `aged_ranks` finds)."""
    session = lab.session(lab.base)
    subject, users = session.trained_model(), lab.users(session.prepared)
    histories = stored.histories_of(session, users)
    ranks = staleness.aged_ranks(subject.model, subject.params, histories, AGES, LAST)
    return session, subject, users, histories, ranks


@pytest.fixture(scope="module")
def rank(aged):
    """Rank of an item when one user's state is compressed from `known` events.

    window: events that stand in the recent window instead of the state's own.
    """
    _, subject, *_ = aged
    model, params = subject.model, subject.params
    index = model.item_index(params)

    def padded(line, width):
        return np.pad(line, (0, width - len(line)))[None]

    @jax.jit
    def compress(items, times, count):
        return states.compress(model, params, items, times, count)

    @jax.jit
    def ask(state, target):
        queries, history = states.query(model, params, state), states.history_items(model, state)
        return ranking.rank_of_targets(queries, index, target, history=history)[0]

    def of(known, target, window=None):
        items, times = (padded(line, 64) for line in known)
        state = compress(items, times, np.asarray([len(known.items)], np.int32))
        if window is not None:
            items, times = (padded(line, state.items.shape[1]) for line in window)
            pending = np.asarray([len(window.items)], np.int32)
            state = state._replace(items=items, times=times, pending=pending)
        return int(ask(state, np.asarray([target], np.int32)))

    return of


def until(history, count):
    return Events(history.items[:count], history.times[:count])


def test_extended_states_do_not_age(aged):
    *_, ranks = aged
    for column in range(len(AGES)):
        np.testing.assert_array_equal(
            ranks[staleness.EXTENDED][..., column], ranks[staleness.EXTENDED][..., 0]
        )


def test_without_an_age_all_ways_are_one(aged):
    *_, ranks = aged
    for name in (staleness.WINDOW, staleness.STALE):
        np.testing.assert_array_equal(ranks[name][..., 0], ranks[staleness.EXTENDED][..., 0])


def test_ranks_are_those_of_states_made_by_hand(aged, rank):
    *_, histories, ranks = aged
    for user in (0, 7):
        history, number = histories[user], len(histories[user].items)
        for place in range(LAST):
            now = number - LAST + place
            target = int(history.items[now])
            fresh = rank(until(history, now), target)
            assert ranks[staleness.EXTENDED][user, place, 2] == fresh
            old = until(history, now - 8)
            assert ranks[staleness.STALE][user, place, 2] == rank(old, target)
            # the window holds at most six events, those behind the old state's last segment
            start = max((now - 8 - 1) // 6 * 6, now - 6)
            window = Events(history.items[start:now], history.times[start:now])
            assert ranks[staleness.WINDOW][user, place, 2] == rank(old, target, window)


def test_a_state_of_one_event_is_the_oldest(aged, rank):
    _, subject, _, histories, _ = aged
    short = [until(histories[0], 5), until(histories[1], 4)]
    ranks = staleness.aged_ranks(subject.model, subject.params, short, (0, 100), LAST)
    for user, history in enumerate(short):
        now = len(history.items) - 1
        expected = rank(until(history, 1), int(history.items[now]))
        assert ranks[staleness.STALE][user, 1, 1] == expected


def test_targets_are_the_newest_events(aged):
    session, _, users, histories, _ = aged
    targets = stored.targets(users, histories, LAST)
    for user, position, item in zip(*targets.values(), strict=True):
        history = session.history(int(user))
        assert position in (len(history) - 2, len(history) - 1)
        assert history[position] == item


def test_rows_of_staleness(lab):
    experiment = staleness.staleness(lab)
    rows = {cell.name: cell.make() for cell in experiment.cells}
    assert [row["name"] for row in rows.values()] == list(rows)
    assert len(rows) == 3 * len(AGES)
    fresh = rows["extended, 0"]
    assert fresh["recall_of_age_0"] == pytest.approx(1)
    assert rows["extended, 8"]["ranks_that_differ"] == 0
    assert rows["extended, 8"]["recall@10"] == fresh["recall@10"]
    assert rows["not extended, 8"]["ranks_that_differ"] > 0
    assert fresh["targets"] == 20


def test_rows_of_encodings(lab):
    rows = [cell.make() for cell in stored.encodings(lab).cells]
    assert len(rows) == 6
    kept, half, small, *outputs = rows
    assert kept["ranks_that_differ"] == 0
    assert kept["recall_of_float32"] == pytest.approx(1)
    # two segments of two tokens, keys and values of the second layer, width 8
    assert kept["vector_bytes"] == 2 * 2 * 2 * 8 * 4
    assert half["vector_bytes"] * 2 == kept["vector_bytes"]
    assert small["vector_bytes"] == 2 * 2 * 2 * (8 + 2 * 2)  # and a scale for each head
    assert outputs[0]["vector_bytes"] == 2 * 2 * 8 * 4
    assert outputs[0]["row_bytes"] < kept["row_bytes"]
    # asked in float32 the store answers as a state that was never stored
    fresh = staleness.staleness(lab).cells[0].make()
    assert kept["recall@10"] == fresh["recall@10"]
    assert kept["ndcg@10"] == pytest.approx(fresh["ndcg@10"])
