"""Means over users and seeds: values per user, resampling of both, pairing."""

import numpy as np
import pytest

from jaxrec.evaluation.ranks import Ranks
from jaxrec.experiments import statistics


def ranks(user, rank):
    user, rank = np.asarray(user), np.asarray(rank)
    return Ranks(user, np.arange(len(user)), np.ones_like(user), rank, None)


def test_values_are_means_over_a_users_targets():
    one = ranks([3, 3, 5], [0, 20, 4])
    other = ranks([3, 3, 5], [0, 0, 30])
    result = statistics.values([one, other], "recall", 10)
    np.testing.assert_allclose(result, [[0.5, 1.0], [1.0, 0.0]])


def test_seeds_of_other_users_are_refused():
    with pytest.raises(ValueError, match="different users"):
        statistics.values([ranks([1, 2], [0, 0]), ranks([1, 3], [0, 0])], "recall", 10)


def test_draws_resample_seeds_and_users():
    table = np.asarray([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]])
    result = statistics.draws(table, 4000)
    # every draw is a mean of drawn seeds plus one of drawn users: 10 x {0, 1/2, 1} + 0..2
    assert set(np.round(result * 6).astype(int)) <= set(range(73))
    assert result.mean() == pytest.approx(table.mean(), abs=0.3)
    # variances of the two independent parts add up: 100 / 4 / 2 and 2 / 3 / 3
    assert result.var() == pytest.approx(25 / 2 + 2 / 9, rel=0.1)
    one = statistics.draws(table[:1], 4000)
    assert one.var() == pytest.approx(2 / 9, rel=0.1)


def test_interval_covers_the_mean_and_shrinks_with_users():
    rng = np.random.default_rng(0)
    few = statistics.interval(rng.random((1, 50)), 500)
    many = statistics.interval(rng.random((1, 5000)), 500)
    assert few.low < few.mean < few.high
    assert many.high - many.low < (few.high - few.low) / 5


def test_ratio_is_paired():
    rng = np.random.default_rng(0)
    base = rng.random((2, 40)) + 0.1
    exact = statistics.ratio(3 * base, base, 100)
    assert (exact.mean, exact.low, exact.high) == pytest.approx((3, 3, 3))
    other = statistics.ratio(3 * np.roll(base, 1, axis=1), base, 100)
    assert other.mean == pytest.approx(3)
    assert other.high - other.low > 0.1


def test_ratio_to_nothing_is_not_a_number():
    result = statistics.ratio(np.ones((1, 3)), np.zeros((1, 3)), 10)
    assert not np.isfinite(result.mean)
    assert np.isnan(result.low)
    with pytest.raises(ValueError, match="other seeds or users"):
        statistics.ratio(np.ones((1, 3)), np.ones((2, 3)), 10)
