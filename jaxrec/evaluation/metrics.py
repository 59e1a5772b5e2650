"""Ranking metrics from ranks.

A rank is 0-based: how many other candidates score at least as high as the target
(`jaxrec.ranking`), so ties count against the model. Every target has one relevant item, the event
that happened; the ideal gain of NDCG is therefore 1.
"""

from typing import Any, TypeVar

import chex
import jax
import numpy as np

NAMES = ("recall", "ndcg", "mrr")

ArrayT = TypeVar("ArrayT", np.ndarray, jax.Array)  # NumPy in, NumPy out; JAX in, JAX out


def gain(name: str, ranks: ArrayT, k: int | None = None) -> ArrayT:
    """What each target contributes to a metric.

    Args:
      name: `recall`: 1 (with one relevant item also the hit rate); `ndcg`: 1 / log2(2 + rank);
        `mrr`: 1 / (1 + rank); each 0 for ranks >= k.
      ranks: int [P], 0-based.
      k: length of the list; None is the whole catalog.

    Returns:
      float32 [P].

    Raises:
      ValueError: for another name, or k < 1.

    Example:
      >>> gain("ndcg", np.array([0, 2, 10]), k=10).tolist()
      [1.0, 0.5, 0.0]

    References:
      Järvelin & Kekäläinen, Cumulated gain-based evaluation of IR techniques, 2002 (NDCG).
    """
    if name not in NAMES:
        raise ValueError(f"metric {name!r}: allowed are {', '.join(NAMES)}")
    if k is not None and k < 1:
        raise ValueError(f"{name}@{k}: k must be positive")
    xp: Any = ranks.__array_namespace__()  # numpy or jax.numpy
    place = ranks.astype(xp.float32)
    if name == "recall":
        gains = xp.ones_like(place)
    elif name == "ndcg":
        gains = 1 / xp.log2(place + 2)
    else:
        gains = 1 / (place + 1)
    return gains if k is None else xp.where(ranks < k, gains, xp.zeros_like(gains))


def over_users(
    values: np.ndarray, weights: np.ndarray, users: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each user's weighted mean over its targets.

    Args:
      values: [P, ...], one entry per target.
      weights: [P]; targets of weight 0 are left out, and users who have no other target.
      users: int [P], the user of each target.

    Returns:
      (user ids [U], ascending; their means, float64 [U, ...]).
    """
    chex.assert_rank([weights, users], 1)
    chex.assert_equal_shape_prefix([values, weights, users], 1)
    kept = weights > 0
    ids, index = np.unique(users[kept], return_inverse=True)
    weight = weights[kept].astype(np.float64)
    per_target = (-1,) + (1,) * (values.ndim - 1)
    sums = np.zeros((len(ids), *values.shape[1:]))
    np.add.at(sums, index, values[kept] * weight.reshape(per_target))
    return ids, sums / np.bincount(index, weight, len(ids)).reshape(per_target)
