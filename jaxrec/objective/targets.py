"""Which positions of a layout predict which items of a batch."""

import jax.numpy as jnp
import numpy as np

from jaxrec.layout import SegmentLayout
from jaxrec.types import PAD, Batch, Targets


def next_items(layout: SegmentLayout, batch: Batch, token_weight: float = 1.0) -> Targets:
    """The targets of every predictor of a layout, in time order.

    Every item position predicts the next item event, and so does the last token of a segment,
    whose weight is multiplied by `token_weight` (0: left out). Weights are 0 where the
    predicting position or the event does not exist.
    """
    positions, slots = layout.predictors, layout.target_slots
    factors = np.where(layout.is_token[positions], token_weight, 1.0)
    order = np.argsort(positions)
    order = order[factors[order] > 0]
    positions, slots, factors = positions[order], slots[order], factors[order]
    weights = batch.weights[:, slots] * factors[None].astype(np.float32)
    weights = weights * layout.valid(batch.lengths)[:, positions]
    ids = jnp.asarray(batch.items)[:, slots]
    return Targets(positions, slots, ids, jnp.where(ids == PAD, 0.0, weights))
