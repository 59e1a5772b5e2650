"""The compressor: learnable tokens and a segment layout around any encoder.

PerSRec (arXiv 2601.03479 §3): `k` learnable tokens stand behind every segment; they are the
same vectors for every user and become personal through what they attend to. Their keys and
values are all that later positions see of the segment.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.config import ModelConfig
from jaxrec.layout import SegmentLayout
from jaxrec.nn.hstu import HSTUBlock
from jaxrec.nn.llama import LlamaBlock
from jaxrec.nn.sasrec import SASRecBlock
from jaxrec.nn.stack import Block, Stack, keep_outputs
from jaxrec.types import KV, Times

ENCODERS: dict[str, type[Block]] = {
    "hstu": HSTUBlock,
    "sasrec": SASRecBlock,
    "llama": LlamaBlock,
}

KV_AXES = KV(2, 2, 1, 1)  # of the tokens


class Compressor(nn.Module):
    """Item vectors of a history -> encoder outputs at every position, K/V of the tokens.

    `base` is the model's layout; a call may use any layout derived from it (`extension`,
    `request`, `with_segments`): parameters are shared.
    """

    config: ModelConfig
    base: SegmentLayout

    def setup(self) -> None:
        init = nn.initializers.normal(0.02)
        width = self.config.width
        self.rotary = self.config.backbone == "llama"  # keys and queries carry the position
        if self.rotary and self.base.positions != "segment":
            raise ValueError(
                f"layout.positions={self.base.positions!r}: model.backbone=llama rotates by the "
                "offset inside the segment, layout.positions=segment is needed"
            )
        if self.config.state == "embedding" and self.base.fixed:
            raise ValueError("model.state='embedding' needs a stream of equal segments")
        # a stream reuses its k vectors behind every segment, a fixed layout has its own for each
        self.num_vectors = (
            self.base.num_tokens if self.base.fixed else max(k for _, k in self.base.segments)
        )
        if self.num_vectors:
            # unit scale: a token has no position embedding to tell it from its neighbours (rotary
            # positions do: there, tokens start like items)
            token_init = init if self.rotary else nn.initializers.normal(1.0)
            self.tokens = self.param("tokens", token_init, (self.num_vectors, width))
        if not self.rotary:
            self.positions = self.param("positions", init, (self.base.num_positions, width))
        self.encoder = Stack(self.config, self.base, ENCODERS[self.config.backbone])
        self.embed_dropout = nn.Dropout(self.config.embed_dropout)

    def __call__(
        self,
        x: jax.Array,
        layout: SegmentLayout,
        lengths: jax.Array,
        times: jax.Array,
        *,
        kv: KV | None = None,
        first: Any = 0,
        train: bool = False,
    ) -> tuple[jax.Array, KV]:
        """Encoder outputs [B, T, D] and the K/V of the layout's tokens.

        x: [B, E, D] item vectors; lengths: [B, S]; times: int32 [B, E + 1] seconds, the entry
        behind a slot is the time of the event it predicts; kv: K/V of `layout.num_cached`
        earlier tokens; first: segments of the history before this forward ([B] or scalar,
        `absolute` positions only).
        """
        layout_times = position_times(layout, times, self.config.request_time)
        x = self._insert(x, layout)
        if not self.rotary:
            ids = layout.position_ids(lengths, first)
            position = self.positions[ids]
            if layout.positions == "segment":
                position = position * ~layout.is_token[:, None]
            x = x + (position if position.ndim == 3 else position[None])
        x = self.embed_dropout(x, deterministic=not train)
        if self.config.state == "embedding" and (layout.num_tokens or layout.num_cached):
            return self._in_turn(x, layout, lengths, layout_times, kv, train)
        return self.encoder(x, layout, lengths, layout_times, kv=kv, train=train)

    def _in_turn(
        self,
        x: jax.Array,
        layout: SegmentLayout,
        lengths: jax.Array,
        times: Times,
        kv: KV | None,
        train: bool,
    ) -> tuple[jax.Array, KV]:
        """The encoder segment by segment: a token's output is what later segments see of it.

        The same steps, on the same shapes, as making a state and extending it.
        """
        size, tokens = self.base.segments[0]
        slots = self.base.max_segments * tokens
        if kv is None:
            nothing = jnp.zeros((x.shape[0], slots), jnp.int32)
            outputs = jnp.zeros((*nothing.shape, self.config.width), jnp.float32)
            kv = keep_outputs(outputs, nothing, nothing > 0)
        count = sum(1 for _, k in layout.segments if k)
        cached = (tokens,) * self.base.max_segments
        step = dataclasses.replace(layout, segments=((size, tokens),), cached=cached)
        stop = count * (size + tokens)
        parts = []
        if count:

            def cut(a: jax.Array) -> jax.Array:
                """[B, count x (n + k), ...] -> [count, B, n + k, ...]."""
                split = a[:, :stop].reshape(a.shape[0], count, size + tokens, *a.shape[2:])
                return jnp.swapaxes(split, 0, 1)

            def segment(encoder: Stack, kv: KV, part: Any) -> tuple[KV, jax.Array]:
                x, lengths, key, query = part
                y, new = encoder(x, step, lengths, Times(key, query), kv=kv, train=train)
                moved = (
                    jnp.concatenate([old, fresh.astype(old.dtype)], axis=axis)
                    for old, fresh, axis in zip(kv, new, KV_AXES, strict=True)
                )
                newest = (
                    jax.lax.slice_in_dim(both, tokens, None, axis=axis)
                    for both, axis in zip(moved, KV_AXES, strict=True)
                )
                return KV(*newest), y

            scan = nn.scan(
                segment,
                variable_broadcast="params",
                split_rngs={"params": False, "dropout": True},
                length=count,
            )
            have = jnp.swapaxes(lengths[:, :count], 0, 1)[..., None]
            kv, y = scan(self.encoder, kv, (cut(x), have, cut(times.key), cut(times.query)))
            parts.append(jnp.swapaxes(y, 0, 1).reshape(x.shape[0], stop, -1))
        if count < layout.num_segments:
            last = dataclasses.replace(layout, segments=layout.segments[-1:], cached=cached)
            rest = Times(times.key[:, stop:], times.query[:, stop:])
            y, _ = self.encoder(x[:, stop:], last, lengths[:, -1:], rest, kv=kv, train=train)
            parts.append(y)
        y = jnp.concatenate(parts, axis=1)
        own = layout.token_positions
        valid = jnp.asarray(layout.valid(lengths))
        return y, keep_outputs(y[:, own], times.key[:, own], valid[:, own])

    def _insert(self, x: jax.Array, layout: SegmentLayout) -> jax.Array:
        """Puts the token vectors behind their segments: [B, E, D] -> [B, T, D]."""
        if not layout.num_tokens:
            return x
        batch, _, width = x.shape
        index = (
            np.arange(layout.num_tokens)
            if layout.fixed
            else layout.token_index[layout.token_positions]
        )
        source = np.zeros(layout.length, np.int64)
        source[layout.item_positions] = np.arange(layout.num_items)
        source[layout.token_positions] = layout.num_items + index
        tokens = jnp.broadcast_to(self.tokens[None], (batch, self.num_vectors, width))
        return jnp.concatenate([x, tokens.astype(x.dtype)], axis=1)[:, source]


def position_times(layout: SegmentLayout, times: jax.Array, request_time: bool) -> Times:
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
