"""Schedules, clipping, weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.config import TrainConfig
from jaxrec.training import optimizer


def rates(config, count=None):
    rate = jax.jit(jax.vmap(optimizer.schedule(config)))
    return np.asarray(rate(jnp.arange(count or config.steps)), np.float64)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedule_against_its_formula(schedule):
    config = TrainConfig(
        steps=50, warmup=10, learning_rate=0.02, final_lr_fraction=0.1, schedule=schedule
    )
    expected = []
    for update in range(1, 71):  # one more than the count
        if update <= 10:
            expected.append(0.02 * update / 10)
            continue
        done = min(1.0, (update - 10) / 40)
        shape = {
            "cosine": 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * done)),
            "linear": 0.1 + 0.9 * (1 - done),
            "constant": 1.0,
        }[schedule]
        expected.append(0.02 * shape)
    np.testing.assert_allclose(rates(config, 70), expected, rtol=1e-5)


def test_no_warmup_starts_at_the_full_rate_and_long_warmup_works():
    assert rates(TrainConfig(steps=5, warmup=0, schedule="constant"))[0] == pytest.approx(1e-3)
    long = rates(TrainConfig(steps=5, warmup=100))
    np.testing.assert_allclose(long, 1e-3 * np.arange(1, 6) / 100, rtol=1e-5)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=6), st.floats(0.01, 100))
def test_clip_equals_optax(values, limit):
    tree = {"a": jnp.asarray(values, jnp.float32), "b": jnp.asarray([[values[0]]], jnp.float32)}
    squares = optimizer.squared_norms(tree)
    norm = jnp.sqrt(squares.sum())
    np.testing.assert_allclose(norm, optax.tree.norm(tree), rtol=1e-5)
    clipped = optimizer.clip(tree, norm, limit)
    expected, _ = optax.clip_by_global_norm(limit).update(tree, optax.EmptyState())
    for mine, theirs in zip(jax.tree.leaves(clipped), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_clip_off():
    tree = {"a": jnp.asarray([3e8, 4e8])}
    assert optimizer.clip(tree, jnp.float32(5e8), 0.0) is tree


def test_decay_pulls_matrices_and_tables_alone():
    params = {
        "item": {"embedding": jnp.ones((3, 2)), "bias": jnp.ones(3), "mean": jnp.ones(2)},
        "layers": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2, 2)), "scale": jnp.ones(2)},
        "tokens": jnp.ones((1, 2)),
    }
    config = TrainConfig(weight_decay=0.5, learning_rate=0.1, warmup=0, schedule="constant")
    tx = optimizer.adamw(config)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    moved = {
        name: bool((np.asarray(u) != 0).all())
        for name, u in optimizer.leaves.flatten(updates).items()
    }
    assert moved == {
        "item/bias": False,
        "item/embedding": True,
        "item/mean": False,
        "layers/bias": False,
        "layers/kernel": True,
        "layers/scale": False,
        "tokens": False,
    }
    np.testing.assert_allclose(updates["layers"]["kernel"], -0.05, rtol=1e-6)
