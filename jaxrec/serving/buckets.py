"""Bucket sizes of every axis that varies between calls, so that nothing recompiles.

JAX compiles a function once per shape. Batches, numbers of events, list lengths and exclusions
are rounded up to one of a few sizes; the padding changes no result.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

USERS = (1, 4, 16, 64, 256)  # users of one call to the model; more are split into batches
BATCH = USERS[-1]
EVENTS = (16, 128, 1024)  # events beyond a full recent window; more are added in turn
LISTS = (16, 64, 256, 1024)  # items of a top list
IDS = (16, 64, 256, 1024, 4096)  # excluded or candidate items of a user


class Shapes(NamedTuple):
    """The sizes that each axis is rounded up to, ascending.

    Few sizes are few programs, which can all be compiled before the first request.
    """

    users: tuple[int, ...] = USERS
    events: tuple[int, ...] = EVENTS
    lists: tuple[int, ...] = LISTS
    ids: tuple[int, ...] = IDS


SHAPES = Shapes()


def size_of(count: int, sizes: Sequence[int]) -> int:
    """The smallest of `sizes` that holds `count`; beyond the last, powers of two.

    >>> size_of(17, USERS), size_of(300, USERS)
    (64, 512)
    """
    for size in sizes:
        if count <= size:
            return size
    return 1 << (count - 1).bit_length()


def fill(array: np.ndarray, rows: int) -> np.ndarray:
    """`array` [B, ...] padded with rows of zeros to [rows, ...]."""
    if len(array) == rows:
        return array
    padding = np.zeros((rows - len(array), *array.shape[1:]), array.dtype)
    return np.concatenate([array, padding])


def rectangle(rows: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Ragged ids as int32 [B, X], padded with 0; X is one of `sizes`.

    >>> rectangle([np.array([5, 6]), np.array([7])], (3, 8)).tolist()
    [[5, 6, 0], [7, 0, 0]]
    """
    width = size_of(max((len(row) for row in rows), default=0), sizes)
    padded = np.zeros((len(rows), width), np.int32)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded
