import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

from jaxrec.items import repeats

HALF_LIVES = repeats.HalfLives((2, 7.5, 0), (40.0,))
candidate_bonus = jax.jit(repeats.candidate_bonus, static_argnums=4)


def slow_counts(events, times, item):
    """[K] straight from the definition; `events` are those before the query, without padding."""
    counts = np.zeros(HALF_LIVES.number)
    for place, event in enumerate(events):
        if event == item:
            ages = [(len(events) - 1 - place, h) for h in HALF_LIVES.events]
            ages += [(int(times[-1]) - int(times[place]), h) for h in HALF_LIVES.seconds]
            counts += [0.5 ** (age / h) if h else 1.0 for age, h in ages]
    return counts


def clock(rng, shape):
    """Nondecreasing seconds with ties; those of padding mean nothing."""
    return np.cumsum(rng.choice([0, 0, 7, 90], shape), axis=-1).astype(np.int32)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=9, max_size=9), min_size=2, max_size=2),
    st.integers(0, 99),
)
def test_all_three_views_follow_the_definition(rows, seed):
    items, rng = np.asarray(rows, np.int32), np.random.default_rng(seed)
    times = np.where((items > 0) | (rng.random(items.shape) < 0.5), clock(rng, items.shape), 0)
    times = times.astype(np.int32) * 10**6  # padding may stand at any time
    ids, features = (np.asarray(a) for a in repeats.history_items(items, times, HALF_LIVES))
    events = np.asarray(repeats.event_features(items, times, HALF_LIVES))
    candidates = np.asarray([3, 1, 9], np.int32)
    gates = rng.normal(size=(*items.shape, HALF_LIVES.number)).astype(np.float32)
    shared = np.asarray(candidate_bonus(gates, items, times, candidates, HALF_LIVES))
    for b, row in enumerate(items):
        seen, when = row[row > 0].tolist(), times[b][row > 0]
        assert sorted(i for i in ids[b] if i) == sorted(set(seen))
        for place, item in enumerate(ids[b]):
            want = slow_counts(seen, when, item) if item else np.zeros(HALF_LIVES.number)
            np.testing.assert_allclose(features[b, place], np.log1p(want), atol=2e-6)
        for slot, item in enumerate(row):
            exists = (row > 0) & (np.arange(len(row)) < slot)
            behind = (row > 0) & (np.arange(len(row)) <= slot)
            for n, candidate in enumerate(candidates):
                counts = slow_counts(row[behind].tolist(), times[b][behind], candidate)
                want = gates[b, slot] @ np.log1p(counts)
                np.testing.assert_allclose(shared[b, slot, n], want, atol=4e-6)
            if item:
                want = np.log1p(slow_counts(row[exists].tolist(), times[b][exists], item))
                np.testing.assert_allclose(events[b, slot], want, atol=2e-6)


def walked_features(items, times, candidates):
    """[B, M, N, K]: every candidate's counts, carried from event to event."""
    features = np.zeros((*items.shape, len(candidates), HALF_LIVES.number))
    for b, (row, when) in enumerate(zip(items, times, strict=True)):
        counts, clock = np.zeros((len(candidates), HALF_LIVES.number)), 0
        for m, (item, time) in enumerate(zip(row, when, strict=True)):
            if item:
                ages = [(1, h) for h in HALF_LIVES.events]
                ages += [(max(clock, int(time)) - clock, h) for h in HALF_LIVES.seconds]
                counts = counts * [0.5 ** (age / h) if h else 1.0 for age, h in ages]
                counts += (candidates == item)[:, None]
                clock = max(clock, int(time))
            features[b, m] = np.log1p(counts)
    return features


ROWS = st.lists(st.integers(0, 5), min_size=8, max_size=8)


