"""Ranking metrics from ranks, and confidence intervals over users.

A rank counts the candidates that stand before the target (0 is best); ties count against the
model (`retrieval.rank_of_targets`). Metrics return (sum, weight) over the last axis.
"""

from typing import NamedTuple

import numpy as np

from jaxrec.types import Array


def recall(rank: Array, weights: Array, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall@k, with one relevant item per target the same as hit rate."""
    return _total(np.asarray(rank) < k, weights)


def ndcg(rank: Array, weights: Array, k: int) -> tuple[np.ndarray, np.ndarray]:
    """NDCG@k with one relevant item: 1 / log2(rank + 2)."""
    rank = np.asarray(rank)
    return _total(np.where(rank < k, 1 / np.log2(np.maximum(rank, 0) + 2.0), 0.0), weights)


def mrr(rank: Array, weights: Array, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean reciprocal rank, 0 behind the first k."""
    rank = np.asarray(rank)
    return _total(np.where(rank < k, 1 / (np.maximum(rank, 0) + 1.0), 0.0), weights)


METRICS = {"recall": recall, "ndcg": ndcg, "mrr": mrr}


def _total(gain: np.ndarray, weights: Array) -> tuple[np.ndarray, np.ndarray]:
    weights = np.asarray(weights, np.float64)
    return (gain * weights).sum(-1), weights.sum(-1)


class Interval(NamedTuple):
    """A mean over users and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: Array, samples: int, seed: int = 0) -> Interval:
    """Percentile interval of the mean of `values` [U] when users are drawn again.

    samples 0 gives an interval of no width. Raises ValueError without users.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        raise ValueError("no users: a mean over nobody is not defined")
    means = _resample(values[None], samples, seed)[0]
    return _interval(float(values.mean()), means)


def paired_ratio(a: Array, b: Array, samples: int, seed: int = 0) -> Interval:
    """mean(a) / mean(b) of the same users [U], both drawn together."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or not len(a):
        raise ValueError(f"paired rows need the same users, got {a.shape} and {b.shape}")
    if not b.mean():
        return Interval(float("nan"), float("nan"), float("nan"))
    top, bottom = _resample(np.stack([a, b]), samples, seed)
    return _interval(float(a.mean() / b.mean()), top[bottom > 0] / bottom[bottom > 0])


def _resample(rows: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """[rows, samples] means of users drawn with replacement (as multinomial counts)."""
    users = rows.shape[1]
    counts = np.random.default_rng(seed).multinomial(users, np.full(users, 1 / users), samples)
    return rows @ counts.T / users


def _interval(mean: float, samples: np.ndarray) -> Interval:
    if not len(samples):
        return Interval(mean, mean, mean)
    low, high = np.quantile(samples, [0.025, 0.975])
    return Interval(mean, float(low), float(high))
