"""A few sizes for every axis that varies between calls, so that nothing recompiles.

JAX compiles a function once per shape. Batches, numbers of events, list lengths and exclusions
are rounded up to one of a few sizes and filled with padding that changes no result.
"""

from collections.abc import Sequence

import numpy as np

USERS = (1, 4, 16, 64, 256)  # users of one call to the model; more are cut into parts
EVENTS = (16, 128, 1024)  # events beyond a full recent window; more are added in turn
LISTS = (16, 64, 256, 1024)  # items of a top list
IDS = (16, 64, 256, 1024, 4096)  # excluded or candidate items of a user


def size_of(count: int, sizes: Sequence[int]) -> int:
    """The smallest of `sizes` that holds `count`; beyond the last, powers of two."""
    for size in sizes:
        if count <= size:
            return size
    return 1 << (count - 1).bit_length()


def fill(array: np.ndarray, rows: int) -> np.ndarray:
    """`array` with zero rows behind, `rows` in all."""
    if len(array) == rows:
        return array
    extra = np.zeros((rows - len(array), *array.shape[1:]), array.dtype)
    return np.concatenate([array, extra])


def rectangle(rows: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """int32 [B, X] of ragged ids, 0 behind each row's end; X is one of `sizes`."""
    width = size_of(max((len(row) for row in rows), default=0), sizes)
    padded = np.zeros((len(rows), width), np.int32)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    return padded
