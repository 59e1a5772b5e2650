"""The parameters of the whole model: item vectors, compressor with its encoder, scale, gates."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.config import LossConfig, ModelConfig
from jaxrec.items import hashed, repeats
from jaxrec.layout import SegmentLayout
from jaxrec.model.compressor import Compressor
from jaxrec.objective import losses
from jaxrec.types import KV, Array

MAX_SCALE = 100.0  # of cosine logits (paper: learned scale <= 100)


def half_lives(config: ModelConfig) -> repeats.HalfLives:
    """Half-lives of own-item counts in a configuration."""
    return repeats.HalfLives(config.repeat_half_lives, config.repeat_half_times)


def scale_at_start(loss: LossConfig) -> float:
    """Factor of the logits before training."""
    if loss.similarity == "dot":
        return 1.0
    return 1 / (loss.temperature or 0.07)


class Network(nn.Module):
    """Parameters: item table, optional projection, compressor with its encoder, logit scale."""

    config: ModelConfig
    loss_config: LossConfig
    layout: SegmentLayout
    num_items: int

    def setup(self) -> None:
        width = self.config.width
        item_width = self._item_width
        self.shares_rows = False
        if self.has_variable("params", "item_embedding"):
            # of any height: a step that updates rows brings a table of those rows alone
            self.item_embedding: Any = self.get_variable("params", "item_embedding")
        elif self.config.item_hash != "none":
            self.shares_rows = True
            init = nn.initializers.normal(0.02 / math.sqrt(hashed.PARTS))
            size = hashed.height(self.config, self.num_items), item_width
            self.shared_item_embedding = self.param("shared_item_embedding", init, size)
        else:
            size = self.num_items + 1, item_width + self.config.item_bias
            self.item_embedding = self.param("item_embedding", nn.initializers.normal(0.02), size)
        if self.config.texts.model:
            self.item_mean = self.param("item_mean", nn.initializers.zeros, (item_width,))
            self.item_scale = self.param("item_scale", nn.initializers.ones, (item_width,))
        if item_width != width:
            self.item_projection = nn.Dense(width, use_bias=False)
        self.compressor = Compressor(self.config, self.layout)
        if half_lives(self.config).number:
            zeros = nn.initializers.zeros  # starts as the model without repeats
            self.repeat_gates = nn.Dense(half_lives(self.config).number, kernel_init=zeros)
        loss = self.loss_config
        if loss.similarity == "cosine" and not loss.temperature:
            start = nn.initializers.constant(math.log(scale_at_start(loss)))
            self.logit_scale = self.param("logit_scale", start, ())

    def __call__(
        self,
        items: jax.Array,
        layout: SegmentLayout,
        lengths: jax.Array,
        times: jax.Array,
        *,
        kv: KV | None = None,
        first: Any = 0,
        train: bool = False,
        item_dropout: float = 0.0,
    ) -> tuple[jax.Array, KV]:
        """items int32 [B, E], times int32 [B, E + 1] -> outputs float32 [B, T, D], token K/V."""
        x = self.lookup(items)
        if self.config.item_width not in (0, self.config.width):
            x = self.item_projection(x)
        if train and item_dropout:
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - item_dropout, items.shape)
            x = x * keep[..., None]
        y, kv = self.compressor(x, layout, lengths, times, kv=kv, first=first, train=train)
        return y.astype(jnp.float32), kv

    @property
    def _item_width(self) -> int:
        return self.config.item_width or self.config.width

    def lookup(self, ids: Array) -> jax.Array:
        """[..., item width] learned vectors of items."""
        return self._stored(ids)[..., : self._item_width]

    def _stored(self, ids: Array) -> jax.Array:
        """What is kept of items: their vectors, and behind them their bias where they have one."""
        if self.shares_rows:
            return hashed.vectors(self.config, self.shared_item_embedding, ids)
        return self._rows(self.item_embedding[ids])

    def _rows(self, rows: jax.Array) -> jax.Array:
        """Rows [..., item width] of the table; vectors of texts are brought to one scale."""
        if not self.config.texts.model:
            return rows
        shape = (1,) * (rows.ndim - 1) + (-1,)
        rows = (rows - self.item_mean.reshape(shape)) * self.item_scale.reshape(shape)
        trained = self.config.texts.train != "frozen"  # then the step brings rows that it encoded
        return rows if trained else jax.lax.stop_gradient(rows)

    def gates(self, y: jax.Array) -> jax.Array:
        """[..., K] weights of an output's own-item features; K = 0 without repeats."""
        if not half_lives(self.config).number:
            return y[..., :0]
        return self.repeat_gates(losses.unit(y) * math.sqrt(y.shape[-1]))

    def item_vectors(self, ids: Array | None = None) -> jax.Array:
        """[V + 1, D] what outputs are compared with, or those of `ids`; unit rows for cosine.

        With `item_bias` [V + 1, D + 1]: the last column is added to an item's score.
        """
        if ids is None and not self.shares_rows:
            stored = self._rows(self.item_embedding)
        else:
            stored = self._stored(jnp.arange(self.num_items + 1) if ids is None else ids)
        table, bias = jnp.split(stored, [self._item_width], axis=-1)
        if self.config.item_width not in (0, self.config.width):
            table = self.item_projection(table)
        if self.loss_config.similarity == "cosine":
            table = losses.unit(table)
        return jnp.concatenate([table, bias], axis=-1)

    def scale(self) -> jax.Array:
        """Factor of the logits."""
        loss = self.loss_config
        if loss.similarity == "dot":
            return jnp.float32(1.0)
        if loss.temperature:
            return jnp.float32(1 / loss.temperature)
        return jnp.exp(jnp.clip(self.logit_scale, 0.0, math.log(MAX_SCALE)))
