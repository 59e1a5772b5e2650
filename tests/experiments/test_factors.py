"""Non-negative factorisation: the objective falls, planted factors are found."""

import numpy as np
import pytest

from jaxrec.experiments import factors


def test_every_step_lowers_the_error():
    rng = np.random.default_rng(0)
    matrix = rng.random((30, 20)) * (rng.random((30, 20)) < 0.5)
    w, h, errors = factors.nmf(matrix, 4, steps=100)
    assert (w >= 0).all()
    assert (h >= 0).all()
    assert (np.diff(errors) <= 1e-9 * errors[0]).all()
    assert errors[-1] < 0.8 * errors[0]
    assert errors[-1] == pytest.approx(np.square(matrix - w @ h).sum())


def test_planted_factors_are_found():
    rng = np.random.default_rng(1)
    parts = np.kron(np.eye(3), np.ones(5))  # three groups of five columns
    owner = np.arange(60) % 3
    matrix = rng.uniform(0.5, 1.5, (60, 1)) * parts[owner]
    w, h, errors = factors.nmf(matrix, 3, steps=500, seed=2)
    assert errors[-1] < 1e-3 * np.square(matrix).sum()
    assert factors.explained(matrix, w, h) > 0.99
    # rows 0, 1, 2, 0, 1, 2, ...: as tokens of users, each has a component of its own
    mass = w * h.sum(1)
    assert factors.concentration(mass, 3) > 0.98
    shuffled = np.random.default_rng(0).permuted(mass.reshape(-1, 3, 3), axis=1)
    assert factors.concentration(shuffled.reshape(60, 3), 3) < 0.6


def test_wrong_input_is_refused():
    for matrix, components in ((-np.ones((2, 2)), 1), (np.ones((2, 2)), 0), (np.ones(3), 1)):
        with pytest.raises(ValueError, match="components"):
            factors.nmf(matrix, components)


def test_a_matrix_of_nothing_has_factors():
    w, h, errors = factors.nmf(np.zeros((4, 3)), 2, steps=5)
    assert np.isfinite(w).all()
    assert np.isfinite(h).all()
    assert errors[-1] < 1e-9
