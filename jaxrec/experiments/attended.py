"""How much attention the tokens of a trained run pay to every event, and what they hand on."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data import pipeline, windows
from jaxrec.errors import ConfigError
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from jaxrec.nn import attention
from jaxrec.session import Session
from jaxrec.types import KV, Array

BATCH = 32  # users whose attention is computed at once, densely


@contextlib.contextmanager
def recording(sink: Callable[[Any], None]) -> Iterator[str]:
    """Names an attention backend that tells how much attention every token pays to every key.

    sink: gets float32 [B, C, C_cached + T], absolute weights summed over heads, layer by layer
    as the layers run. The backend computes what `dense` computes.
    """
    name = "recorded"

    def backend(
        inputs: attention.Inputs, layout: SegmentLayout, weigh: attention.Weigh
    ) -> jax.Array:
        def recorded(logits: Sequence[jax.Array], masks: Sequence[Array]) -> list[jax.Array]:
            weights = weigh(logits, masks)
            paid = jnp.abs(weights[0][:, :, layout.token_positions]).sum(1)
            jax.debug.callback(sink, paid, ordered=True)
            return weights

        return attention.BACKENDS["dense"](inputs, layout, recorded)

    attention.BACKENDS[name] = backend
    try:
        yield name
    finally:
        del attention.BACKENDS[name]


def looked_at(session: Session, users: np.ndarray) -> dict[str, np.ndarray]:
    """What the tokens of users with all `max_segments` segments attend to and hand on.

    user [U]; items int [U, S, n], events of the segments; paid [U, S, k, n], share of a
    token's attention on each of them, mean over layers; earlier [U, S, k], share on tokens
    of earlier segments; values [U, S, k, F], the tokens' values of all layers. Raises ConfigError
    when no user has so many segments.
    """
    config, prepared, layout = session.config, session.prepared, session.layout
    size, tokens = layout.segments[0]
    count = layout.num_segments - 1
    end = prepared.lengths[users]
    cut = windows.eval_cuts(users, end - 1, end, config.layout)
    cut = cut.take(np.flatnonzero(cut.segments == count))
    total = len(cut.user)
    if not total:
        raise ConfigError(
            f"layout.max_segments={count}: none of the evaluated users has so many segments of "
            f"{size} events; lower it, or raise experiments.min_events"
        )
    params = session.trained_model().params
    # where the items, own and earlier tokens of segment s stand
    block = size + tokens
    own = np.arange(count)[:, None] * block + np.arange(size)[None]
    is_token = layout.token_positions
    layers: list[np.ndarray] = []
    parts: dict[str, list[np.ndarray]] = {
        name: [] for name in ("user", "items", "paid", "earlier", "values")
    }
    with recording(lambda paid: layers.append(np.asarray(paid))) as name:
        recorded = dataclasses.replace(config.model, attention=name)
        model = recommender.build(recorded, config.loss, layout, prepared.num_items)
        forward = jax.jit(functools.partial(_tokens, model))
        cut = cut.padded(-(-total // BATCH) * BATCH)
        for start in range(0, len(cut.user), BATCH):
            batch = pipeline.read_batch(
                cut.take(slice(start, start + BATCH)), layout, prepared.source
            )
            layers.clear()
            values = np.asarray(forward(params, batch))
            jax.effects_barrier()
            share = np.mean([paid / _total(paid) for paid in layers], axis=0)
            share = share.reshape(BATCH, count, tokens, -1)
            among = np.take_along_axis(share, own[None, :, None], axis=3)
            before = [share[:, s][..., is_token[: s * tokens]].sum(-1) for s in range(count)]
            have = np.asarray(batch.user) >= 0
            found = {
                "user": np.asarray(batch.user),
                "items": np.asarray(batch.items)[:, : count * size].reshape(BATCH, count, size),
                "paid": among.astype(np.float32),
                "earlier": np.stack(before, axis=1).astype(np.float32),
                "values": values.reshape(BATCH, count, tokens, -1),
            }
            for key, value in found.items():
                parts[key].append(value[have])
    return {key: np.concatenate(value) for key, value in parts.items()}


def _total(paid: np.ndarray) -> np.ndarray:
    """Attention of each token on all keys, 1 where there is none (padding rows)."""
    total = paid.sum(-1, keepdims=True)
    return np.where(total > 0, total, 1.0)


def _tokens(model: recommender.Model, params: Any, batch: Any) -> jax.Array:
    """Values of the tokens of all layers, [B, C, L N H]."""
    items, layout = batch.items[:, :-1], model.layout
    _, kv = model.forward(params, items, layout, batch.lengths, batch.times)
    assert isinstance(kv, KV)  # of model.state=kv
    moved = jnp.moveaxis(kv.v, 0, 2)  # [B, C, L, N, H]
    return moved.reshape(*moved.shape[:2], -1)