@pytest.mark.parametrize("capacity", [1, 3, 7, 128])
def test_candidates_in_rounds_follow_the_walk(capacity, monkeypatch):
    """Duplicates, padding, empty histories, times that go back; more matches than one round holds.

    A history holds up to seven of the seven candidates: of the four capacities two overflow.
    """
    monkeypatch.setattr(repeats, "CAPACITY", capacity)

    @jax.jit
    def ours(gates, items, times, candidates, cotangent):
        bonus = lambda g: repeats.candidate_bonus(g, items, times, candidates, HALF_LIVES)  # noqa: E731
        value, pull = jax.vjp(bonus, gates)
        return value, *pull(cotangent)

    @settings(max_examples=25, deadline=None)
    @given(
        st.tuples(ROWS, st.just([0] * 8), ROWS),
        st.lists(st.integers(0, 6), min_size=7, max_size=7),
        st.integers(0, 99),
    )
    def check(rows, candidates, seed):
        rng = np.random.default_rng(seed)
        items, candidates = np.asarray(rows, np.int32), np.asarray(candidates, np.int32)
        times = rng.integers(0, 200, items.shape).astype(np.int32)
        gates = rng.normal(size=(*items.shape, HALF_LIVES.number)).astype(np.float32)
        cotangent = rng.normal(size=(*items.shape, 7)).astype(np.float32)
        value, gradient = ours(gates, items, times, candidates, cotangent)
        features = walked_features(items, times, candidates)
        np.testing.assert_allclose(value, np.einsum("bmk,bmnk->bmn", gates, features), atol=4e-6)
        wanted = np.einsum("bmn,bmnk->bmk", cotangent, features)
        np.testing.assert_allclose(gradient, wanted, atol=1e-5)
        same = candidates[:, None] == candidates
        for first, second in np.argwhere(same):
            np.testing.assert_array_equal(value[..., first], value[..., second])

    check()


def test_columns_by_products_equal_columns_by_element(monkeypatch):
    """What a TPU runs."""
    rng = np.random.default_rng(2)
    items = rng.integers(1, 6, (2, 7)).astype(np.int32)
    times, candidates = clock(rng, (2, 7)), np.asarray([1, 3, 3, 9, 5, 2], np.int32)
    gates = rng.normal(size=(2, 7, HALF_LIVES.number)).astype(np.float32)
    cotangent = rng.normal(size=(2, 7, 6)).astype(np.float32)

    def both():
        bonus = lambda g: repeats.candidate_bonus(g, items, times, candidates, HALF_LIVES)  # noqa: E731
        value, pull = jax.vjp(bonus, gates)
        return value, *pull(cotangent)

    monkeypatch.setattr(repeats, "CAPACITY", 4)
    by_element = both()
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, tpu, default: tpu(*args))
    for one, other in zip(both(), by_element, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_gradient_of_the_gates():
    """The bonus is linear in the gates: its gradient is the features, counted again."""
    rng = np.random.default_rng(1)
    items = rng.integers(0, 4, (2, 7)).astype(np.int32)
    times, candidates = clock(rng, (2, 7)), np.asarray([1, 3], np.int32)
    gates = rng.normal(size=(2, 7, HALF_LIVES.number)).astype(np.float32)
    wanted = rng.normal(size=(2, 7, 2)).astype(np.float32)
    bonus = lambda g: candidate_bonus(g, items, times, candidates, HALF_LIVES)  # noqa: E731
    gradient = jax.grad(lambda g: (bonus(g) * wanted).sum())(gates)
    for k in range(HALF_LIVES.number):
        one = np.zeros_like(gates)
        one[..., k] = 1
        expected = (np.asarray(bonus(one)) * wanted).sum(-1)
        np.testing.assert_allclose(gradient[..., k], expected, rtol=1e-5, atol=1e-6)


def test_long_histories_keep_their_precision():
    """A scan over sorted runs, not differences of sums: the 2000th event is as exact as the 2nd."""
    rng = np.random.default_rng(0)
    items, times = rng.integers(1, 6, (1, 2000)).astype(np.int32), clock(rng, (1, 2000))
    ids, features = (np.asarray(a) for a in repeats.history_items(items, times, HALF_LIVES))
    for item in range(1, 6):
        place = int(np.flatnonzero(ids[0] == item)[0])
        want = np.log1p(slow_counts(items[0].tolist(), times[0], item))
        np.testing.assert_allclose(features[0, place], want, rtol=2e-6)
