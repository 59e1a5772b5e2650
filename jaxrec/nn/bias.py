"""Relative attention bias by position and by time, computed per block of the layout.

Position: inside a segment by distance (HSTU's relative position bias); for tokens of an
earlier segment by age in segments and token number, and by the distance in events to the part of
its segment that a token stands for. Age is static because segments are right-aligned, and it is
added at attention time, never baked into stored K/V, so a state stays valid while old segments
drop off. Time: HSTU's log buckets of |query time - key time|
(arXiv 2402.17152; bucket = floor(ln(max(1, |dt|)) / 0.301)).
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.layout import Run, SegmentLayout
from jaxrec.types import Array, Times

TIME_BUCKETS = 128
BUCKET_WIDTH = 0.301  # of the natural logarithm of seconds


def time_bucket(query: Array, key: Array) -> jax.Array:
    """int32 bucket 0..128 of the distance of two int32 times in seconds, of any order."""
    # Exact for every pair: a distance up to 2^32 - 1 wraps around in int32 and back in uint32.
    # Differences of float32 times would be off by up to a minute after a few years.
    distance = jnp.where(query >= key, query - key, key - query).astype(jnp.uint32)
    gap = jnp.maximum(distance, 1).astype(jnp.float32)
    return jnp.minimum(jnp.log(gap) / BUCKET_WIDTH, TIME_BUCKETS).astype(jnp.int32)


class SegmentTimes(NamedTuple):
    """int32 seconds of a run's segments s, or of a single one without that axis.

    query, key: [s, B, P] of the positions; earlier: [s, B, K] of the earlier tokens.
    """

    query: jax.Array
    key: jax.Array
    earlier: jax.Array


class SegmentBias(NamedTuple):
    """What the biases of a run's segments s need, None where there is no table.

    age: int [s, K] rows of the age table. behind: int [s, K] events from a token's part to the
    first item of the segment.
    """

    age: jax.Array | None
    behind: jax.Array | None
    times: SegmentTimes | None


@dataclasses.dataclass(frozen=True)
class RelativeBias:
    """Implements `attention.Bias` from learned tables.

    segment: items and tokens of a segment. distance: [rows, N] or None; age: [max_segments *
    tokens, N] or None; parts: [(max_segments + 1) * items + 1, N] or None, by events between a
    query and a token's part; time: [129, N] or None; query_times [B, T] and key_times [B, C + T]
    in seconds.
    """

    layout: SegmentLayout
    segment: tuple[int, int]
    distance: jax.Array | None
    age: jax.Array | None
    time: jax.Array | None
    query_times: Array
    key_times: Array
    parts: jax.Array | None = None

    def segments(self, run: Run, keys: np.ndarray) -> SegmentBias:
        """See `attention.Bias`."""
        age = behind = times = None
        if self.age is not None:
            index = self._age_rows(run.segments[:, None], keys[None], len(self.age))
            age = jnp.asarray(index)
        if self.parts is not None:
            behind = jnp.asarray(self._behind(run.segments[:, None], keys[None]))
        if self.time is not None:
            cached = self.layout.num_cached
            key_times = self.key_times[:, cached + run.start : cached + run.stop]
            earlier = self.key_times[:, keys][None]
            times = SegmentTimes(
                query=_by_segment(self.query_times[:, run.start : run.stop], run),
                key=_by_segment(key_times, run),
                earlier=jnp.broadcast_to(earlier, (run.count, *earlier.shape[1:])),
            )
        return SegmentBias(age, behind, times)

    def block(
        self, segment: SegmentBias, run: Run, start: int, stop: int
    ) -> tuple[jax.Array, jax.Array]:
        """See `attention.Bias`."""
        del run
        inside = jnp.zeros((1, 1, 1, 1))
        earlier = jnp.zeros((1, 1, 1, 1))
        if self.distance is not None:
            gap = np.arange(start, stop)[:, None] - np.arange(stop)[None]
            inside = inside + jnp.moveaxis(self.distance[np.maximum(gap, 0)], -1, 0)[None]
        if self.age is not None:
            earlier = earlier + jnp.moveaxis(self.age[segment.age], -1, 0)[None, :, None]
        if self.parts is not None and segment.behind is not None:
            events = self._events(np.arange(start, stop))[:, None] + segment.behind[None]
            earlier = earlier + jnp.moveaxis(self.parts[self._part_rows(events)], -1, 0)[None]
        if self.time is not None and segment.times is not None:
            query = segment.times.query[:, start:stop, None]
            inside = inside + _time_bias(self.time, query, segment.times.key[:, None, :stop])
            earlier = earlier + _time_bias(self.time, query, segment.times.earlier[:, None])
        return inside, earlier

    def dense(self) -> jax.Array:
        """See `attention.Bias`."""
        layout = self.layout
        total = jnp.zeros((1, 1, 1, 1))
        keys = np.arange(layout.num_cached + layout.length)
        same = layout.segment_id[:, None] == layout.key_segment[None]
        if self.distance is not None:
            gap = np.where(same, layout.offset[:, None] - layout.key_offset[None], 0)
            table = self.distance[np.maximum(gap, 0)] * same[..., None]
            total = total + jnp.moveaxis(table, -1, 0)[None]
        if self.age is not None:
            index = self._age_rows(layout.segment_id[:, None], keys[None], len(self.age))
            table = self.age[index] * ~same[..., None]
            total = total + jnp.moveaxis(table, -1, 0)[None]
        if self.parts is not None:
            behind = self._behind(layout.segment_id[:, None], keys[None])
            rows = self._part_rows(self._events(layout.offset)[:, None] + behind)
            table = self.parts[rows] * ~same[..., None]
            total = total + jnp.moveaxis(table, -1, 0)[None]
        if self.time is not None:
            query, key = self.query_times[:, :, None], self.key_times[:, None, :]
            total = total + _time_bias(self.time, query, key)
        return total

    def by_distance(self, blocks: int, size: int) -> jax.Array:
        """[N, blocks, size, size]: block d holds query i, key j of distance d size + i - j.

        0 where the distance is not in the table. Rows of a vector of period 2 size, each one
        shifted by one more: no gather, and the gradient is no scatter.
        """
        assert self.distance is not None
        table = self.distance[: (blocks + 1) * size].T
        after = (blocks + 1) * size - table.shape[1]
        table = jnp.pad(table, ((0, 0), (size, after)))  # entry x: distance x - size
        windows = [table[:, d * size : (d + 2) * size] for d in range(blocks)]
        window = jnp.stack(windows, axis=1)
        # entry k of a period belongs to j - i = k, from the middle on to j - i = k - 2 size
        parts = (window[..., size:0:-1], window[..., :1], window[..., :size:-1])
        period = jnp.concatenate(parts, axis=-1)
        rows = jnp.tile(period, (1, 1, size))[..., : size * (2 * size - 1)]
        return rows.reshape(*rows.shape[:2], size, 2 * size - 1)[..., :size]

    def by_age(self, segments: np.ndarray, keys: np.ndarray) -> jax.Array:
        """[N, s, K], queries of segments [s] against earlier tokens, keys [K]."""
        assert self.age is not None
        return jnp.moveaxis(
            self.age[self._age_rows(segments[:, None], keys[None], len(self.age))], -1, 0
        )

    def by_part(self, segments: np.ndarray, keys: np.ndarray, rows: int) -> jax.Array:
        """[N, s, rows, K], as `by_age`, queries at each offset below `rows`."""
        assert self.parts is not None
        # few pairs of a segment and a token differ: the gradient scatters less with a step between
        behind = self._behind(segments[:, None], keys[None])
        values, which = np.unique(behind, return_inverse=True)
        events = self._events(np.arange(rows))[None] + values[:, None]
        table = self.parts[self._part_rows(events)][which.reshape(behind.shape)]
        return jnp.transpose(table, (3, 0, 2, 1))

    def with_tables(self, value: Any) -> "RelativeBias":
        """The same with a value in place of every table that there is."""
        names = ("distance", "age", "parts", "time")
        there = [name for name in names if getattr(self, name) is not None]
        return dataclasses.replace(self, **dict.fromkeys(there, value))

    def _age_rows(self, query_segment: np.ndarray, keys: np.ndarray, height: int) -> np.ndarray:
        """Rows of an age table of this height; pairs that are not visible get some row."""
        age = query_segment - self.layout.key_segment[keys]
        row = (age - 1) * self.segment[1] + self.layout.key_token_index[keys]
        return np.clip(row, 0, height - 1)

    def _behind(self, query_segment: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Events from the last one of a token's part to the first one of the query's segment.

        Token j of k stands for the j-th of k parts of its segment's items.
        """
        items, tokens = self.segment
        age = query_segment - self.layout.key_segment[keys]
        last = -(-(self.layout.key_token_index[keys] + 1) * items // tokens) - 1
        return age * items - last

    def _events(self, offset: np.ndarray) -> np.ndarray:
        """Events of its segment before the query at an offset; a token is behind all of them."""
        return np.minimum(offset, self.segment[0])

    def _part_rows(self, events: Array) -> jax.Array:
        """Rows of the table of parts; what is farther than trained counts as its last row."""
        assert self.parts is not None
        return jnp.clip(jnp.asarray(events), 0, len(self.parts) - 1)


jax.tree_util.register_dataclass(
    RelativeBias,
    data_fields=["distance", "age", "parts", "time", "query_times", "key_times"],
    meta_fields=["layout", "segment"],
)


def _time_bias(table: jax.Array, query: Array, key: Array) -> jax.Array:
    """[..., Q, 1] and [..., 1, K] seconds to [..., N, Q, K]."""
    return jnp.moveaxis(table[time_bucket(query, key)], -1, -3)


def _by_segment(times: Array, run: Run) -> jax.Array:
    """A run's times [B, s P] as [s, B, P]."""
    return jnp.swapaxes(times.reshape((-1, run.count, run.length)), 0, 1)


class BiasTables(nn.Module):
    """Parameters of `RelativeBias` of one layer; sizes follow the model's own layout."""

    layout: SegmentLayout  # the model's; derived layouts share its tables
    heads: int
    distance: bool
    time: bool
    parts: bool = False

    @nn.compact
    def __call__(
        self, layout: SegmentLayout, times: Times, cached_times: Array | None
    ) -> RelativeBias | None:
        """The bias of a layout, None without tables; cached_times: int32 [B, C] seconds."""
        init = nn.initializers.normal(0.02)
        rows = max(n + k for n, k in self.layout.segments)
        items, tokens = self.layout.segments[0][0], max(k for _, k in self.layout.segments)
        ages = self.layout.max_segments * tokens if self.layout.positions == "segment" else 0
        if not (self.distance or self.time or ages):
            return None
        events = (self.layout.max_segments + 1) * items + 1

        def table(name: str, size: int) -> jax.Array:
            return self.param(name, init, (size, self.heads), jnp.float32)

        key_times = times.key
        if cached_times is not None:
            key_times = jnp.concatenate([cached_times, key_times], axis=1)
        return RelativeBias(
            layout=layout,
            segment=(items, tokens),
            distance=table("distance", rows) if self.distance else None,
            age=table("age", ages) if ages else None,
            parts=table("parts", events) if self.parts and ages else None,
            time=table("time", TIME_BUCKETS + 1) if self.time else None,
            query_times=times.query,
            key_times=key_times,
        )
