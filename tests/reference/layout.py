"""Segments, visibility and positions from the rule in words: one position at a time.

Nothing here knows `jaxrec.layout`; a layout is its plain list of (items, tokens) segments.
"""

from typing import NamedTuple

import numpy as np


class Place(NamedTuple):
    """One position (or one cached key) of a sequence."""

    segment: int  # cached segments count from -len(cached)
    token: bool
    offset: int  # inside the segment, tokens behind the items
    index: int  # which item or which token of the segment


def places(segments) -> list[Place]:
    """Every position, oldest first."""
    everything = []
    for segment, (items, tokens) in enumerate(segments):
        everything += [Place(segment, False, i, i) for i in range(items)]
        everything += [Place(segment, True, items + i, i) for i in range(tokens)]
    return everything


def keys(segments, cached=()) -> list[Place]:
    """Cached tokens, then every position."""
    before = []
    for back, tokens in enumerate(cached):
        before += [Place(back - len(cached), True, i, i) for i in range(tokens)]
    return before + places(segments)


def sees(query: Place, key: Place, earlier: bool, max_segments: int) -> bool:
    """The visibility rule for two existing positions; `earlier`: the key is not behind."""
    if not earlier:
        return False
    if key.segment == query.segment:
        return True
    return key.token and query.segment - max_segments <= key.segment < query.segment


def visible(segments, cached=(), max_segments=None) -> np.ndarray:
    """[T, cached + T] bool."""
    if max_segments is None:
        max_segments = len(segments) + len(cached)
    all_keys = keys(segments, cached)
    shift = sum(cached)
    return np.asarray(
        [
            [sees(q, k, j <= i + shift, max_segments) for j, k in enumerate(all_keys)]
            for i, q in enumerate(places(segments))
        ],
        bool,
    ).reshape(len(places(segments)), len(all_keys))


def visible_raw(segments, max_segments) -> np.ndarray:
    """[T, T] bool: every earlier position of the own segment and `max_segments` before it."""
    where = places(segments)
    return np.asarray(
        [
            [j <= i and q.segment - k.segment <= max_segments for j, k in enumerate(where)]
            for i, q in enumerate(where)
        ]
    )


def visible_band(length, window, prefix) -> np.ndarray:
    """[T, T] bool: the newest `window` positions and the first `prefix`."""
    rows = range(length)
    return np.asarray([[j <= i and (i - j < window or j < prefix) for j in rows] for i in rows])


def cut(count: int, n: int, recent_min: int) -> tuple[int, int]:
    """(complete segments, events left over) of `count` events that arrive one by one."""
    segments = pending = 0
    for _ in range(count):
        pending += 1
        if pending == recent_min + n:
            segments, pending = segments + 1, pending - n
    return segments, pending


def valid(segments, lengths, fixed=False) -> list[bool]:
    """Which positions of one user exist; `lengths`: valid items of every segment."""
    return [
        fixed
        if place.token and fixed
        else lengths[place.segment] > 0
        if place.token
        else place.index >= segments[place.segment][0] - lengths[place.segment]
        if fixed
        else place.index < lengths[place.segment]
        for place in places(segments)
    ]


def predictions(segments) -> set[tuple[int, int]]:
    """(position, item slot): who predicts which item event. Slot E is the event to come.

    Every item predicts the next item event; the last token behind items predicts it too.
    """
    pairs = set()
    slot = 0
    where = places(segments)
    for position, place in enumerate(where):
        if not place.token:
            slot += 1
            pairs.add((position, slot))
        else:
            items, tokens = segments[place.segment]
            if items and place.index == tokens - 1:
                pairs.add((position, slot))
    return pairs
