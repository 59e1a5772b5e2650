"""Elementwise FLOPs of a forward pass, beside the matrix products of `jaxrec.model.cost`."""

from typing import Literal

from jaxrec.config import ModelConfig
from jaxrec.layout import SegmentLayout

TIME_BUCKET_FLOPS = 12  # per pair: difference, its sign, clip, scale of the logarithm


def elementwise_flops(
    config: ModelConfig,
    layout: SegmentLayout,
    pairs: Literal["visible", "blocked", "dense"] = "visible",
) -> int:
    """FLOPs of one example outside matrix products: masks, activations, norms, residuals, biases.

    Counted as XLA counts them: one per elementwise operation, none for exponentials and
    logarithms (it lists those as transcendentals). Not for backbone `llama`.
    """
    if config.backbone == "hstu":
        # silu (3), divisor, mask, and the conversion of a sum; two norms, silu of 4 D, gate
        per_pair, per_position = 6, 29
        distance, time = config.hstu.position_bias, config.hstu.time_bias
    else:
        # mask, maximum, difference, sum, division; two norms with parameters, ReLU or SwiGLU, gates
        per_pair, per_position = 5, 53 if config.sasrec.block == "modern" else 24
        distance, time = config.sasrec.position_bias, config.sasrec.time_bias
    per_pair = config.heads * (per_pair + distance + time) + 1 + TIME_BUCKET_FLOPS * time
    per_layer = layout.pairs(pairs) * per_pair + layout.length * config.width * per_position
    return config.layers * per_layer
