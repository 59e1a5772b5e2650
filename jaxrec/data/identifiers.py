"""Raw ids of an event stream -> their rank among all ids of the stream, in bounded memory.

Ids arrive chunk by chunk. `add` counts them and returns codes to keep with the events; after
`finish` all distinct ids are known in sorted order, and `order` and `rank` give the place of a code
among them. Integers are their own codes; texts get numbers from one dictionary.
"""

import uuid
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import polars as pl


class Ids(Protocol):
    """The distinct ids of a stream.

    ids: all distinct raw ids, sorted [K]. counts: int64 [K], how often each was added.
    """

    dtype: type[np.signedinteger]  # of codes
    ids: np.ndarray
    counts: np.ndarray

    def add(self, values: "np.ndarray | pl.Series") -> np.ndarray:
        """Codes [N] of raw ids [N]."""

    def finish(self) -> None:
        """Completes `ids` and `counts`; call it after the last `add`."""

    def order(self, codes: np.ndarray) -> np.ndarray:
        """Keys of codes that sort as their raw ids do, comparable with `key`."""

    def rank(self, codes: np.ndarray, first: int = 0, stop: int | None = None) -> np.ndarray:
        """int32 positions in `ids[first:stop]`, where all codes must lie."""

    def key(self, index: int) -> int:
        """The `order` of `ids[index]`."""


class IntIds:
    """Integer ids; memory of 16 bytes for each distinct one."""

    dtype = np.int64

    def __init__(self) -> None:
        self.ids = np.zeros(0, np.int64)
        self.counts = np.zeros(0, np.int64)
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._size = 0

    def add(self, values: "np.ndarray | pl.Series") -> np.ndarray:
        """Codes [N] of values; counts them."""
        codes = np.asarray(values, np.int64)
        distinct, counts = np.unique(codes, return_counts=True)
        self._pending.append((distinct, counts))
        self._size += len(distinct)
        if self._size > max(1 << 20, len(self.ids)):  # merging costs what is already known
            self.finish()
        return codes

    def finish(self) -> None:
        """Merges what was added."""
        ids = np.concatenate([self.ids, *(ids for ids, _ in self._pending)])
        counts = np.concatenate([self.counts, *(counts for _, counts in self._pending)])
        order = np.argsort(ids, kind="stable")  # fast: the parts are sorted
        ids, counts = ids[order], counts[order]
        starts = np.flatnonzero(np.concatenate([[len(ids) > 0], ids[1:] != ids[:-1]])[: len(ids)])
        self.ids = ids[starts]
        self.counts = np.add.reduceat(counts, starts) if len(ids) else counts
        self._pending, self._size = [], 0

    def order(self, codes: np.ndarray) -> np.ndarray:
        """Sort keys of codes."""
        return codes

    def rank(self, codes: np.ndarray, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Places int32 [N] of codes among `ids[first:stop]`."""
        ids = self.ids[first:stop]
        low, high = int(ids[0]), int(ids[-1])
        if high - low < max(1 << 22, 8 * len(ids)):  # dense ids: a table is faster than a search
            table = np.zeros(high - low + 1, np.int32)
            table[ids - low] = np.arange(len(ids), dtype=np.int32)
            return table[codes - low]
        distinct, index = np.unique(codes, return_inverse=True)  # sorted queries stay in cache
        return np.searchsorted(ids, distinct).astype(np.int32)[index]

    def key(self, index: int) -> int:
        """The code of the id at a place."""
        return int(self.ids[index])


class TextIds:
    """Text ids, sorted by code point as in NumPy and Python; each is held once."""

    dtype = np.int32

    def __init__(self) -> None:
        import polars as pl

        # a dictionary of its own: codes are 0, 1, 2, ... whatever else the process reads
        self._kind = pl.Categorical(pl.Categories(f"ids-{uuid.uuid4().hex}", "jaxrec", pl.UInt32))
        self._seen = np.zeros(0, np.int64)
        self.ids = np.zeros(0, np.str_)
        self.counts = np.zeros(0, np.int64)
        self._texts: list[pl.Series] = []  # of codes 0, 1, 2, ...

    def add(self, values: "np.ndarray | pl.Series") -> np.ndarray:
        """Codes [N] of values; counts them."""
        import polars as pl

        series = values if isinstance(values, pl.Series) else pl.Series(values.astype(object))
        # polars forgets a dictionary that no column uses
        self._alive = series.cast(self._kind)
        codes = self._alive.to_physical().to_numpy().astype(np.int32)
        counts, known = np.bincount(codes, minlength=len(self._seen)), len(self._seen)
        if len(counts) > known:
            rows = np.flatnonzero(codes >= known)
            new, first = np.unique(codes[rows], return_index=True)
            if len(new) != len(counts) - known:
                raise RuntimeError("polars did not number new texts one after the other")
            self._texts.append(series.gather(rows[first]))
            self._seen = np.concatenate([self._seen, np.zeros(len(new), np.int64)])
        self._seen += counts
        return codes

    def finish(self) -> None:
        """Sorts what was added."""
        import polars as pl

        if not self._texts:
            return
        texts = pl.concat(self._texts)
        if texts.n_unique() != len(texts):
            raise RuntimeError("polars numbered a text twice")
        order = texts.arg_sort().to_numpy()
        self._ranks = np.zeros(len(order), np.int32)
        self._ranks[order] = np.arange(len(order), dtype=np.int32)
        self.ids = texts.gather(order).to_numpy().astype(np.str_)
        self.counts = self._seen[order]

    def order(self, codes: np.ndarray) -> np.ndarray:
        """Sort keys of codes."""
        return self._ranks[codes]

    def rank(self, codes: np.ndarray, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Places int32 [N] of codes among `ids[first:stop]`."""
        return self._ranks[codes] - np.int32(first)

    def key(self, index: int) -> int:
        """The code of the id at a place."""
        return index
