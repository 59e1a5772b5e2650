"""The compressor: learnable tokens and a segment layout around any encoder.

PerSRec (arXiv 2601.03479 §3): `k` learnable tokens follow every segment; they are the same
vectors for every user and become personal through what they attend to. Their keys and
values are all that later positions see of the segment.
"""

import dataclasses
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.config import ModelConfig
from jaxrec.layout import SegmentLayout
from jaxrec.model.token_inputs import POOLED, PooledItems, mean_items
from jaxrec.model.token_memory import push_segment
from jaxrec.nn.depth import WeightPlacement
from jaxrec.nn.hstu import HSTUBlock
from jaxrec.nn.llama import LlamaBlock
from jaxrec.nn.sasrec import SASRecBlock
from jaxrec.nn.stack import AVERAGES, Block, Stack
from jaxrec.runtime.mesh import PLACEMENT
from jaxrec.types import KV, Array, Times, TokenOutputs, TokenState

ENCODERS: dict[str, type[Block]] = {
    "hstu": HSTUBlock,
    "sasrec": SASRecBlock,
    "llama": LlamaBlock,
}


class _SegmentInputs(NamedTuple):
    """x [S, B, n + k, D], lengths [S, B, 1] and times [S, B, n + k] of segments."""

    x: jax.Array
    lengths: jax.Array
    times: Times


