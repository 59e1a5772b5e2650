"""Relative attention bias by position and by time, computed per block of the layout.

Position: inside a segment by distance (HSTU's relative position bias); for tokens of an
earlier segment by age in segments and token number. Age is static because segments are
right-aligned, and it is added at attention time, never baked into stored K/V, so a state
stays valid while old segments drop off. Time: HSTU's log buckets of |query time - key time|
(arXiv 2402.17152; bucket = floor(ln(max(1, |dt|)) / 0.301)).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.layout import Run, SegmentLayout
from jaxrec.types import Times

TIME_BUCKETS = 128


def time_bucket(query: jax.Array, key: jax.Array) -> jax.Array:
    """int32 bucket 0..128 of the distance of two int32 times in seconds, of any order."""
    # Exact for every pair: a distance up to 2^32 - 1 wraps around in int32 and back in uint32.
    # Differences of float32 times would be off by up to a minute after a few years.
    distance = jnp.where(query >= key, query - key, key - query).astype(jnp.uint32)
    gap = jnp.maximum(distance, 1).astype(jnp.float32)
    return jnp.minimum(jnp.log(gap) / 0.301, TIME_BUCKETS).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class RelativeBias:
    """Implements `attention.Bias` from learned tables.

    distance: [rows, N] or None; age: [max_segments * tokens, N] or None; time: [129, N] or
    None; query_times [B, T] and key_times [B, C + T] in seconds.
    """

    layout: SegmentLayout
    tokens: int  # tokens per segment in the age table
    distance: Any
    age: Any
    time: Any
    query_times: Any
    key_times: Any

    def segments(self, run: Run, keys: np.ndarray) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.age is not None:
            query = np.arange(run.first, run.first + run.count)
            found["age"] = jnp.asarray(self._age_index(query[:, None], keys[None]))  # [s, K]
        if self.time is not None:
            cached = self.layout.num_cached
            own = self.key_times[:, cached + run.start : cached + run.stop]
            shape = (-1, run.count, run.length)
            for name, times in (("asked", self.query_times[:, run.start : run.stop]), ("own", own)):
                found[name] = jnp.swapaxes(times.reshape(shape), 0, 1)  # [s, B, P]
            earlier = self.key_times[:, keys][None]
            found["earlier"] = jnp.broadcast_to(earlier, (run.count, *earlier.shape[1:]))
        return found

    def block(self, segment: Any, run: Run, start: int, stop: int) -> tuple[Any, Any]:
        own: Any = jnp.zeros((1, 1, 1, 1))
        earlier: Any = jnp.zeros((1, 1, 1, 1))
        if self.distance is not None:
            gap = np.arange(start, stop)[:, None] - np.arange(stop)[None]
            own = own + jnp.moveaxis(self.distance[np.maximum(gap, 0)], -1, 0)[None]
        if self.age is not None:
            earlier = earlier + jnp.moveaxis(self.age[segment["age"]], -1, 0)[None, :, None]
        if self.time is not None:
            asked = segment["asked"][:, start:stop, None]
            own = own + self._time(asked, segment["own"][:, None, :stop])
            earlier = earlier + self._time(asked, segment["earlier"][:, None])
        return own, earlier

    def dense(self) -> jax.Array:
        layout = self.layout
        total: Any = jnp.zeros((1, 1, 1, 1))
        keys = np.arange(layout.num_cached + layout.length)
        same = layout.segment_id[:, None] == layout.key_segment[None]
        if self.distance is not None:
            gap = np.where(same, layout.offset[:, None] - layout.key_offset[None], 0)
            table = self.distance[np.maximum(gap, 0)] * same[..., None]
            total = total + jnp.moveaxis(table, -1, 0)[None]
        if self.age is not None:
            index = self._age_index(layout.segment_id[:, None], keys[None])
            table = self.age[index] * ~same[..., None]
            total = total + jnp.moveaxis(table, -1, 0)[None]
        if self.time is not None:
            total = total + self._time(self.query_times[:, :, None], self.key_times[:, None, :])
        return total

    def _age_index(self, query_segment: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Rows of the age table; pairs that are not visible get some row."""
        age = query_segment - self.layout.key_segment[keys]
        row = (age - 1) * self.tokens + self.layout.key_token_index[keys]
        return np.clip(row, 0, self.age.shape[0] - 1)

    def _time(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """[..., Q, 1] and [..., 1, K] seconds to [..., N, Q, K]."""
        return jnp.moveaxis(self.time[time_bucket(query, key)], -1, -3)


class BiasTables(nn.Module):
    """Parameters of `RelativeBias` of one layer; sizes follow the model's own layout."""

    layout: SegmentLayout  # the model's; derived layouts share its tables
    heads: int
    distance: bool
    time: bool

    @nn.compact
    def __call__(
        self, layout: SegmentLayout, times: Times, cached_times: jax.Array | None
    ) -> RelativeBias | None:
        init = nn.initializers.normal(0.02)
        rows = max(n + k for n, k in self.layout.segments)
        tokens = max(k for _, k in self.layout.segments)
        ages = self.layout.max_segments * tokens if self.layout.positions == "segment" else 0
        if not (self.distance or self.time or ages):
            return None

        def table(name: str, size: int, wanted: bool):
            return self.param(name, init, (size, self.heads), jnp.float32) if wanted else None

        key_times = times.key
        if cached_times is not None:
            key_times = jnp.concatenate([cached_times, key_times], axis=1)
        return RelativeBias(
            layout=layout,
            tokens=tokens,
            distance=table("distance", rows, self.distance),
            age=table("age", ages, ages > 0),
            time=table("time", TIME_BUCKETS + 1, self.time),
            query_times=times.query,
            key_times=key_times,
        )
