"""The whole model as pure functions: queries, item vectors, loss and predictions.

`build` returns a `Model`, a frozen value whose methods are pure functions of the parameters.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrec.config import LossConfig, ModelConfig
from jaxrec.items import repeats, table
from jaxrec.items.repeats import HalfLives
from jaxrec.items.table import ItemRows, RowSource
from jaxrec.layout import SegmentLayout
from jaxrec.model.network import COMPRESSOR, Network
from jaxrec.objective import next_item, sampling, targets
from jaxrec.objective.logits import unit
from jaxrec.ranking import ItemIndex
from jaxrec.runtime.mesh import MODEL
from jaxrec.types import (
    PAD,
    Array,
    Batch,
    HistoryItems,
    ItemVectors,
    Params,
    Queries,
    Targets,
    TokenState,
    Tree,
)

LossMetrics = tuple[jax.Array, jax.Array, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Model:
    """A recommender as a set of pure functions; made by `build`."""

    network: Network
    num_items: int

    @property
    def config(self) -> ModelConfig:
        """Sizes and kinds of everything in the network."""
        return self.network.config

    @property
    def loss_config(self) -> LossConfig:
        """The training loss, and how outputs are compared with items."""
        return self.network.loss_config

    @property
    def layout(self) -> SegmentLayout:
        """Positions of training and of the masked forward."""
        return self.network.layout

    @property
    def half_lives(self) -> HalfLives:
        """Half-lives of history counts, none without repeat-aware scores."""
        return HalfLives.of(self.config)

    def init(self, rng: jax.Array) -> Params:
        """Float32 parameters from a PRNG key."""
        layout, width = self.layout, table.item_width(self.config)
        lengths = jnp.ones((1, layout.num_segments), jnp.int32)
        times = jnp.zeros((1, layout.num_items + 1), jnp.int32)

        def everything(network: Network) -> None:
            y, _ = network(jnp.zeros((1, layout.num_items, width)), layout, lengths, times)
            network.gates(y)
            network.item_vectors(ItemRows(jnp.zeros((1, width))))
            network.scale()

        # one small program: eagerly every operation of the forward pass would be compiled alone
        @jax.jit
        def make(rng: jax.Array) -> Params:
            params = self.network.init(rng, method=everything).get("params", {})
            return {table.ITEM: table.init(self.config, self.num_items, rng), **params}

        return make(rng)

    def forward(
        self,
        params: Params,
        items: Array,
        layout: SegmentLayout,
        lengths: Array,
        times: Array,
        *,
        kv: TokenState | None = None,
        first: Array | int = 0,
        train: bool = False,
        item_dropout: float = 0.0,
        rng: jax.Array | None = None,
        rows: RowSource | None = None,
    ) -> tuple[jax.Array, TokenState]:
        """Outputs float32 [B, T, D] and token K/V of any layout derived from the model's.

        items: int32 [B, E]; lengths: int32 [B, S]; times: int32 [B, E + 1] seconds, the entry
        behind a slot is the time of the event it predicts; kv: K/V of `layout.num_cached`
        earlier tokens; first: segments of the history before this forward (`absolute` positions);
        rng: of dropout; rows: rows that `items` number instead of the catalog's.
        """
        stored = table.lookup(self.config, params, items) if rows is None else rows.take(items)
        return self.network.apply(
            {"params": params},
            table.standardised(self.config, params, stored.embedding),
            layout,
            lengths,
            times,
            kv=kv,
            first=first,
            train=train,
            item_dropout=item_dropout,
            rngs=None if rng is None else {"dropout": rng},
        )  # type: ignore[return-value]

    # -- items -------------------------------------------------------------------------------

    def item_vectors(
        self, params: Params, ids: Array | None = None, rows: RowSource | None = None
    ) -> ItemVectors:
        """What queries are compared with: all items [V + 1, D], or items `ids` [...].

        Row 0 is padding. rows: rows that `ids` number instead of the catalog's.
        """
        if isinstance(rows, ItemRows) and ids is None:
            stored = rows
        elif rows is not None and ids is not None:
            stored = rows.take(ids)
        elif ids is not None:
            stored = table.lookup(self.config, params, ids)
        else:
            stored = table.catalog(self.config, params, self.num_items)
        return self._vectors_of_rows(params, stored, None)

    def item_index(self, params: Params, mesh: Mesh | None = None) -> ItemIndex:
        """The catalog as the ranking functions take it.

        Vectors are made once where all items lie on one device. Where the rows are split over
        `mesh.model`, or items share rows (`model.item_hash`), they are made chunk by chunk and
        never exist together.
        """
        used = {name: leaf for name, leaf in params.items() if name != COMPRESSOR}
        if self.config.item_hash != "none":
            return ItemIndex(None, used, self.num_items, make=self._vectors_of_ids, mesh=mesh)
        if mesh is None or mesh.shape[MODEL] == 1:
            return ItemIndex.of(self.item_vectors(params))
        rows = table.catalog(self.config, params, self.num_items)
        _, used = table.split(used)
        return ItemIndex(rows, used, self.num_items, make=self._vectors_of_rows, mesh=mesh)

    def _vectors_of_rows(self, params: Params, rows: Tree, ids: jax.Array | None) -> ItemVectors:
        del ids
        embedding = table.standardised(self.config, params, rows.embedding)
        return self.network.apply(
            {"params": params}, ItemRows(embedding, rows.bias), method=Network.item_vectors
        )  # type: ignore[return-value]

    def _vectors_of_ids(self, params: Params, rows: Tree, ids: jax.Array) -> ItemVectors:
        del rows
        return self.item_vectors(params, jnp.where(ids <= self.num_items, ids, PAD))

    # -- queries -----------------------------------------------------------------------------

    def queries(self, params: Params, y: Array) -> Queries:
        """Outputs [..., D] as queries: unit vectors for cosine similarity, and their gates."""
        vectors = unit(y) if self.loss_config.similarity == "cosine" else y
        gates = self.network.apply({"params": params}, y, method=Network.gates)
        return Queries(vectors, gates)  # type: ignore[arg-type]

    def scale(self, params: Params) -> jax.Array:
        """Factor of the logits, float32 []."""
        return self.network.apply({"params": params}, method=Network.scale)  # type: ignore[return-value]

    def predict(self, params: Params, batch: Batch) -> Queries:
        """Queries [B, E + 1, ...]: entry j is the query that predicts the event in slot j.

        One masked forward. A slot that opens a segment is predicted by the last token of the
        segment before, any other by the item before it; slot 0 has no predictor (zeros).
        """
        y, _ = self.forward(params, batch.items[:, :-1], self.layout, batch.lengths, batch.times)
        positions = np.zeros(self.layout.num_items + 1, np.int64)
        positions[self.layout.target_slots] = self.layout.predictors  # tokens come last: they win
        queries = self.queries(params, y[:, positions])
        return jax.tree.map(lambda a: a.at[:, 0].set(0.0), queries)

    def history_items(self, items: Array, times: Array) -> HistoryItems | None:
        """Ids and features of users' events: items and seconds int32 [..., M], oldest first.

        None when scores do not depend on them.
        """
        if not self.half_lives.number:
            return None
        return repeats.history_items(items, times, self.half_lives)

    def history_items_before(self, batch: Batch, rows: Array, slots: Array) -> HistoryItems | None:
        """History items of queries (row, slot) [P] of a batch: the events that a query may know."""
        if not self.half_lives.number:
            return None
        known = self.layout.known_slots(slots)
        items = jnp.where(known, jnp.asarray(batch.items)[rows, :-1], PAD)
        return self.history_items(items, jnp.asarray(batch.times)[rows, :-1])

    # -- loss --------------------------------------------------------------------------------

    def loss(
        self,
        params: Params,
        batch: Batch,
        *,
        rng: jax.Array | None = None,
        train: bool = False,
        item_counts: Array | None = None,
        item_dropout: float = 0.0,
        negatives: sampling.Negatives | None = None,
        rows: RowSource | None = None,
    ) -> LossMetrics:
        """(loss sum, weight sum, metrics) over every predictor of the layout, float32 [] each.

        batch: of the model's layout, or of a shorter form of it (`SegmentLayout.shortened`).
        rng: of dropout and negatives; item_counts: [V + 1] training events per item for
        popularity sampling; item_dropout: share of input items whose vectors are set to zero;
        negatives: drawn before (`negatives`); rows: rows that the ids of `batch` and `negatives`
        number instead of the catalog's. Raises ValueError where negatives are sampled and neither
        `rng` nor `negatives` is given.

        With `loss.consistency` = c > 0 the sum is L(y) + c (L(z) + Σ w (1 - cos(y, z))), z the
        outputs of the layout's raw view, constants inside the cosine: what tokens carry is
        pulled towards what the items themselves carry (after Rec2PM's training, arXiv 2602.11605).
        """
        config, layout = self.loss_config, self._layout_of(batch)
        dropout_rng, sample_rng = (None, None) if rng is None else jax.random.split(rng)
        predicted = targets.next_items(layout, batch, config.token_weight)

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
                rows=rows,
            )
            return y[:, predicted.positions]

        compare = self.comparison(
            params,
            batch,
            predicted,
            rng=sample_rng,
            item_counts=item_counts,
            negatives=negatives,
            rows=rows,
        )
        y = outputs(self, layout)
        total, weight = compare(y)
        metrics = {"targets": weight}
        # a batch too short for tokens has the second view too: rows weigh the same in every batch
        if config.consistency and self.layout.num_tokens:
            # the same dropout masks and negatives: the views differ only in what they see
            raw = outputs(self._dense(), layout.raw_view())
            cosine = jnp.sum(unit(y) * unit(jax.lax.stop_gradient(raw)), axis=-1)
            distance = jnp.sum(predicted.weights * (1 - cosine))
            total = total + config.consistency * (compare(raw)[0] + distance)
            metrics["view_distance"] = distance / jnp.where(weight > 0, weight, 1.0)
        return total, weight, metrics

    def negatives(self, rng: jax.Array, sampler: sampling.Sampler | None) -> sampling.Negatives:
        """The negatives that `loss` would draw from the same key, M = `loss.negatives`.

        Work does not grow with the catalog. sampler: of popularity (`sampling.make_sampler`); None
        draws uniformly.
        """
        _, sample_rng = jax.random.split(rng)
        count = self.loss_config.negatives
        return sampling.draw_negatives(sample_rng, self.num_items, count, sampler)

    def comparison(
        self,
        params: Params,
        batch: Batch,
        predicted: Targets,
        *,
        rng: jax.Array | None = None,
        item_counts: Array | None = None,
        negatives: sampling.Negatives | None = None,
        rows: RowSource | None = None,
    ) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
        """Outputs [B, P, D] -> (loss sum, weight) of the configured loss.

        predicted: what each output is compared with; other arguments as of `loss`.
        """
        scoring = next_item.Scoring(
            self.loss_config, _Items(self, params, rows), self.scale(params), self.half_lives
        )
        if scoring.config.kind == "softmax":
            return lambda y: next_item.against_catalog(scoring, self.queries(params, y), predicted)
        history = None
        if self.half_lives.number:
            layout = self._layout_of(batch)
            history = next_item.Repeats.of(layout, batch, predicted, self.half_lives)
        if negatives is not None:
            drawn = negatives
            return lambda y: next_item.sampled(
                scoring, self.queries(params, y), predicted, history=history, negatives=drawn
            )
        if rng is None:
            raise ValueError(f"loss.kind={scoring.config.kind!r} samples negatives: pass rng")
        key = rng
        return lambda y: next_item.sampled_in_groups(
            scoring,
            self.queries(params, y),
            predicted,
            history=history,
            rng=key,
            item_counts=item_counts,
        )

    def _layout_of(self, batch: Batch) -> SegmentLayout:
        """The layout of a training batch, by its item slots and segments."""
        return self.layout.shortened(batch.items.shape[1] - 1, batch.lengths.shape[1])

    def _dense(self) -> "Model":
        """The same model with attention over every pair: what a raw view needs."""
        config = dataclasses.replace(self.config, attention="dense")
        return dataclasses.replace(self, network=Network(config, self.loss_config, self.layout))


@dataclasses.dataclass(frozen=True)
class _Items:
    """`next_item.Items` of a model's parameters, or of rows that a step brings."""

    model: Model
    params: Params
    rows: RowSource | None

    @property
    def num_items(self) -> int:
        return self.model.num_items

    def vectors(self, ids: Array) -> ItemVectors:
        # vectors of few items are made of their rows alone
        if self.rows is None or isinstance(self.rows, ItemRows):
            height = self.num_items + 1 if self.rows is None else len(self.rows.embedding)
            if self.model.config.item_hash == "none" and math.prod(ids.shape) >= height:
                return jax.tree.map(lambda a: a[ids], self.catalog())
        return self.model.item_vectors(self.params, ids, self.rows)

    def catalog(self) -> ItemVectors:
        return self.model.item_vectors(self.params, rows=self.rows)


def build(config: ModelConfig, loss: LossConfig, layout: SegmentLayout, num_items: int) -> Model:
    """The model of a configuration over a catalog of `num_items` items."""
    return Model(Network(config, loss, layout), num_items)
