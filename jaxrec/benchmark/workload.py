"""Random histories, batches and whole-history queries: the inputs that benchmarks time."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.layout import SegmentLayout
from jaxrec.model.recommender import Model
from jaxrec.serving.state_rows import Events
from jaxrec.types import Array, Batch, Params, Queries

SECONDS = 3 * 10**7  # range of event times, about a year


def random_events(users: int, events: int, items: int, seed: int = 0) -> list[Events]:
    """Histories of uniformly drawn items 1..items at increasing times.

    >>> history, = random_events(users=1, events=3, items=9)
    >>> history.items.shape, bool((np.diff(history.times) >= 0).all())
    ((3,), True)
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(1, items + 1, (users, events)).astype(np.int32)
    times = np.sort(rng.integers(0, SECONDS, (users, events)), axis=1).astype(np.int32)
    return [Events(*history) for history in zip(drawn, times, strict=True)]


def stacked(histories: list[Events]) -> tuple[np.ndarray, np.ndarray]:
    """Items and times int32 [B, T] of histories of equal length T."""
    items, times = (np.stack(column) for column in zip(*histories, strict=True))
    return items, times


def random_batch(layout: SegmentLayout, users: int, num_items: int, seed: int = 0) -> Batch:
    """A training batch of full histories of uniformly drawn items; every event is a target."""
    rng = np.random.default_rng(seed)
    slots = layout.num_items + 1
    items = rng.integers(1, num_items + 1, (users, slots)).astype(np.int32)
    times = np.sort(rng.integers(0, SECONDS, (users, slots)), axis=1).astype(np.int32)
    lengths = np.asarray([[size for size, _ in layout.segments]] * users, np.int32)
    index = np.arange(users, dtype=np.int32)
    return Batch(items, times, lengths, np.ones((users, slots), np.float32), index, index)


def last_query(model: Model, block: int, params: Params, items: Array, times: Array) -> Queries:
    """Queries [B, ...] behind whole histories [B, T], computed for `block` users at a time.

    block bounds the memory of the forward pass; B must be a multiple of it.
    """

    def query(histories: tuple[jax.Array, jax.Array]) -> Queries:
        items, times = histories
        after = jnp.concatenate([times, times[:, -1:]], axis=1)
        lengths = jnp.full((items.shape[0], 1), items.shape[1], jnp.int32)
        y, _ = model.forward(params, items, model.layout, lengths, after)
        return model.queries(params, y[:, -1])

    block = min(block, items.shape[0])
    blocks = jax.tree.map(lambda a: a.reshape(-1, block, a.shape[-1]), (items, times))
    queries = jax.lax.map(query, blocks)
    return jax.tree.map(lambda a: a.reshape(items.shape[0], -1), queries)
