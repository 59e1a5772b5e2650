import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.evaluation import metrics
from tests.reference import metrics as reference

RANKS = np.array([0, 1, 4, 9, 10, 400], np.int32)
WEIGHTS = np.array([1, 0.5, 2, 1, 1, 0], np.float32)


@pytest.mark.parametrize("name", metrics.NAMES)
@pytest.mark.parametrize("k", [1, 2, 10])
@pytest.mark.parametrize("xp", [np, jnp])
def test_metrics_equal_their_definition(name, k, xp):
    function = getattr(metrics, name)
    total, weight = function(xp.asarray(RANKS), xp.asarray(WEIGHTS), k)
    pairs = zip(RANKS, WEIGHTS, strict=True)
    expected = sum(w * reference.gain(name, rank, k) for rank, w in pairs)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(weight, 5.5)
    again = metrics.parse(f"{name}@{k}")(xp.asarray(RANKS), xp.asarray(WEIGHTS))
    np.testing.assert_array_equal(again, (total, weight))


def test_known_values():
    one = np.ones(1, np.float32)
    assert metrics.recall(np.array([9]), one, 10)[0] == 1
    assert metrics.recall(np.array([10]), one, 10)[0] == 0
    np.testing.assert_allclose(metrics.ndcg(np.array([2]), one, 10)[0], 0.5)
    np.testing.assert_allclose(metrics.mrr(np.array([3]), one)[0], 0.25)


def test_masked_equals_filtered():
    kept = WEIGHTS > 0
    for name in metrics.NAMES:
        masked = metrics.mean(name, RANKS, WEIGHTS, 10)
        assert masked == metrics.mean(name, RANKS[kept], WEIGHTS[kept], 10)


def test_errors_name_the_metric():
    for bad in ("precision@10", "ndcg@", "ndcg@x", "ndcg@-1"):
        with pytest.raises(ValueError, match=bad):
            metrics.parse(bad)
    with pytest.raises(ValueError, match="recall@0"):
        metrics.recall(RANKS, WEIGHTS, 0)


def test_over_users():
    values = np.array([[1, 0], [0, 1], [1, 1], [5, 5]])
    users, means = metrics.over_users(values, np.array([1, 3, 2, 0]), np.array([7, 7, 2, 9]))
    np.testing.assert_array_equal(users, [2, 7])
    np.testing.assert_allclose(means, [[1, 1], [0.25, 0.75]])


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).normal(3, 2, 2000)
    mean, low, high = metrics.bootstrap(values, 2000, 1)
    error = 1.96 * values.std() / np.sqrt(2000)
    np.testing.assert_allclose(mean, values.mean())
    np.testing.assert_allclose([low, high], [mean - error, mean + error], atol=0.1 * error)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    inside = 0
    for trial in range(200):
        _, low, high = metrics.bootstrap(rng.exponential(size=60), 200, trial)
        inside += low <= 1 <= high
    assert 0.87 <= inside / 200 <= 0.99


def test_bootstrap_resamples_all_columns_alike(monkeypatch):
    rng = np.random.default_rng(3)
    values, weights = rng.uniform(size=(50, 2)), rng.uniform(size=50)
    both = np.array(metrics.bootstrap(values, 100, 5, weights=weights))
    single = np.array(metrics.bootstrap(values[:, 1], 100, 5, weights=weights))
    np.testing.assert_allclose(both[:, 1], single)
    np.testing.assert_allclose(both[0], np.average(values, 0, weights))
    monkeypatch.setattr(metrics, "BLOCK", 170)  # a few resamples at a time
    np.testing.assert_allclose(metrics.bootstrap(values, 100, 5, weights=weights)[0], both[0])


@given(st.floats(0.1, 10), st.integers(0, 9))
def test_ratio_of_proportional_rows_has_no_spread(factor, seed):
    b = np.random.default_rng(seed).uniform(0.1, 1, 30)
    np.testing.assert_allclose(metrics.paired_ratio(factor * b, b, 50), factor, rtol=1e-9)


def test_pairing_narrows_the_ratio():
    rng = np.random.default_rng(4)
    ease = rng.exponential(size=500)
    a, b = ease * rng.uniform(0.9, 1.1, 500), ease * rng.uniform(0.9, 1.1, 500)
    ratio, low, high = metrics.paired_ratio(a, b, 300)
    assert low < ratio < high
    assert high - low < 0.03
    _, low_a, high_a = metrics.bootstrap(a, 300)
    assert high - low < 0.3 * (high_a - low_a) / b.mean()


def test_ratio_to_nothing_is_not_a_number():
    some = np.array([[1.0, 1.0], [1.0, 0.0]])
    none = np.array([[0.0, 1.0], [0.0, 0.0]])
    result = np.array(metrics.paired_ratio(some, none, 20))
    assert np.isnan(result[:, 0]).all()
    np.testing.assert_allclose(result[:, 1], 1)


def test_bootstrap_without_samples_or_users():
    mean, low, high = metrics.bootstrap(np.ones(3), 0)
    assert (mean, np.isnan(low), np.isnan(high)) == (1, True, True)
    with pytest.raises(ValueError, match="no users"):
        metrics.bootstrap(np.ones(0), 10)
    with pytest.raises(ValueError, match="same users"):
        metrics.paired_ratio(np.ones(3), np.ones(2), 5)
