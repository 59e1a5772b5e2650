import numpy as np
import pytest

from jaxrec.data import splits
from jaxrec.errors import DataError


def test_last_leaves_q_and_q_out():
    bounds = splits.last(np.asarray([1, 4, 5, 6, 30]), 2)
    assert bounds.train_end.tolist() == [1, 4, 1, 2, 26]
    assert bounds.validation_end.tolist() == [1, 4, 3, 4, 28]


def test_leave_one_out():
    lengths = np.asarray([1, 2, 3, 10])
    bounds = splits.last(lengths, 1)
    first, stop = splits.target_range(bounds, lengths, "test")
    assert (stop - first).tolist() == [0, 0, 1, 1]
    assert first[3] == 9
    first, stop = splits.target_range(bounds, lengths, "validation")
    assert (first[3], stop[3]) == (8, 9)


def test_unknown_split():
    lengths = np.asarray([3])
    with pytest.raises(ValueError, match="validation, test"):
        splits.target_range(splits.last(lengths, 1), lengths, "train")


def test_temporal_cuts_every_user_at_the_same_moments():
    offsets = np.asarray([0, 4, 6, 8])
    times = np.asarray([1, 5, 6, 9, 6, 7, 8, 9])
    bounds = splits.temporal(offsets, times, 6, 8)
    assert bounds.train_end.tolist() == [2, 0, 0]
    assert bounds.validation_end.tolist() == [3, 2, 0]
    first, stop = splits.target_range(bounds, np.diff(offsets), "validation")
    # nothing precedes the first event of user 1: it is no target
    assert list(zip(first.tolist(), stop.tolist(), strict=True)) == [(2, 3), (1, 2), (1, 0)]
    first, stop = splits.target_range(bounds, np.diff(offsets), "test")
    assert list(zip(first.tolist(), stop.tolist(), strict=True)) == [(3, 4), (2, 2), (1, 2)]


def test_cut_times_are_quantiles():
    assert splits.cut_times(np.arange(100), 0.8, 0.9) == (80, 90)


def test_cut_times_refuse_an_empty_part():
    with pytest.raises(DataError, match=r"data\.validation_time=0\.5.*empty"):
        splits.cut_times(np.asarray([0, 1, 1, 1, 1, 1]), 0.5, 0.9)
    with pytest.raises(DataError, match="empty"):
        splits.cut_times(np.asarray([3, 3, 3, 4]), 0.1, 0.9)


def test_counts_are_those_of_training_events():
    items = [np.asarray([1, 2, 2, 3]), np.asarray([3, 3])]
    assert splits.item_counts(items, np.asarray([3, 0]), 4).tolist() == [0, 1, 2, 0, 0]


def test_counts_in_chunks():
    items = [np.full(600_000, user % 3 + 1) for user in range(5)]
    counts = splits.item_counts(items, np.full(5, 600_000), 3)
    assert counts.tolist() == [0, 1_200_000, 1_200_000, 600_000]
