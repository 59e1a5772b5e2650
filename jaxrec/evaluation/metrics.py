"""Ranking metrics from ranks, and confidence intervals over users.

`ranks` [P] are 0-based: how many other candidates score at least as high as the target
(`retrieval.rank_of_targets`), so ties count against the model. Every position has one
relevant item, the event that happened; NDCG's ideal gain is therefore 1.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxrec.types import Array

NAMES = ("recall", "ndcg", "mrr")
BLOCK = 4_000_000  # resampled users in memory at a time


def gain(name: str, ranks: Array, k: int | None = None) -> Any:
    """[P] float32, what each target contributes; NumPy in, NumPy out, JAX in, JAX out.

    recall: 1 if the target is among the first k (hit rate: there is one relevant item).
    ndcg: 1 / log2(2 + rank) among the first k (Järvelin & Kekäläinen 2002).
    mrr: 1 / (1 + rank) among the first k. k None: the whole catalog.
    """
    if name not in NAMES:
        raise ValueError(f"metric {name!r}: allowed are {', '.join(NAMES)}")
    if k is not None and k < 1:
        raise ValueError(f"{name}@{k}: k must be positive")
    xp = ranks.__array_namespace__()
    place = ranks.astype(xp.float32)
    if name == "recall":
        gains = xp.ones_like(place)
    elif name == "ndcg":
        gains = 1 / xp.log2(place + 2)
    else:
        gains = 1 / (place + 1)
    return gains if k is None else xp.where(ranks < k, gains, xp.zeros_like(gains))


def mean(name: str, ranks: Array, weights: Array, k: int | None = None) -> tuple[Any, Any]:
    """(sum of weight x gain, sum of weights); a position with weight 0 counts for nothing."""
    xp = ranks.__array_namespace__()
    gains = xp.where(weights != 0, gain(name, ranks, k), xp.zeros_like(weights))
    return xp.sum(gains * weights), xp.sum(weights)


def recall(ranks: Array, weights: Array, k: int) -> tuple[Any, Any]:
    """Recall@k, with one relevant item also the hit rate: (sum, weight)."""
    return mean("recall", ranks, weights, k)


def ndcg(ranks: Array, weights: Array, k: int | None = None) -> tuple[Any, Any]:
    """Normalised discounted cumulative gain @k: (sum, weight)."""
    return mean("ndcg", ranks, weights, k)


def mrr(ranks: Array, weights: Array, k: int | None = None) -> tuple[Any, Any]:
    """Mean reciprocal rank (@k: later ranks count 0): (sum, weight)."""
    return mean("mrr", ranks, weights, k)


def parse(metric: str) -> Callable[[Array, Array], tuple[Any, Any]]:
    """The function (ranks, weights) -> (sum, weight) of a name such as `ndcg@10`."""
    name, _, k = metric.partition("@")
    if name not in NAMES or (k and not k.isdigit()) or (not k and "@" in metric):
        raise ValueError(f"metric {metric!r}: allowed are {', '.join(NAMES)}, with @K or without")
    return functools.partial(mean, name, k=int(k) if k else None)


def over_users(
    values: np.ndarray, weights: np.ndarray, users: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """User ids [U] and each user's weighted mean [U, ...] of its targets' values [P, ...].

    Users come in increasing order; targets with weight 0 are left out, and users without any
    other target with them.
    """
    kept = weights > 0
    ids, index = np.unique(users[kept], return_inverse=True)
    weight = weights[kept].astype(np.float64)
    shape = (-1,) + (1,) * (values.ndim - 1)
    sums = np.zeros((len(ids), *values.shape[1:]))
    np.add.at(sums, index, values[kept] * weight.reshape(shape))
    return ids, sums / np.bincount(index, weight, len(ids)).reshape(shape)


class Interval(NamedTuple):
    """A statistic over users and its bootstrap interval; NaN where it is not known."""

    mean: Any
    low: Any
    high: Any


def bootstrap(
    values: Array,
    samples: int,
    seed: int = 0,
    *,
    weights: Array | None = None,
    level: float = 0.95,
) -> Interval:
    """Mean over users and its percentile bootstrap interval, users drawn with replacement.

    values: [U], or [U, M] for M metrics of the same users, resampled together; weights: [U],
    default equal. `samples` 0: low and high are NaN. The same seed draws the same users
    whatever the values. Raises ValueError without users.
    """
    values, weights = _checked(values, weights)
    draws = _resampled(values, weights, samples, seed)
    return _interval(np.average(values, 0, weights), draws, level)


def paired_ratio(
    a: Array,
    b: Array,
    samples: int,
    seed: int = 0,
    *,
    weights: Array | None = None,
    level: float = 0.95,
) -> Interval:
    """mean(a) / mean(b) over the same users and its interval; shapes as in `bootstrap`.

    Row u of a and b is the same user and is drawn for both, so what makes a user easy for both
    cancels. NaN where mean(b) is 0; resamples in which it is are left out of the interval.
    """
    if np.shape(a) != np.shape(b):
        raise ValueError(f"paired rows need the same users, got {np.shape(a)} and {np.shape(b)}")
    a, weights = _checked(a, weights)
    b, _ = _checked(b, weights)
    above = _resampled(a, weights, samples, seed)
    below = _resampled(b, weights, samples, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.average(a, 0, weights) / np.average(b, 0, weights)
        draws = above / below
    return _interval(_finite(ratio), _finite(draws), level)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _checked(values: Array, weights: Array | None) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values, np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    if not len(values) or weights.shape != values.shape[:1] or not weights.sum() > 0:
        raise ValueError(
            f"values {values.shape} and weights {weights.shape} of users: no users, or not one "
            "weight per user: a mean over nobody is not defined"
        )
    return values, weights


def _resampled(values: np.ndarray, weights: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Weighted means [samples, ...] of users drawn with replacement."""
    rng = np.random.default_rng(seed)
    users = len(values)
    size = max(1, BLOCK // users)
    shape = (-1,) + (1,) * (values.ndim - 1)
    weighted = values * weights.reshape(shape)
    means = [np.zeros((0, *values.shape[1:]))]
    for start in range(0, samples, size):
        rows = min(size, samples - start)
        drawn = rng.integers(users, size=(rows, users)) + users * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users)
        with np.errstate(divide="ignore", invalid="ignore"):
            means.append(counts @ weighted / (counts @ weights).reshape(shape))
    return np.concatenate(means)


def _interval(center: np.ndarray, draws: np.ndarray, level: float) -> Interval:
    none = np.isnan(draws).all(0)  # no resample at all counts too
    tail = 50 * (1 - level)
    rows = draws if len(draws) else np.zeros((1, *np.shape(center)))
    low, high = np.nanpercentile(np.where(none, 0.0, rows), [tail, 100 - tail], axis=0)
    return Interval(center, np.where(none, np.nan, low), np.where(none, np.nan, high))
