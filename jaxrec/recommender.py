"""The whole model: item vectors, compressor and encoder, loss and predictions.

`build` returns a `Model`, a frozen value whose methods are pure functions of the parameters.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import losses
from jaxrec.compressor import Compressor
from jaxrec.config import LossConfig, ModelConfig
from jaxrec.layout import SegmentLayout
from jaxrec.types import KV, PAD, Batch, Params

MAX_SCALE = 100.0  # of cosine logits (paper: learned scale <= 100)


class Network(nn.Module):
    """Parameters: item table, optional projection, compressor with its encoder, logit scale."""

    config: ModelConfig
    loss_config: LossConfig
    layout: SegmentLayout
    num_items: int

    def setup(self) -> None:
        width = self.config.width
        item_width = self.config.item_width or width
        self.item_embedding = self.param(
            "item_embedding", nn.initializers.normal(0.02), (self.num_items + 1, item_width)
        )
        if item_width != width:
            self.item_projection = nn.Dense(width, use_bias=False)
        self.compressor = Compressor(self.config, self.layout)
        loss = self.loss_config
        if loss.similarity == "cosine" and not loss.temperature:
            start = nn.initializers.constant(math.log(1 / 0.07))
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
        x = self.item_embedding[items]
        if self.config.item_width not in (0, self.config.width):
            x = self.item_projection(x)
        if train and item_dropout:
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - item_dropout, items.shape)
            x = x * keep[..., None]
        y, kv = self.compressor(x, layout, lengths, times, kv=kv, first=first, train=train)
        return y.astype(jnp.float32), kv

    def item_vectors(self) -> jax.Array:
        """[V + 1, D] what outputs are compared with; unit rows for cosine."""
        table = self.item_embedding
        if self.config.item_width not in (0, self.config.width):
            table = self.item_projection(table)
        return losses.unit(table) if self.loss_config.similarity == "cosine" else table

    def scale(self) -> jax.Array:
        """Factor of the logits."""
        loss = self.loss_config
        if loss.similarity == "dot":
            return jnp.float32(1.0)
        if loss.temperature:
            return jnp.float32(1 / loss.temperature)
        return jnp.exp(jnp.clip(self.logit_scale, 0.0, math.log(MAX_SCALE)))


@dataclasses.dataclass(frozen=True)
class Model:
    """A recommender as a set of pure functions; made by `build`."""

    network: Network

    @property
    def layout(self) -> SegmentLayout:
        return self.network.layout

    @property
    def num_items(self) -> int:
        return self.network.num_items

    def init(self, rng: jax.Array) -> Params:
        """Float32 parameters from a PRNG key."""
        layout = self.layout
        items = jnp.zeros((1, layout.num_items), jnp.int32)
        lengths = jnp.ones((1, layout.num_segments), jnp.int32)
        times = jnp.zeros((1, layout.num_items + 1), jnp.int32)

        def everything(network: Network) -> None:
            network(items, layout, lengths, times)
            network.item_vectors()
            network.scale()

        return self.network.init(rng, method=everything)["params"]

    def forward(self, params: Params, *args: Any, **kwargs: Any) -> tuple[jax.Array, KV]:
        """Outputs and token K/V of any layout derived from the model's (see `Network`)."""
        rng = kwargs.pop("rng", None)
        rngs = None if rng is None else {"dropout": rng}
        apply: Any = self.network.apply
        return apply({"params": params}, *args, rngs=rngs, **kwargs)

    def item_table(self, params: Params) -> jax.Array:
        """[V + 1, D] float32 candidate vectors; row 0 is padding."""
        apply: Any = self.network.apply
        return apply({"params": params}, method=Network.item_vectors)

    def queries(self, y: jax.Array) -> jax.Array:
        """Outputs as the vectors that are compared with `item_table`."""
        return losses.unit(y) if self.network.loss_config.similarity == "cosine" else y

    def loss(
        self,
        params: Params,
        batch: Batch,
        *,
        rng: jax.Array | None = None,
        train: bool = False,
        item_counts: jax.Array | None = None,
        item_dropout: float = 0.0,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(loss sum, weight sum, metrics) over every predictor of the layout.

        rng: dropout and negatives; item_counts: [V + 1] training events per item for
        popularity sampling.
        """
        layout, config = self.layout, self.network.loss_config
        dropout_rng, sample_rng = (None, None) if rng is None else jax.random.split(rng)
        y, _ = self.forward(
            params,
            batch.items[:, :-1],
            layout,
            batch.lengths,
            batch.times,
            train=train,
            item_dropout=item_dropout,
            rng=dropout_rng,
        )
        positions, slots = layout.predictors, layout.target_slots
        factor = np.where(layout.is_token[positions], config.token_weight, 1.0)
        kept = factor > 0
        positions, slots, factor = positions[kept], slots[kept], factor[kept]
        weights = batch.weights[:, slots] * factor[None].astype(np.float32)
        weights = weights * layout.valid(batch.lengths)[:, positions]
        targets = batch.items[:, slots].reshape(-1)
        weights = jnp.where(targets == PAD, 0.0, weights.reshape(-1))
        x = self.queries(y[:, positions]).reshape(-1, y.shape[-1])
        total, weight = self._compare(params, x, targets, weights, sample_rng, item_counts)
        return total, weight, {"targets": weight}

    def _compare(self, params, x, targets, weights, rng, counts):
        """The configured loss of query vectors [P, D] against their targets [P]."""
        config = self.network.loss_config
        table = self.item_table(params)
        scale = self.network.apply({"params": params}, method=Network.scale)
        if config.kind == "softmax":
            return losses.full_softmax(x, table, targets, weights, scale=scale, chunk=config.chunk)
        if rng is None:
            raise ValueError(f"loss.kind={config.kind!r} samples negatives: pass rng")
        sampling: Any = config.sampling  # validated: uniform | popularity
        negatives, log_q = losses.sample_negatives(
            rng, self.num_items, config.negatives, counts, sampling
        )
        shared: Any = {"scale": scale, "false_negative": config.false_negative}
        args = (x, table[targets], table[negatives], negatives, targets, weights)
        if config.kind == "sampled_softmax":
            return losses.sampled_softmax(*args, log_q_negative=log_q[negatives], **shared)
        if config.kind == "gbce":
            beta = losses.gbce_beta(config.negatives, self.num_items, config.gbce_t)
            return losses.gbce(*args, beta=beta, **shared)
        return losses.bce(*args, **shared)

    def predict(self, params: Params, batch: Batch) -> jax.Array:
        """[B, E + 1, D]: entry j is compared with the catalog to predict the event in slot j.

        One masked forward. A slot that opens a segment is predicted by the last token of the
        segment before, any other by the item before it; slot 0 has no predictor (zeros).
        """
        y, _ = self.forward(params, batch.items[:, :-1], self.layout, batch.lengths, batch.times)
        positions = np.zeros(self.layout.num_items + 1, np.int64)
        positions[self.layout.target_slots] = self.layout.predictors  # tokens come last: they win
        x = self.queries(y[:, positions])
        return x.at[:, 0].set(0.0)


def build(config: ModelConfig, loss: LossConfig, layout: SegmentLayout, num_items: int) -> Model:
    """The model of a configuration over a catalog of `num_items` items."""
    return Model(Network(config, loss, layout, num_items))
