import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.evaluation import metrics
from tests.reference import metrics as reference

RANKS = np.array([0, 1, 4, 9, 10, 400], np.int32)
WEIGHTS = np.array([1, 0.5, 2, 1, 1, 0], np.float32)


@pytest.mark.parametrize("name", metrics.NAMES)
@pytest.mark.parametrize("k", [1, 2, 10])
@pytest.mark.parametrize("xp", [np, jnp])
def test_metrics_equal_their_definition(name, k, xp):
    gains = metrics.gain(name, xp.asarray(RANKS), k)
    assert isinstance(gains, type(xp.asarray(RANKS)))
    expected = [reference.gain(name, rank, k) for rank in RANKS]
    np.testing.assert_allclose(gains, expected, rtol=1e-6)
    users, means = metrics.over_users(np.asarray(gains), WEIGHTS, np.zeros(len(RANKS), np.int64))
    np.testing.assert_array_equal(users, [0])
    np.testing.assert_allclose(means, [np.dot(WEIGHTS, expected) / 5.5], rtol=1e-6)


def test_known_values():
    assert metrics.gain("recall", np.array([9]), 10) == [1]
    assert metrics.gain("recall", np.array([10]), 10) == [0]
    np.testing.assert_allclose(metrics.gain("ndcg", np.array([2]), 10), [0.5])
    np.testing.assert_allclose(metrics.gain("mrr", np.array([3])), [0.25])


def test_masked_equals_filtered():
    kept, users = WEIGHTS > 0, np.array([3, 3, 5, 5, 5, 9])
    for name in metrics.NAMES:
        gains = metrics.gain(name, RANKS, 10)
        masked = metrics.over_users(gains, WEIGHTS, users)
        filtered = metrics.over_users(gains[kept], WEIGHTS[kept], users[kept])
        np.testing.assert_array_equal(masked, filtered)


def test_errors_name_the_metric():
    with pytest.raises(ValueError, match="precision"):
        metrics.gain("precision", RANKS, 10)
    with pytest.raises(ValueError, match="recall@0"):
        metrics.gain("recall", RANKS, 0)


def test_over_users():
    values = np.array([[1, 0], [0, 1], [1, 1], [5, 5]])
    users, means = metrics.over_users(values, np.array([1, 3, 2, 0]), np.array([7, 7, 2, 9]))
    np.testing.assert_array_equal(users, [2, 7])
    np.testing.assert_allclose(means, [[1, 1], [0.25, 0.75]])
