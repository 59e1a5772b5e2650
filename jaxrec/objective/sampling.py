"""Negatives of the sampled losses: items drawn uniformly or by popularity, with their log q.

Dimension letters: V items, M negatives. Item ids are 1..V, row 0 is padding.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.types import Array

UNIFORM_SHARE = 0.1  # of popularity-sampled negatives: no item has zero probability
POPULARITY_POWER = 0.75  # flattens popularity, as in word2vec (arXiv 1310.4546, section 2.2)


def sample_negatives(
    rng: jax.Array,
    num_items: int,
    count: int,
    counts: Array | None = None,
    sampling: str = "uniform",
) -> tuple[jax.Array, jax.Array]:
    """`count` item ids drawn with replacement, int32 [M] in 1..V, and log q [V + 1] of each item.

    sampling: uniform, or popularity: a tenth of the draws is uniform, the others follow `counts`
    [V + 1] ** 0.75 (events per item; entry 0 is ignored), so q is positive everywhere. log q of
    row 0 is -inf.
    Raises ValueError on popularity without counts or counts of another length.
    """
    pad = jnp.full((1,), -jnp.inf, jnp.float32)
    choice, draw, value = jax.random.split(rng, 3)
    uniform = jax.random.randint(draw, (count,), 1, num_items + 1, jnp.int32)
    if sampling == "uniform":
        log_q = jnp.full((num_items,), -jnp.log(jnp.float32(num_items)))
        return uniform, jnp.concatenate([pad, log_q])
    if sampling != "popularity":
        raise ValueError(f"sampling={sampling!r}: allowed are uniform, popularity")
    if counts is None or counts.shape != (num_items + 1,):
        shape = None if counts is None else counts.shape
        raise ValueError(f"counts has shape {shape}: popularity needs ({num_items + 1},)")
    power = jnp.asarray(counts, jnp.float32)[1:] ** POPULARITY_POWER
    total = jnp.cumsum(power)
    # the uniform share is a draw of its own, not a constant inside the cumulative sum, whose
    # float32 rounding would swallow it in a large catalog
    points = jax.random.uniform(value, (count,)) * total[-1]
    popular = jnp.searchsorted(total, points, side="right").astype(jnp.int32) + 1
    popular = jnp.minimum(popular, num_items)
    empty = total[-1] <= 0
    share = jnp.where(empty, 1.0, UNIFORM_SHARE)
    q = share / num_items + (1 - share) * power / jnp.where(empty, 1.0, total[-1])
    ids = jnp.where(jax.random.uniform(choice, (count,)) < share, uniform, popular)
    return ids, jnp.concatenate([pad, jnp.log(q)])


class Negatives(NamedTuple):
    """ids: int32 [M] drawn items; log_q: float32 [M] log-probability of each one's draw."""

    ids: Array
    log_q: Array


class Sampler(NamedTuple):
    """Popularity in two levels, so that a draw costs the same in any catalog.

    blocks: float32 [R] cumulative popularity of blocks of items; within: float32 [R, W]
    cumulative inside each block. Single precision resolves both; over one cumulative sum of
    10⁸ items it would not.
    """

    blocks: Array
    within: Array


def make_sampler(counts: Array, width: int = 1024) -> Sampler:
    """The sampler of `counts` [V + 1] ** 0.75 (entry 0 is ignored), made once on the host."""
    power = np.asarray(counts, np.float64)[1:] ** POPULARITY_POWER
    power = np.pad(power, (0, -len(power) % width)).reshape(-1, width)
    within = np.cumsum(power, axis=1)
    blocks = np.cumsum(within[:, -1])
    return Sampler(blocks.astype(np.float32), within.astype(np.float32))


def draw_negatives(
    rng: jax.Array, num_items: int, count: int, sampler: Sampler | None = None
) -> Negatives:
    """`sample_negatives` (uniform without a sampler) in time that does not depend on V.

    Uniform draws are the same ids from the same key; popular ones follow the same
    distribution.
    """
    choice, draw, value = jax.random.split(rng, 3)
    uniform = jax.random.randint(draw, (count,), 1, num_items + 1, jnp.int32)
    if sampler is None:
        return Negatives(uniform, jnp.full((count,), -math.log(num_items), jnp.float32))
    blocks, within = jnp.asarray(sampler.blocks), jnp.asarray(sampler.within)
    first, second = jax.random.split(value)
    total, width = blocks[-1], within.shape[1]
    point = jax.random.uniform(first, (count,)) * total
    block = jnp.searchsorted(blocks, point, side="right")
    block = jnp.minimum(block, blocks.shape[0] - 1)
    point = jax.random.uniform(second, (count,)) * within[block, -1]
    column = jnp.sum(within[block] <= point[:, None], axis=1, dtype=jnp.int32)
    column = jnp.minimum(column, width - 1)
    popular = jnp.minimum(block.astype(jnp.int32) * width + column + 1, num_items)
    share = jnp.where(total > 0, UNIFORM_SHARE, 1.0)
    ids = jnp.where(jax.random.uniform(choice, (count,)) < share, uniform, popular)
    # an item's popularity is the step of the cumulative sum at its place
    block, column = (ids - 1) // width, (ids - 1) % width
    before = within[block, jnp.maximum(column - 1, 0)]
    power = within[block, column] - jnp.where(column > 0, before, 0.0)
    q = share / num_items + (1 - share) * power / jnp.where(total > 0, total, 1.0)
    return Negatives(ids, jnp.log(q))
