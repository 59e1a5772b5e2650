"""How much attention the compressed tokens of a trained run pay to every event."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data import pipeline, windows
from jaxrec.data.windows import Cut
from jaxrec.errors import ConfigError
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from jaxrec.nn import attention
from jaxrec.nn.attention.weights import Weights
from jaxrec.session import Session
from jaxrec.types import KV, Array, Batch, Params

BATCH = 32  # users per batch; dense attention weights are large


class Attended(NamedTuple):
    """What the tokens of U users attend to and hand on.

    user: int [U].
    items: int [U, S, n], events of the segments.
    attention: float32 [U, S, k, n], share of a token's attention on each of them, mean over
        layers.
    earlier: float32 [U, S, k], share on the tokens of earlier segments.
    values: float32 [U, S, k, F], the tokens' values in all layers.
    """

    user: np.ndarray
    items: np.ndarray
    attention: np.ndarray
    earlier: np.ndarray
    values: np.ndarray


@contextlib.contextmanager
def recording(sink: Callable[[jax.Array], None]) -> Iterator[str]:
    """Registers an attention backend that records attention weights; yields its name.

    sink: called layer by layer with float32 [B, C, C_cached + T], absolute weights of the
    tokens on every key, summed over heads. The backend computes what `dense` computes.
    """
    name = "recorded"

    def backend(
        inputs: attention.Inputs, layout: SegmentLayout, weigh: attention.Weigh
    ) -> jax.Array:
        def recorded(logits: Sequence[jax.Array], masks: Sequence[Array]) -> Weights:
            weights = weigh(logits, masks)
            divided = weights.groups[0] / (1 if weights.total is None else weights.total)
            of_tokens = jnp.abs(divided[:, :, layout.token_positions]).sum(1)
            jax.debug.callback(sink, of_tokens, ordered=True)
            return weights

        return attention.BACKENDS["dense"](inputs, layout, recorded)

    attention.BACKENDS[name] = backend
    try:
        yield name
    finally:
        del attention.BACKENDS[name]


def attended(session: Session, users: np.ndarray) -> Attended:
    """What the tokens of those users attend to who have all `max_segments` segments.

    Raises ConfigError when no user has that many segments.
    """
    config, prepared, layout = session.config, session.prepared, session.layout
    cut = _complete(session, users)
    params = session.trained_model().params
    layers: list[np.ndarray] = []
    batches = []
    with recording(lambda weights: layers.append(np.asarray(weights))) as name:
        recorded = dataclasses.replace(config.model, attention=name)
        model = recommender.build(recorded, config.loss, layout, prepared.num_items)
        forward = jax.jit(functools.partial(_token_values, model))
        for start in range(0, len(cut.user), BATCH):
            rows = cut.take(slice(start, start + BATCH))
            batch = pipeline.read_batch(rows, layout, prepared.source)
            layers.clear()
            values = np.asarray(forward(params, batch))
            jax.effects_barrier()
            share = np.mean([weights / _total(weights) for weights in layers], axis=0)
            batches.append(_by_segment(layout, batch, share, values))
    return Attended(*(np.concatenate(column) for column in zip(*batches, strict=True)))


def _complete(session: Session, users: np.ndarray) -> Cut:
    """Histories up to the last event of the users with all segments, in whole batches."""
    layout = session.layout
    count = layout.num_segments - 1
    end = session.prepared.lengths[users]
    cut = windows.eval_cuts(users, end - 1, end, session.config.layout)
    cut = cut.take(np.flatnonzero(cut.segments == count))
    if not len(cut.user):
        raise ConfigError(
            f"layout.max_segments={count}: none of the evaluated users has so many segments of "
            f"{layout.segments[0][0]} events; lower it, or raise experiments.min_events"
        )
    return cut.padded(-(-len(cut.user) // BATCH) * BATCH)


def _by_segment(
    layout: SegmentLayout, batch: Batch, share: np.ndarray, values: np.ndarray
) -> Attended:
    """Attention `share` [B, C, T] and `values` [B, C, F] cut into segments, without padding."""
    size, tokens = layout.segments[0]
    count = layout.num_segments - 1
    users = np.asarray(batch.user)
    share = share.reshape(len(users), count, tokens, -1)
    positions = np.arange(count)[:, None] * (size + tokens) + np.arange(size)[None]
    on_items = np.take_along_axis(share, positions[None, :, None], axis=3)
    is_token = layout.token_positions
    on_earlier = [share[:, s][..., is_token[: s * tokens]].sum(-1) for s in range(count)]
    columns = Attended(
        user=users,
        items=np.asarray(batch.items)[:, : count * size].reshape(-1, count, size),
        attention=on_items.astype(np.float32),
        earlier=np.stack(on_earlier, axis=1).astype(np.float32),
        values=values.reshape(len(users), count, tokens, -1),
    )
    return Attended(*(column[users >= 0] for column in columns))


def _total(weights: np.ndarray) -> np.ndarray:
    """Attention of each token on all keys; 1 in padding rows, which have none."""
    total = weights.sum(-1, keepdims=True)
    return np.where(total > 0, total, 1.0)


def _token_values(model: recommender.Model, params: Params, batch: Batch) -> jax.Array:
    """Values of the tokens in all layers, [B, C, L N H]."""
    items, layout = batch.items[:, :-1], model.layout
    _, kv = model.forward(params, items, layout, batch.lengths, batch.times)
    assert isinstance(kv, KV)  # of model.state=kv
    by_token = jnp.moveaxis(kv.v, 0, 2)  # [B, C, L, N, H]
    return by_token.reshape(*by_token.shape[:2], -1)
