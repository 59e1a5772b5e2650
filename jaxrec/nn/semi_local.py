"""Semi-local attention, a baseline: a sliding window and the first positions of the history.

Position i sees j <= i when i - j < window or j < prefix (the semi-local attention of the HSTU
line of work). Work grows with N (window + prefix), but every request reads the raw history.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.layout import SegmentLayout

CHUNK = 256  # query rows computed at once


@dataclasses.dataclass(frozen=True)
class SemiLocalLayout(SegmentLayout):
    """One plain segment whose positions see `window` newest and the `prefix` first positions."""

    window: int = 0
    prefix: int = 0

    @classmethod
    def of(cls, length: int, window: int, prefix: int) -> "SemiLocalLayout":
        """Raises ValueError for a window that does not even hold the position itself."""
        if window < 1 or prefix < 0:
            raise ValueError(f"window {window}, prefix {prefix}: at least 1 and 0 are needed")
        return cls(segments=((length, 0),), window=window, prefix=prefix)

    def sees(self, query: np.ndarray, key: np.ndarray) -> np.ndarray:
        """[Q, K] bool of positions [Q] and [K]."""
        gap = query[:, None] - key[None]
        return (gap >= 0) & ((gap < self.window) | (key < self.prefix)[None])

    @functools.cached_property
    def visible(self) -> np.ndarray:
        """[T, T] bool."""
        every = np.arange(self.length)
        return self.sees(every, every)

    def pairs(self, backend: Literal["visible", "blocked", "dense"] = "blocked") -> int:
        """Query-key pairs of one layer."""
        if backend == "dense":
            return self.length**2
        row = np.arange(self.length, dtype=np.int64)
        if backend == "blocked":
            start = row // CHUNK * CHUNK
            stop = np.minimum(start + CHUNK, self.length)
            first = np.maximum(start - self.window + 1, 0)
            return int((stop - first + np.minimum(first, self.prefix)).sum())
        near = np.minimum(row + 1, self.window)
        return int((near + np.minimum(row + 1 - near, self.prefix)).sum())


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    layout: SemiLocalLayout,
    valid: jax.Array,
    weigh: Any,
    normalizer: float,
    bias: Any,
    cached: Any,
) -> jax.Array:
    """A backend of `attention.attend`: only the keys that some row of a chunk sees."""
    del cached  # `attend` has checked that there is none
    (run,) = layout.runs()
    learned = None
    if bias is not None:
        learned = jax.tree.map(lambda x: x[0], bias.segments(run, np.zeros(0, np.int64)))
    wide = jnp.promote_types(q.dtype, jnp.float32)

    def rows(start: int, stop: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        first = max(start - layout.window + 1, 0)
        prefix = min(layout.prefix, first)

        def near(x: jax.Array, axis: int = 1) -> jax.Array:
            window = jax.lax.slice_in_dim(x, first, stop, axis=axis)
            if not prefix:
                return window
            return jnp.concatenate(
                [jax.lax.slice_in_dim(x, 0, prefix, axis=axis), window], axis=axis
            )

        logits = jnp.einsum(
            "bqnh,bknh->bnqk", q[:, start:stop], near(k), preferred_element_type=wide
        )
        if bias is not None:
            own, _ = bias.block(learned, run, start, stop)
            logits = logits + (near(own, 3) if own.shape[3] == stop else own)
        keys = np.concatenate([np.arange(prefix), np.arange(first, stop)])
        mask = layout.sees(np.arange(start, stop), keys)[None, None]
        mask = mask & near(valid)[:, None, None, :]
        (weights,) = weigh([logits], [mask], normalizer)
        return jnp.einsum("bnqk,bknh->bqnh", weights.astype(v.dtype), near(v))

    parts = []
    for start in range(0, layout.length, CHUNK):
        one = functools.partial(rows, start, min(start + CHUNK, layout.length))
        parts.append(jax.checkpoint(one)(q, k, v))
    return jnp.concatenate(parts, axis=1)