class Compressor(nn.Module):
    """Item vectors of a history -> encoder outputs at every position, K/V of the tokens.

    `base` is the model's layout; a call may use any layout derived from it (`extension`,
    `request`, `with_segments`): parameters are shared. placement: where a mesh keeps the weights.
    """

    config: ModelConfig
    base: SegmentLayout
    placement: WeightPlacement | None = PLACEMENT

    def setup(self) -> None:
        """Token vectors, position table and encoder; ValueError for what cannot go together."""
        init = nn.initializers.normal(0.02)
        width = self.config.width
        self.rotary = self.config.backbone == "llama"  # keys and queries carry the position
        if self.rotary and self.base.positions != "segment":
            raise ValueError(
                f"layout.positions={self.base.positions!r}: model.backbone=llama rotates by the "
                "offset inside the segment, layout.positions=segment is needed"
            )
        if self.base.fixed and self.config.state == "embedding":
            raise ValueError("model.state='embedding' needs a stream of equal segments")
        if self.base.fixed and self.config.token_input in AVERAGES:
            raise ValueError(
                f"model.token_input={self.config.token_input!r} needs a stream of equal segments"
            )
        # a stream reuses its k vectors behind every segment, a fixed layout has its own for each
        self.num_vectors = (
            self.base.num_tokens if self.base.fixed else max(k for _, k in self.base.segments)
        )
        if self.num_vectors:
            # unit scale: a token has no position embedding to tell it from its neighbours, and the
            # average that may be added to it is normalised
            token_init = nn.initializers.normal(1.0)
            self.tokens = self.param("tokens", token_init, (self.num_vectors, width))
            if self.config.token_input in POOLED:
                parts = self.config.token_input == "parts"
                self.pooled = PooledItems(self.num_vectors, self.config.heads, parts)
        if not self.rotary:
            self.positions = self.param("positions", init, (self.base.num_positions, width))
        self.encoder = Stack(self.config, self.base, ENCODERS[self.config.backbone], self.placement)
        self.embed_dropout = nn.Dropout(self.config.embed_dropout)

    def __call__(
        self,
        x: Array,
        layout: SegmentLayout,
        lengths: Array,
        times: Array,
        *,
        kv: TokenState | None = None,
        first: Array | int = 0,
        train: bool = False,
    ) -> tuple[jax.Array, TokenState]:
        """Encoder outputs [B, T, D] and what a state keeps of the layout's tokens.

        x: [B, E, D] item vectors; lengths: [B, S]; times: int32 [B, E + 1] seconds, the entry
        behind a slot is the time of the event it predicts; kv: what a state keeps of
        `layout.num_cached` earlier tokens; first: segments of the history before this forward ([B]
        or scalar, `absolute` positions only). Raises ValueError for a `kv` that is not what
        `model.state` keeps.
        """
        if kv is not None and isinstance(kv, KV) != (self.config.state == "kv"):
            raise ValueError(
                f"model.state={self.config.state!r} keeps something else than {type(kv).__name__}"
            )
        users, slots = x.shape[0], layout.num_items
        chex.assert_shape(x, (users, slots, self.config.width))
        chex.assert_shape(lengths, (users, layout.num_segments))
        chex.assert_shape(times, (users, slots + 1))
        layout_times = position_times(layout, times, self.config.request_time)
        x = self._insert(x, layout, lengths)
        if not self.rotary:
            ids = layout.position_ids(lengths, first)
            position = self.positions[ids]
            if layout.positions == "segment":
                position = position * ~layout.is_token[:, None]
            x = x + (position if position.ndim == 3 else position[None])
        x = self.embed_dropout(x, deterministic=not train)
        if self.config.state == "embedding" and (layout.num_tokens or layout.num_cached):
            return self._segment_by_segment(
                x, layout, lengths, layout_times, memory=kv, train=train
            )
        return self.encoder(
            x,
            layout,
            lengths,
            layout_times,
            kv=kv,
            token_inputs=self.tokens if self.num_vectors else None,
            train=train,
        )

    def _segment_by_segment(
        self,
        x: Array,
        layout: SegmentLayout,
        lengths: Array,
        times: Times,
        *,
        memory: TokenState | None,
        train: bool,
    ) -> tuple[jax.Array, TokenOutputs]:
        """The encoder, one segment after the other: later segments see a token's last output.

        The same steps, on the same shapes, as making a state and extending it. memory: outputs of
        `layout.num_cached` earlier tokens, None for no events.
        """
        size, tokens = self.base.segments[0]
        cached = (tokens,) * self.base.max_segments
        if memory is None:
            nothing = jnp.zeros((x.shape[0], sum(cached)), jnp.int32)
            zeros = jnp.zeros((*nothing.shape, self.config.width), jnp.float32)
            memory = TokenOutputs(zeros, nothing, nothing > 0)
        count = sum(1 for _, k in layout.segments if k)
        stop = count * (size + tokens)
        pieces = []
        if count:
            step = dataclasses.replace(layout, segments=((size, tokens),), cached=cached)

            def split(a: Array) -> jax.Array:
                """[B, count x (n + k), ...] -> [count, B, n + k, ...]."""
                shape = (a.shape[0], count, size + tokens, *a.shape[2:])
                return jnp.swapaxes(a[:, :stop].reshape(shape), 0, 1)

            def segment(
                encoder: Stack, memory: TokenState, inputs: _SegmentInputs
            ) -> tuple[TokenState, jax.Array]:
                x, lengths, times = inputs
                y, new = encoder(x, step, lengths, times, kv=memory, train=train)
                return push_segment(memory, new), y

            scan = nn.scan(
                segment,
                variable_broadcast="params",
                split_rngs={"params": False, "dropout": True},
                length=count,
            )
            segment_lengths = jnp.swapaxes(lengths[:, :count], 0, 1)[..., None]
            segment_times = Times(split(times.key), split(times.query))
            inputs = _SegmentInputs(split(x), segment_lengths, segment_times)
            memory, y = scan(self.encoder, memory, inputs)
            pieces.append(jnp.swapaxes(y, 0, 1).reshape(x.shape[0], stop, -1))
        if count < layout.num_segments:
            last = dataclasses.replace(layout, segments=layout.segments[-1:], cached=cached)
            rest = Times(times.key[:, stop:], times.query[:, stop:])
            y, _ = self.encoder(x[:, stop:], last, lengths[:, -1:], rest, kv=memory, train=train)
            pieces.append(y)
        y = jnp.concatenate(pieces, axis=1)
        tokens_at = layout.token_positions
        valid = jnp.asarray(layout.valid(lengths))
        return y, TokenOutputs(y[:, tokens_at], times.key[:, tokens_at], valid[:, tokens_at])

    def _insert(self, x: Array, layout: SegmentLayout, lengths: Array) -> Array:
        """Puts what tokens start from behind their segments: [B, E, D] -> [B, T, D]."""
        if not layout.num_tokens:
            return x
        users, slots, width = x.shape
        index = layout.token_index[layout.token_positions]
        if layout.fixed:
            index = np.arange(layout.num_tokens)
        tokens = jnp.broadcast_to(self.tokens[index], (users, layout.num_tokens, width))
        if self.config.token_input in AVERAGES:
            size, count = self.base.segments[0]
            segments = sum(1 for _, k in layout.segments if k)
            items = jnp.reshape(x[:, : segments * size], (users, segments, size, width))
            average = self.pooled if self.config.token_input in POOLED else mean_items
            start = average(items, jnp.asarray(lengths)[:, :segments])
            start = jnp.broadcast_to(start, (users, segments, count, width))
            tokens = tokens + start.reshape(tokens.shape)
        place = np.zeros(layout.length, np.int64)
        place[layout.item_positions] = np.arange(layout.num_items)
        place[layout.token_positions] = slots + np.arange(layout.num_tokens)
        return jnp.concatenate([x, tokens.astype(x.dtype)], axis=1)[:, place]


def position_times(layout: SegmentLayout, times: Array, request_time: bool) -> Times:
    """Key and query time of every position from the event times [B, E + 1].

    A token's time is that of its segment's last event. With `request_time` an item asks at
    the time of the event it predicts, except the last item of a complete segment, whose
    successor is unknown when the segment is compressed.
    """
    starts = layout.item_segment_starts
    slot = np.zeros(layout.length, np.int64)
    slot[layout.item_positions] = np.arange(layout.num_items)
    last = np.maximum(starts[1:] - 1, 0)
    slot[layout.token_positions] = last[layout.segment_id[layout.token_positions]]
    ask = slot
    if request_time:
        complete = np.asarray([k > 0 for _, k in layout.segments])[layout.segment_id]
        closes = complete & (slot == last[layout.segment_id])
        ask = np.where(layout.is_token | closes, slot, slot + 1)
    return Times(key=times[:, slot], query=times[:, ask])
