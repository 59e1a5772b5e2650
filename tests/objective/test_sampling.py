"""Drawn negatives: their frequencies, and draws whose cost does not depend on the catalog."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.objective import sampling


def test_uniform_draws_are_the_same():
    key = jax.random.key(3)
    ids, log_q = sampling.sample_negatives(key, 50, 20)
    drawn = sampling.draw_negatives(key, 50, 20)
    np.testing.assert_array_equal(drawn.ids, ids)
    np.testing.assert_allclose(drawn.log_q, log_q[ids], rtol=1e-6)


@pytest.mark.parametrize("width", [1, 4, 64])
def test_popular_draws_have_the_same_distribution(width):
    counts = np.asarray([9, 0, 1, 5, 0, 300, 2, 2, 80, 0, 1, 7, 0])
    items, count = len(counts) - 1, 200_000
    _, log_q = sampling.sample_negatives(jax.random.key(0), items, 1, counts, "popularity")
    sampler = sampling.make_sampler(counts, width)
    drawn = sampling.draw_negatives(jax.random.key(1), items, count, sampler)
    ids = np.asarray(drawn.ids)
    assert ids.min() >= 1
    share = np.bincount(ids, minlength=items + 1) / count
    expected = np.exp(np.asarray(log_q))
    error = np.sqrt(expected / count)
    assert (np.abs(share - expected) <= 5 * error + 1e-12).all()
    np.testing.assert_allclose(drawn.log_q, log_q[ids], rtol=1e-4, atol=1e-4)


def test_no_counts_is_uniform():
    drawn = sampling.draw_negatives(jax.random.key(0), 4, 1000, sampling.make_sampler(np.zeros(5)))
    assert set(np.asarray(drawn.ids).tolist()) == {1, 2, 3, 4}
    np.testing.assert_allclose(drawn.log_q, -np.log(4), rtol=1e-6)


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_sampled_frequencies_follow_log_q(kind):
    counts = np.array([99, 0, 1, 3, 10, 100])
    ids, log_q = sampling.sample_negatives(jax.random.key(0), 5, 40_000, jnp.asarray(counts), kind)
    q = np.exp(log_q)
    assert q[0] == 0
    assert q[1:].min() >= 0.1 / 5 - 1e-6
    np.testing.assert_allclose(q.sum(), 1, rtol=1e-5)
    found = np.bincount(ids, minlength=6) / 40_000
    np.testing.assert_allclose(found, q, atol=4 * np.sqrt(0.25 / 40_000))
    if kind == "popularity":
        share = counts[1:] ** 0.75 / np.sum(counts[1:] ** 0.75)
        np.testing.assert_allclose(q[1:], 0.02 + 0.9 * share, rtol=1e-5)


def test_sampling_without_any_count_is_uniform():
    ids, log_q = sampling.sample_negatives(jax.random.key(0), 3, 100, jnp.zeros(4), "popularity")
    assert set(np.asarray(ids).tolist()) == {1, 2, 3}
    np.testing.assert_allclose(np.exp(log_q[1:]), 1 / 3, rtol=1e-6)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"counts has shape \(3,\)"):
        sampling.sample_negatives(jax.random.key(0), 5, 2, jnp.ones(3), "popularity")
    with pytest.raises(ValueError, match="sampling='frequency'"):
        sampling.sample_negatives(jax.random.key(0), 5, 2, None, "frequency")
