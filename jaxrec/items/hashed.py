"""Hashed catalogs, for more items than fit in memory: a vector is the sum of two shared rows.

    quotient   rows (i - 1) mod m and (i - 1) div m: m + V / m rows, and no two items have the same
               pair (quotient-remainder trick, arXiv 1909.02107, section 3; its sum variant)
    hash       two hash functions into m buckets: m rows whatever V is, and items may join without
               a new row; two items share both rows with probability 2 / m² (hash embeddings, arXiv
               1709.03933, without importance weights)

Row 0 is padding in both. Everything here works on ids: no array has a row per item.
"""

import jax
import jax.numpy as jnp

from jaxrec.config import ModelConfig
from jaxrec.types import PAD, Array

PARTS = 2  # rows of an item
SEEDS = (0x9E3779B9, 0x7F4A7C15)  # of the two hash functions


def height(config: ModelConfig, num_items: int) -> int:
    """Rows of the table of `num_items` items, padding included."""
    if config.item_hash == "none":
        return num_items + 1
    if config.item_hash == "hash":
        return 1 + config.item_rows
    return 1 + config.item_rows + -(-num_items // config.item_rows)


def rows_of(config: ModelConfig, ids: Array) -> jax.Array:
    """int32 [..., 2] table rows of item ids [...]; padding has row 0 twice."""
    ids = jnp.asarray(ids, jnp.int32)
    if config.item_hash == "hash":
        size = jnp.uint32(config.item_rows)
        buckets = [(_mixed(ids, seed) % size).astype(jnp.int32) for seed in SEEDS]
    else:
        size = jnp.int32(config.item_rows)
        buckets = [(ids - 1) % size, config.item_rows + (ids - 1) // size]
    rows = jnp.stack(buckets, axis=-1) + 1
    return jnp.where((ids == PAD)[..., None], PAD, rows)


def vectors(config: ModelConfig, table: jax.Array, ids: Array) -> jax.Array:
    """[..., W] item vectors of ids [...] from the shared rows [R, W]."""
    rows = rows_of(config, ids)
    return table[rows[..., 0]] + table[rows[..., 1]]


def _mixed(ids: jax.Array, seed: int) -> jax.Array:
    """uint32 [...]: MurmurHash3's finalizer, in which every bit of an id moves every other."""
    x = ids.astype(jnp.uint32) ^ jnp.uint32(seed)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
