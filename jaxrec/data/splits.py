"""Splits: which events of a user are for training, validation and test.

A split is two boundaries per user: events [0, train_end) train, [train_end, validation_end) are
validation targets and the rest are test targets. A target always has at least one event before it,
and every event before a target is input, whichever part of the split it belongs to.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxrec.errors import DataError


class Boundaries(NamedTuple):
    """int64 [U] each: events before `train_end` train, before `validation_end` validate."""

    train_end: np.ndarray
    validation_end: np.ndarray


def last(lengths: np.ndarray, holdout: int) -> Boundaries:
    """Leave-last-out: the last `holdout` events of a user test, the `holdout` before validate.

    lengths: int64 [U], events per user. Users with fewer than 2 x holdout + 1 events have no
    targets: all their events train. `holdout` = 1 is the classic leave-one-out.
    """
    enough = lengths >= 2 * holdout + 1
    train_end = np.where(enough, lengths - 2 * holdout, lengths)
    validation_end = np.where(enough, lengths - holdout, lengths)
    return Boundaries(train_end.astype(np.int64), validation_end.astype(np.int64))


def cut_times(times: np.ndarray, validation_time: float, test_time: float) -> tuple[int, int]:
    """Times at which validation and test start: quantiles of all event times [N].

    Raises DataError when a part would be empty (many events share one time).
    """
    cuts = np.quantile(times, [validation_time, test_time], method="higher")
    validation, test = int(cuts[0]), int(cuts[1])
    if not times.min() < validation < test:
        raise DataError(
            f"split: data.validation_time={validation_time} and data.test_time={test_time} fall "
            f"on times {validation} and {test} of {int(times.min())}..{int(times.max())}: a part "
            "would be empty. Choose other quantiles"
        )
    return validation, test


def temporal(
    offsets: np.ndarray, times: np.ndarray, validation_start: int, test_start: int
) -> Boundaries:
    """Global temporal split: events from `validation_start` / `test_start` on are targets.

    offsets: int64 [U + 1] and times [N] as in Histories. Users may have no training events.
    """
    starts = offsets[:-1]

    def count_before(moment: int) -> np.ndarray:
        before = np.concatenate([[0], np.cumsum(times < moment)])
        return (before[offsets[1:]] - before[starts]).astype(np.int64)

    return Boundaries(count_before(validation_start), count_before(test_start))


def target_range(bounds: Boundaries, lengths: np.ndarray, split: str) -> tuple[np.ndarray, ...]:
    """[first, stop) target indices of every user, int64 [U] each; empty where first >= stop.

    split: `validation` or `test`. A user's first event is never a target: nothing precedes it.
    """
    if split == "validation":
        first, stop = bounds.train_end, bounds.validation_end
    elif split == "test":
        first, stop = bounds.validation_end, lengths
    else:
        raise ValueError(f"split={split!r}: allowed are validation, test")
    return np.maximum(first, 1), np.asarray(stop, np.int64)


def item_counts(items: Iterable[np.ndarray], train_end: np.ndarray, num_items: int) -> np.ndarray:
    """int64 [V + 1], training events per dense item id; entry 0 (padding) is 0.

    items: each user's items, in user order.
    """
    counts = np.zeros(num_items + 1, np.int64)
    pending: list[np.ndarray] = []
    size = 0
    for history, end in zip(items, train_end, strict=True):
        pending.append(history[:end])
        size += int(end)
        if size > 1_000_000:
            counts += np.bincount(np.concatenate(pending), minlength=num_items + 1)
            pending, size = [], 0
    if pending:
        counts += np.bincount(np.concatenate(pending), minlength=num_items + 1)
    return counts
