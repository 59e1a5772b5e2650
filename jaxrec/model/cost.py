"""Analytic cost of a forward pass, from the model's configuration and the layout.

Counts multiplications and additions (2 per multiply-add) of matrix products; normalisation,
activations and masks are left out.
"""

from typing import Literal, NamedTuple

from jaxrec.config import LossConfig, ModelConfig
from jaxrec.layout import SegmentLayout
from jaxrec.model.token_inputs import POOLED
from jaxrec.nn.stack import keeps_inputs

EVENT_BYTES = 8  # item id and time of a raw event


class StateBytes(NamedTuple):
    """Bytes of one user's state by part; `total` is a whole row of the state store.

    vectors: K and V of the tokens, or their outputs. remembered: ids and times of compressed
    events, which scores that count them need. pending: ids and times of the events that are not
    compressed yet. other: time and validity of every token, the newest token's output, counts.
    """

    vectors: int
    remembered: int
    pending: int
    other: int

    @property
    def total(self) -> int:
        """All bytes that are kept of a user."""
        return sum(self)


def dense_flops(config: ModelConfig) -> int:
    """FLOPs of one layer's projections for one position."""
    width = config.width
    if config.backbone == "hstu":
        return 2 * width * 4 * width + 2 * width * width
    if config.backbone == "llama":
        query = 2 * 2 * width * config.heads * config.head_width  # and the way out
        key = 2 * 2 * width * config.kv_heads * config.head_width  # and value
        return query + key + 3 * 2 * width * config.ffn_width
    modern = config.sasrec.block == "modern"
    ffn = config.sasrec.ffn_width or (2 * width if modern else width)
    attention = 4 * 2 * width * width
    if modern:
        return attention + 2 * 2 * width * width + 3 * 2 * width * ffn
    return attention + 2 * 2 * width * ffn


def forward_flops(
    config: ModelConfig,
    layout: SegmentLayout,
    pairs: Literal["visible", "blocked", "dense"] = "visible",
) -> int:
    """FLOPs of the encoder over a layout: projections of every position, query-key pairs.

    pairs: those that are needed, or those that a backend computes (`SegmentLayout.pairs`). What
    tokens start from and the K and V that are made again of cached tokens are part of it.
    """
    attention = layout.pairs(pairs) * 2 * 2 * config.heads * config.head_width
    layers = config.layers * (layout.length * dense_flops(config) + attention)
    return layers + _pooling_flops(config, layout) + _made_again_flops(config, layout)


def _pooling_flops(config: ModelConfig, layout: SegmentLayout) -> int:
    """FLOPs of what tokens start from: weights of their segment's items, and the average."""
    if config.token_input not in POOLED:
        return 0
    return sum(n * k for n, k in layout.segments) * 2 * 2 * config.width


def _made_again_flops(config: ModelConfig, layout: SegmentLayout) -> int:
    """FLOPs of K and V of cached tokens that a state does not hold.

    model.state=kv: those of the first layer; without `keeps_inputs` they are the same for all
    users and segments and made of one segment's tokens. model.state=embedding: those of all layers,
    before every segment.
    """
    one = 2 * 2 * config.width * config.kv_heads * config.head_width
    if config.state == "kv":
        cached = (
            layout.num_cached if keeps_inputs(config, layout) else max(layout.cached, default=0)
        )
        return cached * one
    if not (layout.num_cached or layout.num_tokens):
        return 0
    tokens = layout.max_segments * max(*layout.cached, *(k for _, k in layout.segments), 0)
    return config.layers * layout.num_segments * tokens * one


def training_flops(
    config: ModelConfig, loss: LossConfig, layout: SegmentLayout, num_items: int
) -> int:
    """FLOPs of one example in a training step: forward and twice as much backward, of the encoder
    and of the scores against negatives (the catalog for loss.kind=softmax). Work that `remat`
    repeats is left out: it is no progress.
    """
    candidates = num_items if loss.kind == "softmax" else loss.negatives + 1
    scores = len(layout.predictors) * candidates * 2 * config.width
    return 3 * (forward_flops(config, layout) + scores)


def state_bytes(config: ModelConfig, layout: SegmentLayout, item_bytes: int = 4) -> StateBytes:
    """Bytes of one user's state in the layout of a stream.

    item_bytes: of a number of the tokens' vectors; encodings with scales keep those beside them.
    """
    size, tokens = layout.segments[0]
    width = 2 * (config.layers - 1) * config.kv_heads * config.head_width
    width += config.width * keeps_inputs(config, layout)
    if config.state == "embedding":
        width = config.width
    count = tokens * layout.max_segments
    remembered = bool(config.repeat_half_lives or config.repeat_half_times)
    return StateBytes(
        vectors=count * width * item_bytes,
        remembered=remembered * EVENT_BYTES * size * layout.max_segments,
        pending=EVENT_BYTES * layout.segments[-1][0],
        other=count * (4 + 1) + 4 * config.width + 3 * 4,
    )
