"""Bootstrap confidence intervals over users: of a mean, and of a ratio of paired means.

Percentile intervals (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
"""

from typing import NamedTuple

import numpy as np

from jaxrec.types import Array

LEVEL = 0.95  # coverage of every interval
BLOCK = 4_000_000  # resampled users in memory at a time


class Interval(NamedTuple):
    """A statistic over users and its bootstrap interval: numbers, or arrays [M] of M metrics.

    NaN where the statistic or its interval is not defined.
    """

    mean: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray


def bootstrap(
    values: Array,
    samples: int,
    seed: int = 0,
    *,
    weights: Array | None = None,
) -> Interval:
    """Mean over users and its percentile interval, users drawn with replacement.

    Args:
      values: [U], or [U, M] for M metrics of the same users, resampled together.
      samples: number of resamples; with 0 the interval is NaN.
      seed: the same seed draws the same users, whatever the values.
      weights: [U], default equal.

    Raises:
      ValueError: without users, or with other than one weight per user.
    """
    values, weights = _checked(values, weights)
    resampled = _resampled_means(values, weights, samples, seed)
    return _interval(np.average(values, 0, weights), resampled)


def paired_ratio(
    a: Array,
    b: Array,
    samples: int,
    seed: int = 0,
    *,
    weights: Array | None = None,
) -> Interval:
    """mean(a) / mean(b) over the same users and its interval; arguments as in `bootstrap`.

    Entry u of a and of b belong to the same user and are drawn together, so what makes a user
    easy for both cancels. NaN where mean(b) is 0; resamples in which it is 0 are left out.
    """
    if np.shape(a) != np.shape(b):
        raise ValueError(f"paired rows need the same users, got {np.shape(a)} and {np.shape(b)}")
    a, weights = _checked(a, weights)
    b, _ = _checked(b, weights)
    numerators = _resampled_means(a, weights, samples, seed)
    denominators = _resampled_means(b, weights, samples, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.average(a, 0, weights) / np.average(b, 0, weights)
        resampled = numerators / denominators
    return _interval(_finite_or_nan(ratio), _finite_or_nan(resampled))


class Closed(NamedTuple):
    """How much of what `full` has over `recent` a third row keeps, by one metric.

    share: (kept - recent) / (full - recent). gap: full - recent. without_gap: share of the
    resamples in which full is not above recent; they have no share and are left out of its
    interval, so that the share says nothing where they are more than a few. share is NaN where
    full is not above recent at all.
    """

    share: Interval
    gap: Interval
    without_gap: float


class Row(NamedTuple):
    """Mean of a row, and its means [samples] in resamples that other rows share."""

    mean: float
    resampled: np.ndarray


def closed(kept: Row, recent: Row, full: Row) -> Closed:
    """The share of the gap between `recent` and `full` that `kept` closes, on the same draws."""
    gap, gaps = full.mean - recent.mean, full.resampled - recent.resampled
    defined = gaps > 0
    share, shares = float("nan"), np.full(1, np.nan)
    if gap > 0:
        share = (kept.mean - recent.mean) / gap
        shares = (kept.resampled - recent.resampled)[defined] / gaps[defined]
    without = 1.0 - float(defined.mean()) if len(gaps) else float("nan")
    return Closed(_interval(np.asarray(share), shares), _interval(np.asarray(gap), gaps), without)


def gap_closed(kept: Array, recent: Array, full: Array, samples: int, seed: int = 0) -> Closed:
    """The share of the gap that `kept` closes, [U] of the same users each (see `closed`).

    Raises ValueError for rows of different users.
    """
    rows = []
    for values in (kept, recent, full):
        if np.shape(values) != np.shape(kept):
            raise ValueError(
                f"paired rows need the same users, got {np.shape(kept)} and {np.shape(values)}"
            )
        checked, weights = _checked(values, None)
        rows.append(Row(float(checked.mean()), _resampled_means(checked, weights, samples, seed)))
    return closed(*rows)


def _finite_or_nan(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _checked(values: Array, weights: Array | None) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values, np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    if not len(values) or weights.shape != values.shape[:1] or not weights.sum() > 0:
        raise ValueError(
            f"values {values.shape} and weights {weights.shape}: no users, or not one weight per "
            "user; a mean needs at least one user of positive weight"
        )
    return values, weights


def _resampled_means(
    values: np.ndarray, weights: np.ndarray, samples: int, seed: int
) -> np.ndarray:
    """Weighted means [samples, ...] of users drawn with replacement."""
    rng = np.random.default_rng(seed)
    users = len(values)
    block = max(1, BLOCK // users)
    per_user = (-1,) + (1,) * (values.ndim - 1)
    weighted = values * weights.reshape(per_user)
    means = [np.zeros((0, *values.shape[1:]))]
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        drawn = rng.integers(users, size=(rows, users)) + users * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users)
        with np.errstate(divide="ignore", invalid="ignore"):
            means.append(counts @ weighted / (counts @ weights).reshape(per_user))
    return np.concatenate(means)


def _interval(center: np.ndarray, resampled: np.ndarray) -> Interval:
    undefined = np.isnan(resampled).all(0)  # also where there is no resample at all
    tail = 50 * (1 - LEVEL)
    rows = resampled if len(resampled) else np.zeros((1, *np.shape(center)))
    low, high = np.nanpercentile(np.where(undefined, 0.0, rows), [tail, 100 - tail], axis=0)
    return Interval(center, np.where(undefined, np.nan, low), np.where(undefined, np.nan, high))
