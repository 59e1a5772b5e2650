"""Means over users and seeds with bootstrap intervals over both.

A setting's values are [seeds, users]: a user's mean metric in the run of a seed. A resample
draws seeds and users with replacement. Two settings are compared on the same draws, so that the
difficulty of a user cancels.
"""

from collections.abc import Sequence

import numpy as np

from jaxrec.evaluation import intervals, report
from jaxrec.evaluation.intervals import Closed, Interval
from jaxrec.evaluation.ranks import Ranks

LEVEL = 0.95


def values(ranks: Sequence[Ranks], metric: str, k: int | None) -> np.ndarray:
    """Metric [seeds, users] from a setting's ranks by seed; k: None is the whole catalog.

    Raises ValueError when the seeds evaluated different users.
    """
    users, rows = None, []
    for of_seed in ranks:
        ids, means = report.per_user(of_seed, metric, k)
        if users is not None and not np.array_equal(users, ids):
            raise ValueError("the seeds of a setting evaluated different users")
        users = ids
        rows.append(means)
    return np.stack(rows)


def draws(table: np.ndarray, samples: int, seed: int = 0) -> np.ndarray:
    """Means [samples] over seeds and users drawn with replacement from [seeds, users]."""
    rng = np.random.default_rng(seed)
    seeds, users = table.shape
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), samples)
    by_user = rng.multinomial(users, np.full(users, 1 / users), samples)
    return ((by_seed @ table) * by_user).sum(1) / (seeds * users)


def interval(table: np.ndarray, samples: int) -> Interval:
    """Mean over seeds and users and its 95 % interval."""
    return _interval(table.mean(), draws(table, samples))


def ratio(a: np.ndarray, b: np.ndarray, samples: int) -> Interval:
    """mean(a) / mean(b), paired, with its 95 % interval.

    Raises ValueError when a and b have different seeds or users.
    """
    if a.shape != b.shape:
        raise ValueError(f"settings of other seeds or users: {a.shape} and {b.shape}")
    with np.errstate(divide="ignore", invalid="ignore"):
        return _interval(a.mean() / b.mean(), draws(a, samples) / draws(b, samples))


def gap_closed(kept: np.ndarray, recent: np.ndarray, full: np.ndarray, samples: int) -> Closed:
    """The share of the gap between `recent` and `full` that `kept` closes, [seeds, users] each.

    All three are drawn together. Raises ValueError when they have different seeds or users.
    """
    if not kept.shape == recent.shape == full.shape:
        raise ValueError(
            f"settings of other seeds or users: {kept.shape}, {recent.shape} and {full.shape}"
        )
    rows = (intervals.Row(float(x.mean()), draws(x, samples)) for x in (kept, recent, full))
    return intervals.closed(*rows)


def _interval(center: float, sampled: np.ndarray) -> Interval:
    known = sampled[np.isfinite(sampled)]
    if not len(known):
        return Interval(float(center), float("nan"), float("nan"))
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(known, [tail, 100 - tail])
    return Interval(float(center), float(low), float(high))
