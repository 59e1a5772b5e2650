import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.evaluation import intervals


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).normal(3, 2, 2000)
    mean, low, high = intervals.bootstrap(values, 2000, 1)
    error = 1.96 * values.std() / np.sqrt(2000)
    np.testing.assert_allclose(mean, values.mean())
    np.testing.assert_allclose([low, high], [mean - error, mean + error], atol=0.1 * error)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    inside = 0
    for trial in range(200):
        _, low, high = intervals.bootstrap(rng.exponential(size=60), 200, trial)
        inside += low <= 1 <= high
    assert 0.87 <= inside / 200 <= 0.99


def test_bootstrap_resamples_all_columns_alike(monkeypatch):
    rng = np.random.default_rng(3)
    values, weights = rng.uniform(size=(50, 2)), rng.uniform(size=50)
    both = np.array(intervals.bootstrap(values, 100, 5, weights=weights))
    single = np.array(intervals.bootstrap(values[:, 1], 100, 5, weights=weights))
    np.testing.assert_allclose(both[:, 1], single)
    np.testing.assert_allclose(both[0], np.average(values, 0, weights))
    monkeypatch.setattr(intervals, "BLOCK", 170)  # a few resamples at a time
    np.testing.assert_allclose(intervals.bootstrap(values, 100, 5, weights=weights)[0], both[0])


@given(st.floats(0.1, 10), st.integers(0, 9))
def test_ratio_of_proportional_rows_has_no_spread(factor, seed):
    b = np.random.default_rng(seed).uniform(0.1, 1, 30)
    np.testing.assert_allclose(intervals.paired_ratio(factor * b, b, 50), factor, rtol=1e-9)


def test_pairing_narrows_the_ratio():
    rng = np.random.default_rng(4)
    ease = rng.exponential(size=500)
    a, b = ease * rng.uniform(0.9, 1.1, 500), ease * rng.uniform(0.9, 1.1, 500)
    ratio, low, high = intervals.paired_ratio(a, b, 300)
    assert low < ratio < high
    assert high - low < 0.03
    _, low_a, high_a = intervals.bootstrap(a, 300)
    assert high - low < 0.3 * (high_a - low_a) / b.mean()


def test_ratio_to_nothing_is_not_a_number():
    some = np.array([[1.0, 1.0], [1.0, 0.0]])
    none = np.array([[0.0, 1.0], [0.0, 0.0]])
    result = np.array(intervals.paired_ratio(some, none, 20))
    assert np.isnan(result[:, 0]).all()
    np.testing.assert_allclose(result[:, 1], 1)


def test_bootstrap_without_samples_or_users():
    mean, low, high = intervals.bootstrap(np.ones(3), 0)
    assert (mean, np.isnan(low), np.isnan(high)) == (1, True, True)
    with pytest.raises(ValueError, match="no users"):
        intervals.bootstrap(np.ones(0), 10)
    with pytest.raises(ValueError, match="same users"):
        intervals.paired_ratio(np.ones(3), np.ones(2), 5)


def test_share_of_a_gap_is_of_the_same_users():
    rng = np.random.default_rng(0)
    recent, full = rng.random(50), rng.random(50) + 0.3
    found = intervals.gap_closed(recent + 0.25 * (full - recent), recent, full, 100)
    np.testing.assert_allclose(found.share, 0.25)
    np.testing.assert_allclose(found.gap, intervals.bootstrap(full - recent, 100))
    assert found.without_gap == 0
    with pytest.raises(ValueError, match="same users"):
        intervals.gap_closed(recent, recent[1:], full, 10)


def test_where_there_is_no_gap_there_is_no_share():
    values = np.random.default_rng(0).random(50)
    found = intervals.gap_closed(values, values, values, 100)
    assert np.isnan(found.share).all()
    assert found.without_gap == 1
    unsampled = intervals.gap_closed(values, values, values + 1, 0)
    assert (unsampled.share.mean, unsampled.gap.mean) == pytest.approx((0, 1))
    assert np.isnan([unsampled.share.low, unsampled.gap.high, unsampled.without_gap]).all()
