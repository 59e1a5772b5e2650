"""The item table: what is stored of every item, and where it lies among the parameters.

    params["item"] = {"embedding": [V + 1, W]}      a row per item, row 0 is padding
                   + {"bias": [V + 1]}              with model.item_bias
                   + {"mean": [W], "scale": [W]}    with model.texts.model
    params["item"] = {"shared_embedding": [R, W]}   with model.item_hash (`hashed`)

Nothing outside this module spells these names. Everything with a row per item (the table, its
moments, its average) lies below a path that ends in one of `ROW_LEAVES`, so one rule places,
updates and grows all of them.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.config import ModelConfig
from jaxrec.items import hashed
from jaxrec.types import Array, Params

ITEM = "item"  # the group among the parameters
EMBEDDING, BIAS, SHARED = "embedding", "bias", "shared_embedding"
MEAN, SCALE = "mean", "scale"
ROW_LEAVES = (EMBEDDING, BIAS, SHARED)


class ItemRows(NamedTuple):
    """Stored rows of items: of the whole catalog, or of those that one training step touches.

    embedding: float32 [..., W] learned vectors. bias: float32 [...] or None.
    """

    embedding: Array
    bias: Array | None = None

    def take(self, ids: Array) -> "ItemRows":
        """The rows of `ids` [...]."""
        return ItemRows(self.embedding[ids], None if self.bias is None else self.bias[ids])


class RowSource(Protocol):
    """Whatever has the rows of items: `ItemRows`, or rows that live with their users."""

    def take(self, ids: Array, /) -> ItemRows:
        """The rows of ids, int32 [M] that all users share or [B, ...] of users' own."""
        ...


class _Table(nn.Module):
    """Draws the table; a module only for flax's keys, which depend on names and order."""

    config: ModelConfig
    num_items: int

    @nn.compact
    def __call__(self) -> None:
        config, width = self.config, item_width(self.config)
        if config.item_hash != "none":
            init = nn.initializers.normal(0.02 / math.sqrt(hashed.PARTS))
            self.param(SHARED, init, (hashed.height(config, self.num_items), width))
            return
        self.param(EMBEDDING, nn.initializers.normal(0.02), (self.num_items + 1, width))
        if config.item_bias:
            self.param(BIAS, nn.initializers.zeros, (self.num_items + 1,))
        if config.texts.model:
            self.param(MEAN, nn.initializers.zeros, (width,))
            self.param(SCALE, nn.initializers.ones, (width,))


def unconverted(rows: jax.Array) -> jax.Array:
    """The same rows, read from a table as they are stored.

    For rows that it will convert to bfloat16, the compiler of TPUs converts the table they come
    from first. It cannot do so behind integers.
    """
    bits = jax.lax.bitcast_convert_type(rows, f"int{8 * rows.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(bits), rows.dtype)


def item_width(config: ModelConfig) -> int:
    """W, numbers of a stored item vector."""
    return config.item_width or config.width


def init(config: ModelConfig, num_items: int, rng: jax.Array) -> Params:
    """The group `params["item"]` from a key: float32 leaves as in the module docstring."""
    return _Table(config, num_items).init(rng)["params"]


def has_item_rows(path: str) -> bool:
    """Whether the leaf of a path such as `opt_state/0/mu/item/embedding` has a row per item."""
    group, _, leaf = path.rpartition("/")
    return leaf in ROW_LEAVES and group.rpartition("/")[2] == ITEM


def split(params: Params) -> tuple[dict[str, Any], Params]:
    """(leaves with a row per item, by name; all other parameters)."""
    group = params[ITEM]
    rows = {name: leaf for name, leaf in group.items() if name in ROW_LEAVES}
    rest = {name: leaf for name, leaf in group.items() if name not in ROW_LEAVES}
    others = {name: leaf for name, leaf in params.items() if name != ITEM}
    return rows, {**others, ITEM: rest}


def join(rows: Mapping[str, Any], rest: Params) -> Params:
    """The inverse of `split`."""
    return {**rest, ITEM: {**rows, **rest[ITEM]}}


def lookup(config: ModelConfig, params: Params, ids: Array) -> ItemRows:
    """Stored rows of items `ids` [...]; those of a hashed catalog are summed from shared rows."""
    group = params[ITEM]
    if config.item_hash != "none":
        return ItemRows(hashed.vectors(config, group[SHARED], ids))
    return ItemRows(group[EMBEDDING], group.get(BIAS)).take(ids)


def catalog(config: ModelConfig, params: Params, num_items: int) -> ItemRows:
    """Stored rows of all items, [V + 1, ...]."""
    group = params[ITEM]
    if config.item_hash != "none":
        return lookup(config, params, jnp.arange(num_items + 1))
    return ItemRows(group[EMBEDDING], group.get(BIAS))


def standardised(config: ModelConfig, params: Params, embedding: Array) -> Array:
    """Vectors of texts [..., W] with mean 0 and spread 1 per dimension; learned ones unchanged.

    No gradient flows to vectors of texts unless the item tower is trained: then they are encoded
    inside the step.
    """
    if not config.texts.model:
        return embedding
    group = params[ITEM]
    shape = (1,) * (embedding.ndim - 1) + (-1,)
    rows = (embedding - group[MEAN].reshape(shape)) * group[SCALE].reshape(shape)
    return rows if config.texts.train != "frozen" else jax.lax.stop_gradient(rows)
