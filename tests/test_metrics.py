"""Metrics by hand and their intervals."""

import numpy as np
import pytest

from jaxrec import metrics


def test_values_by_hand():
    rank = np.asarray([[0, 2, 9], [10, 1, 5]])
    weights = np.asarray([[1, 1, 1], [1, 0, 1]])
    total, weight = metrics.recall(rank, weights, 10)
    assert total.tolist() == [3, 1]
    assert weight.tolist() == [3, 2]
    total, _ = metrics.ndcg(rank, weights, 5)
    np.testing.assert_allclose(total, [1 + 1 / np.log2(4), 0])
    total, _ = metrics.mrr(rank, weights, 10)
    np.testing.assert_allclose(total, [1 + 1 / 3 + 1 / 10, 1 / 6])


@pytest.mark.parametrize("name", metrics.METRICS)
def test_masked_equals_filtered(name):
    rng = np.random.default_rng(0)
    rank, keep = rng.integers(0, 30, 50), rng.random(50) < 0.5
    masked = metrics.METRICS[name](rank, keep, 10)
    filtered = metrics.METRICS[name](rank[keep], np.ones(keep.sum()), 10)
    np.testing.assert_allclose(masked, filtered)


def test_interval_covers_the_mean_of_the_population():
    """About 95 % of the intervals hold the true mean."""
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        interval = metrics.bootstrap(rng.exponential(size=200), 400, seed)
        inside += interval.low <= 1 <= interval.high
    assert 0.89 <= inside / 200 <= 0.99


def test_paired_ratio_is_narrower_than_unpaired():
    rng = np.random.default_rng(0)
    b = rng.exponential(size=500)
    a = 0.9 * b + rng.normal(scale=0.01, size=500)
    ratio = metrics.paired_ratio(a, b, 500)
    assert ratio.low < 0.9 < ratio.high
    assert ratio.high - ratio.low < 0.01


def test_nobody_is_an_error():
    with pytest.raises(ValueError, match="no users"):
        metrics.bootstrap(np.zeros(0), 10)
