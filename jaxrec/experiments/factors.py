"""Non-negative matrix factorisation, and how its components divide among tokens."""

import numpy as np

TINY = 1e-12


def nmf(
    matrix: np.ndarray, components: int, steps: int = 200, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Factors W [R, c] and H [c, X] >= 0 with W H near a matrix [R, X] >= 0.

    Multiplicative updates of the squared error (Lee and Seung, Algorithms for Non-negative
    Matrix Factorization, 2001, eq. 4), under which it never grows. Also returns the error
    |matrix - W H|^2 before the first and behind every step [steps + 1]. Raises ValueError for
    negative values and for less than one component.
    """
    matrix = np.asarray(matrix, np.float64)
    if components < 1 or matrix.ndim != 2 or (matrix < 0).any():
        raise ValueError(
            f"components={components}, matrix {matrix.shape}: one component or more and values "
            "of zero or more are needed"
        )
    rng = np.random.default_rng(seed)
    start = np.sqrt(max(matrix.mean(), TINY) / components)
    w = start * rng.uniform(0.5, 1.5, (matrix.shape[0], components))
    h = start * rng.uniform(0.5, 1.5, (components, matrix.shape[1]))
    errors = [np.square(matrix - w @ h).sum()]
    for _ in range(steps):
        h *= (w.T @ matrix) / np.maximum(w.T @ w @ h, TINY)
        w *= (matrix @ h.T) / np.maximum(w @ (h @ h.T), TINY)
        errors.append(np.square(matrix - w @ h).sum())
    return w, h, np.asarray(errors)


def explained(matrix: np.ndarray, w: np.ndarray, h: np.ndarray) -> float:
    """Share of the variation around the mean row that W H accounts for."""
    around = np.square(matrix - matrix.mean(0)).sum()
    return float(1 - np.square(matrix - w @ h).sum() / max(around, TINY))


def concentration(mass: np.ndarray, tokens: int) -> float:
    """Largest share of a component that one token has, mean over components by mass.

    mass: [U k, c], rows user after user; between 1 / k and 1.
    """
    by_token = mass.reshape(-1, tokens, mass.shape[1]).sum(0)
    return float(by_token.max(0).sum() / max(by_token.sum(), TINY))
