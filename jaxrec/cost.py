"""Analytic cost of a forward pass, from the model's configuration and the layout.

Counts multiplications and additions (2 per multiply-add) of matrix products; normalisation and
activation are left out.
"""

from jaxrec.config import ModelConfig
from jaxrec.layout import SegmentLayout


def dense_flops(config: ModelConfig) -> int:
    """FLOPs of one layer's projections for one position."""
    width = config.width
    if config.backbone == "hstu":
        return 2 * width * 4 * width + 2 * width * width
    modern = config.sasrec.block == "modern"
    ffn = config.sasrec.ffn_width or (2 * width if modern else width)
    attention = 4 * 2 * width * width
    if modern:
        return attention + 2 * 2 * width * width + 3 * 2 * width * ffn
    return attention + 2 * 2 * width * ffn


def forward_flops(config: ModelConfig, layout: SegmentLayout) -> int:
    """FLOPs of the encoder over a layout: projections of every position, visible pairs."""
    pairs = layout.pairs("visible") * 2 * 2 * config.width
    return config.layers * (layout.length * dense_flops(config) + pairs)


def state_bytes(config: ModelConfig, layout: SegmentLayout, item_bytes: int = 4) -> int:
    """Bytes of one user's K and V of the stored tokens."""
    tokens = layout.segments[0][1] * layout.max_segments
    return 2 * config.layers * tokens * config.width * item_bytes
