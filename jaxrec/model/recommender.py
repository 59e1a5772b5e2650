"""The whole model as pure functions: queries, candidates, loss and predictions.

`build` returns a `Model`, a frozen value whose methods are pure functions of the parameters.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.config import LossConfig, ModelConfig
from jaxrec.items import repeats
from jaxrec.layout import RawView, SegmentLayout
from jaxrec.model.network import Network, half_lives
from jaxrec.objective import losses, sampling
from jaxrec.ranking import retrieval, sharded
from jaxrec.types import KV, PAD, Array, Batch, Params


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
            y, _ = network(items, layout, lengths, times)
            network.gates(y)
            network.item_vectors()
            network.scale()

        # one small program: eagerly every operation of the forward pass would be compiled alone
        return jax.jit(lambda key: self.network.init(key, method=everything)["params"])(rng)

    def forward(self, params: Params, *args: Any, **kwargs: Any) -> tuple[jax.Array, KV]:
        """Outputs and token K/V of any layout derived from the model's (see `Network`)."""
        rng = kwargs.pop("rng", None)
        rngs = None if rng is None else {"dropout": rng}
        apply: Any = self.network.apply
        return apply({"params": params}, *args, rngs=rngs, **kwargs)

    @property
    def half_lives(self) -> repeats.HalfLives:
        """Half-lives of own-item counts, none without repeat-aware scores."""
        return half_lives(self.network.config)

    def item_table(self, params: Params) -> jax.Array:
        """[V + 1, D] float32 candidate vectors; row 0 is padding.

        [V + 1, D + 1] with `item_bias`, then queries have a column of ones there.
        """
        apply: Any = self.network.apply
        return apply({"params": params}, method=Network.item_vectors)

    def _item_vectors(self, params: Params, ids: jax.Array) -> jax.Array:
        """[P, D] rows of `item_table`; vectors of few items are made of their rows alone."""
        table = params.get("item_embedding")
        if table is not None and len(ids) >= len(table):
            return self.item_table(params)[ids]
        apply: Any = self.network.apply
        return apply({"params": params}, ids, method=Network.item_vectors)

    def candidates(self, params: Params) -> Any:
        """What queries are ranked against: `item_table`, or where items share rows (`item_rows`)
        `sharded.Made`, which makes vectors chunk by chunk and never holds all of them."""
        if self.network.config.item_hash == "none":
            return self.item_table(params)
        needed = {name: leaf for name, leaf in params.items() if name != "compressor"}
        return sharded.Made(needed, self.num_items, self._item_vectors)

    def queries(self, params: Params, y: jax.Array) -> jax.Array:
        """Outputs [..., D] as queries [..., D + K].

        The first D columns are compared with `item_table`, the other K weigh the features of
        the user's own items (`repeats`; K = 0 without).
        """
        return jnp.concatenate([self._vectors(y), self._gates(params, y)], axis=-1)

    def _vectors(self, y: jax.Array) -> jax.Array:
        """Outputs as what `item_table` is multiplied with."""
        x = self._directions(y)
        if not self.network.config.item_bias:
            return x
        return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)

    def _directions(self, y: jax.Array) -> jax.Array:
        return losses.unit(y) if self.network.loss_config.similarity == "cosine" else y

    def _gates(self, params: Params, y: jax.Array) -> jax.Array:
        apply: Any = self.network.apply
        return apply({"params": params}, y, method=Network.gates)

    def own_items(self, items: Array, times: Array) -> retrieval.Own | None:
        """Ids and features of what users had: items and seconds int32 [..., M], oldest first.

        None when scores do not depend on it.
        """
        if not self.half_lives.number:
            return None
        return retrieval.Own(*repeats.own_items(items, times, self.half_lives))

    def loss(
        self,
        params: Params,
        batch: Batch,
        *,
        rng: jax.Array | None = None,
        train: bool = False,
        item_counts: jax.Array | None = None,
        item_dropout: float = 0.0,
        negatives: sampling.Negatives | None = None,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(loss sum, weight sum, metrics) over every predictor of the layout.

        rng: dropout and negatives; item_counts: [V + 1] training events per item for
        popularity sampling. negatives: drawn before (`negatives`), ids are rows of the table.

        With `loss.consistency` = c > 0 the sum is L(y) + c (L(z) + Σ w (1 - cos(y, z))), z the
        outputs of the layout's `RawView`, constants inside the cosine: what tokens carry is
        pulled towards what their items say (the idea of Rec2PM's training, arXiv 2602.11605).
        """
        layout, config = self.layout, self.network.loss_config
        dropout_rng, sample_rng = (None, None) if rng is None else jax.random.split(rng)

        def outputs(model: Model, layout: SegmentLayout) -> jax.Array:
            y, _ = model.forward(
                params,
                batch.items[:, :-1],
                layout,
                batch.lengths,
                batch.times,
                train=train,
                item_dropout=item_dropout,
                rng=dropout_rng,
            )
            return y

        y = outputs(self, layout)
        positions, slots = layout.predictors, layout.target_slots
        factor = np.where(layout.is_token[positions], config.token_weight, 1.0)
        kept = factor > 0
        positions, slots, factor = positions[kept], slots[kept], factor[kept]
        order = np.argsort(positions)  # time order
        positions, slots, factor = positions[order], slots[order], factor[order]
        weights = batch.weights[:, slots] * factor[None].astype(np.float32)
        weights = weights * layout.valid(batch.lengths)[:, positions]
        targets = batch.items[:, slots].reshape(-1)
        weights = jnp.where(targets == PAD, 0.0, weights.reshape(-1))

        def compare(y: jax.Array) -> tuple[jax.Array, jax.Array]:
            asking = positions, slots
            return self._compare(
                params, y, batch, asking, targets, weights, sample_rng, item_counts, negatives
            )

        y = y[:, positions]
        total, weight = compare(y)
        metrics = {"targets": weight}
        if config.consistency and layout.num_tokens:
            # the same dropout masks and negatives: the views differ in what they see alone
            whole = outputs(self._dense(), RawView.of(layout))[:, positions]
            apart = 1 - jnp.sum(losses.unit(y) * losses.unit(jax.lax.stop_gradient(whole)), axis=-1)
            apart = jnp.sum(weights * apart.reshape(-1))
            total = total + config.consistency * (compare(whole)[0] + apart)
            metrics["view_distance"] = apart / jnp.where(weight > 0, weight, 1.0)
        return total, weight, metrics

    def _dense(self) -> "Model":
        """The same model with attention over every pair: what a `RawView` needs."""
        network = self.network
        config = dataclasses.replace(network.config, attention="dense")
        return Model(Network(config, network.loss_config, network.layout, network.num_items))

    def negatives(self, rng: jax.Array, sampler: sampling.Sampler | None) -> sampling.Negatives:
        """What `loss` would draw from the same key; work does not grow with the catalog.

        sampler: of popularity (`sampling.make_sampler`); None draws uniformly.
        """
        _, sample_rng = jax.random.split(rng)
        count = self.network.loss_config.negatives
        return sampling.draw_negatives(sample_rng, self.num_items, count, sampler)

    def _compare(self, params, y, batch, asking, targets, weights, rng, counts, drawn):
        """The configured loss of outputs y [B, P, D].

        asking: (positions, slots) [P], in time order: who predicts which slot. targets,
        weights: [B P], row by row.
        """
        config = self.network.loss_config
        if config.kind == "softmax":
            x = self._vectors(y)
            x = x.reshape(-1, x.shape[-1])
            scale = self.network.apply({"params": params}, method=Network.scale)
            table, mesh = self.item_table(params), jax.sharding.get_abstract_mesh()
            how: Any = {"scale": scale, "chunk": config.chunk}
            if mesh.shape.get(sharded.AXIS, 1) == 1:
                return losses.full_softmax(x, table, targets, weights, **how)
            how |= {"mesh": mesh, "num_items": self.num_items}
            return sharded.full_softmax(x, table, targets, weights, **how)
        if drawn is None and rng is None:
            raise ValueError(f"loss.kind={config.kind!r} samples negatives: pass rng")
        groups = config.negative_groups
        if drawn is not None or groups == 1:
            return self._sampled(params, y, batch, asking, targets, weights, rng, counts, drawn)
        if len(y) % groups:
            raise ValueError(f"loss.negative_groups={groups} does not divide {len(y)} users")

        def split(column: Any) -> jax.Array:
            return jnp.reshape(column, (groups, -1, *jnp.shape(column)[1:]))

        def one(part: Any) -> tuple[jax.Array, jax.Array]:
            y, batch, targets, weights, key = part
            return self._sampled(params, y, batch, asking, targets, weights, key, counts, None)

        columns = jax.tree.map(split, (y, batch, targets, weights))
        parts = jax.lax.map(one, (*columns, jax.random.split(rng, groups)))
        return parts[0].sum(), parts[1].sum()

    def _sampled(self, params, y, batch, asking, targets, weights, rng, counts, drawn):
        """`_compare` with sampled negatives, the same for all rows."""
        x = self._directions(y).reshape(-1, y.shape[-1])
        config = self.network.loss_config
        scale = self.network.apply({"params": params}, method=Network.scale)
        if drawn is not None:
            negatives, log_q_negative = drawn
        else:
            how: Any = config.sampling  # validated: uniform | popularity
            negatives, log_q_items = sampling.sample_negatives(
                rng, self.num_items, config.negatives, counts, how
            )
            log_q_negative = log_q_items[negatives]
        counted = self.half_lives.number > 0
        bonus = self._bonus(params, y, batch, asking, negatives) if counted else None
        compared = [self._item_vectors(params, ids) for ids in (targets, negatives)]
        if self.network.config.item_bias:
            # no part of the vectors here: these alone say whether a negative is a false one
            own, others = (vectors[:, x.shape[-1] :] for vectors in compared)
            compared = [vectors[:, : x.shape[-1]] for vectors in compared]
            bias = losses.Bonus(own, jnp.broadcast_to(others.T, (len(x), len(negatives))))
            bonus = bias if bonus is None else jax.tree.map(jnp.add, bonus, bias)
        args = (x, *compared, negatives, targets, weights)
        shared: Any = {"scale": scale, "false_negative": config.false_negative}
        loss: Any = losses.bce
        if config.kind == "sampled_softmax":
            loss = losses.sampled_softmax
            shared["log_q_negative"] = log_q_negative if config.log_q else None
        elif config.kind == "gbce":
            loss = losses.gbce
            shared["beta"] = losses.gbce_beta(config.negatives, self.num_items, config.gbce_t)
        return loss(*args, bonus=bonus, **shared)

    def _bonus(self, params, y, batch, asking, negatives) -> losses.Bonus:
        """What own items add to the scores of targets and shared negatives (see `_compare`).

        Every event of a row before a slot counts: training layouts hold no more segments than
        a position sees.
        """
        positions, slots = asking
        gates = self._gates(params, y)
        own = repeats.event_features(batch.items, batch.times, self.half_lives)[:, slots]
        positive = jnp.sum(gates * own, axis=-1)
        # every item position asks, so the events between two questions are at most one
        event = np.searchsorted(self.layout.item_positions, positions)
        event = np.minimum(event, self.layout.num_items - 1)
        is_token = self.layout.is_token[positions][None]
        passed = jnp.where(is_token, PAD, jnp.asarray(batch.items)[:, event])
        times = jnp.asarray(batch.times)[:, event]
        negative = repeats.candidate_bonus(gates, passed, times, negatives, self.half_lives)
        return losses.Bonus(positive.reshape(-1, 1), negative.reshape(-1, len(negatives)))

    def predict(self, params: Params, batch: Batch) -> jax.Array:
        """[B, E + 1, D + K]: entry j is the query that predicts the event in slot j.

        One masked forward. A slot that opens a segment is predicted by the last token of the
        segment before, any other by the item before it; slot 0 has no predictor (zeros).
        """
        y, _ = self.forward(params, batch.items[:, :-1], self.layout, batch.lengths, batch.times)
        positions = np.zeros(self.layout.num_items + 1, np.int64)
        positions[self.layout.target_slots] = self.layout.predictors  # tokens come last: they win
        x = self.queries(params, y[:, positions])
        return x.at[:, 0].set(0.0)

    def own_items_before(self, batch: Batch, rows: Array, slots: Array) -> retrieval.Own | None:
        """Own items of queries (row, slot) [P] of a batch: the events that the query may know.

        Those before the slot, in its segment or one of the `max_segments` before it.
        """
        if not self.half_lives.number:
            return None
        starts = self.layout.item_segment_starts
        every = np.arange(self.layout.num_items)
        segment = np.searchsorted(starts[1:], every, side="right")
        asking = jnp.searchsorted(jnp.asarray(starts[1:]), slots, side="right")
        asking = jnp.minimum(asking, self.layout.num_segments - 1)
        age = asking[:, None] - segment[None]
        seen = (every[None] < slots[:, None]) & (age <= self.layout.max_segments)
        items = jnp.where(seen, jnp.asarray(batch.items)[rows, :-1], PAD)
        return self.own_items(items, jnp.asarray(batch.times)[rows, :-1])


def build(config: ModelConfig, loss: LossConfig, layout: SegmentLayout, num_items: int) -> Model:
    """The model of a configuration over a catalog of `num_items` items."""
    return Model(Network(config, loss, layout, num_items))
