"""Draws whose cost does not depend on the catalog, against the ones that read all of it."""

import jax
import numpy as np
import pytest

from jaxrec import losses


def test_uniform_draws_are_the_same():
    key = jax.random.key(3)
    ids, log_q = losses.sample_negatives(key, 50, 20)
    drawn = losses.draw_negatives(key, 50, 20)
    np.testing.assert_array_equal(drawn.ids, ids)
    np.testing.assert_allclose(drawn.log_q, log_q[ids], rtol=1e-6)


@pytest.mark.parametrize("width", [1, 4, 64])
def test_popular_draws_have_the_same_distribution(width):
    counts = np.asarray([9, 0, 1, 5, 0, 300, 2, 2, 80, 0, 1, 7, 0])
    items, count = len(counts) - 1, 200_000
    _, log_q = losses.sample_negatives(jax.random.key(0), items, 1, counts, "popularity")
    sampler = losses.make_sampler(counts, width)
    drawn = losses.draw_negatives(jax.random.key(1), items, count, sampler)
    ids = np.asarray(drawn.ids)
    assert ids.min() >= 1
    share = np.bincount(ids, minlength=items + 1) / count
    expected = np.exp(np.asarray(log_q))
    error = np.sqrt(expected / count)
    assert (np.abs(share - expected) <= 5 * error + 1e-12).all()
    np.testing.assert_allclose(drawn.log_q, log_q[ids], rtol=1e-4, atol=1e-4)


def test_no_counts_is_uniform():
    drawn = losses.draw_negatives(jax.random.key(0), 4, 1000, losses.make_sampler(np.zeros(5)))
    assert set(np.asarray(drawn.ids).tolist()) == {1, 2, 3, 4}
    np.testing.assert_allclose(drawn.log_q, -np.log(4), rtol=1e-6)
