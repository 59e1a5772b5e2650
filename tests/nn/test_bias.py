"""Buckets of time differences (tables against NumPy: tests/nn/test_attention.py)."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.nn.bias import TIME_BUCKETS, time_bucket
from tests.reference.attention import time_bucket as expected

int32 = st.integers(-(2**31), 2**31 - 1)


def bucket(query, key):
    return int(time_bucket(np.asarray(query, np.int32), np.asarray(key, np.int32)))


def test_hand_computed_buckets():
    seconds = [0, 1, -1, 2, 60, 3600, 86_400, 86_400 * 365, 2**31 - 1]
    # floor(ln(seconds) / 0.301)
    assert [bucket(s, 0) for s in seconds] == [0, 0, 0, 2, 13, 27, 37, 57, 71]


@given(int32, int32)
def test_buckets_are_the_formula(query, key):
    """Any two int32 times, more than 2^31 seconds apart included."""
    number = bucket(query, key)
    gap = query - key
    # float32 may fall on the other side of an edge
    assert number in {expected(gap * f) for f in (1 - 1e-6, 1, 1 + 1e-6)}
    assert number == bucket(key, query)
    assert 0 <= number <= TIME_BUCKETS


@given(st.integers(0, 2**31 - 10_000), st.integers(2, 10_000))
def test_short_differences_late_in_time(start, gap):
    """Decades after the origin float32 seconds are more than a minute apart."""
    assert abs(bucket(start + gap, start) - math.log(gap) / 0.301) <= 1.001


def test_buckets_grow_with_time():
    times = np.geomspace(1, 2e9, 300).astype(np.int32)
    assert (np.diff(time_bucket(times, np.zeros_like(times))) >= 0).all()
