"""The Flax module of a model: item projection, compressor with its encoder, logit scale, gates.

The item table is not part of it (`jaxrec.items.table`): the network gets rows of it as arrays.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.config import LossConfig, ModelConfig
from jaxrec.items.repeats import HalfLives
from jaxrec.items.table import ItemRows
from jaxrec.layout import SegmentLayout
from jaxrec.model.compressor import Compressor
from jaxrec.objective.logits import unit
from jaxrec.types import Array, ItemVectors, TokenState

COMPRESSOR = "compressor"  # the compressor's group among the parameters
INITIAL_TEMPERATURE = 0.07  # of cosine logits, where the scale is learned
MAX_SCALE = 100.0  # of cosine logits (paper: learned scale <= 100)


def initial_scale(loss: LossConfig) -> float:
    """Factor of the logits before training."""
    if loss.similarity == "dot":
        return 1.0
    return 1 / (loss.temperature or INITIAL_TEMPERATURE)


class Network(nn.Module):
    """Parameters: optional projection, compressor with its encoder, logit scale, gates."""

    config: ModelConfig
    loss_config: LossConfig
    layout: SegmentLayout

    def setup(self) -> None:
        """Declares the submodules."""
        width = self.config.width
        self.projects = self.config.item_width not in (0, width)
        if self.projects:
            self.item_projection = nn.Dense(width, use_bias=False)
        self.compressor = Compressor(self.config, self.layout)
        self.num_features = HalfLives.of(self.config).number  # of history items
        if self.num_features:
            zeros = nn.initializers.zeros  # at first repeats add nothing to the scores
            self.repeat_gates = nn.Dense(self.num_features, kernel_init=zeros)
        loss = self.loss_config
        if loss.similarity == "cosine" and not loss.temperature:
            start = nn.initializers.constant(math.log(initial_scale(loss)))
            self.logit_scale = self.param("logit_scale", start, ())

    def __call__(
        self,
        embedding: Array,
        layout: SegmentLayout,
        lengths: Array,
        times: Array,
        *,
        kv: TokenState | None = None,
        first: Array | int = 0,
        train: bool = False,
        item_dropout: float = 0.0,
    ) -> tuple[jax.Array, TokenState]:
        """Outputs float32 [B, T, D] and the K/V of the compressed tokens.

        embedding: [B, E, W] rows of the item table; item_dropout: share of items whose vectors are
        set to zero in training; other arguments as of `Compressor`.
        """
        x = self.item_projection(embedding) if self.projects else embedding
        if self.config.embed_scale and not self.config.texts.model:
            x = x * math.sqrt(self.config.width)  # arXiv 1706.03762 section 3.4
        if train and item_dropout:
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - item_dropout, x.shape[:2])
            x = x * keep[..., None]
        y, kv = self.compressor(x, layout, lengths, times, kv=kv, first=first, train=train)
        return y.astype(jnp.float32), kv

    def gates(self, y: Array) -> jax.Array | None:
        """[..., K] weights of the features of history items; None without repeats."""
        if not self.num_features:
            return None
        return self.repeat_gates(unit(y) * math.sqrt(y.shape[-1]))

    def item_vectors(self, rows: ItemRows) -> ItemVectors:
        """What outputs are compared with: [..., D], unit length for cosine similarity."""
        vectors = self.item_projection(rows.embedding) if self.projects else rows.embedding
        if self.loss_config.similarity == "cosine":
            vectors = unit(vectors)
        return ItemVectors(vectors, rows.bias)

    def scale(self) -> jax.Array:
        """Factor of the logits, float32 []."""
        loss = self.loss_config
        if loss.similarity == "dot":
            return jnp.float32(1.0)
        if loss.temperature:
            return jnp.float32(1 / loss.temperature)
        return jnp.exp(jnp.clip(self.logit_scale, 0.0, math.log(MAX_SCALE)))
