"""The configured loss of a batch: queries against the items that come next.

Dimension letters: B users, P predicting positions, V items, M negatives, K features of history
items, G groups of users.
"""

import dataclasses
from typing import NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.config import LossConfig
from jaxrec.items import repeats
from jaxrec.items.repeats import HalfLives
from jaxrec.layout import SegmentLayout
from jaxrec.objective import full_softmax, losses, sampling, sharded_softmax
from jaxrec.objective.chunked import SumWeight
from jaxrec.objective.losses import Contrast, Offsets
from jaxrec.runtime.mesh import MODEL
from jaxrec.types import PAD, Array, Batch, ItemVectors, Queries, Targets


class Items(Protocol):
    """What queries are compared with."""

    @property
    def num_items(self) -> int:
        """V, padding not counted."""
        ...

    def vectors(self, ids: Array) -> ItemVectors:
        """The vectors of items `ids`: [M] that all users share, or [B, ...] of users' own."""
        ...

    def catalog(self) -> ItemVectors:
        """The vectors of all items, [V + 1, D]; row 0 is padding."""
        ...


class Repeats(NamedTuple):
    """What the loss needs for scores that count repeats (`jaxrec.items.repeats`).

    features: float32 [B, P, K] of each target just before it happened. items, times: int32
    [B, P], the event between a prediction and the one before (item 0: none), in seconds.
    """

    features: jax.Array
    items: jax.Array
    times: jax.Array

    @classmethod
    def of(
        cls, layout: SegmentLayout, batch: Batch, targets: Targets, half_lives: HalfLives
    ) -> "Repeats":
        """The repeats of a batch at its targets.

        Every event of a row before a target counts: a training layout holds no more segments
        than a position sees.
        """
        features = repeats.event_features(batch.items, batch.times, half_lives)
        # every item position predicts, so between two predictions there is one event at most
        event = np.searchsorted(layout.item_positions, targets.positions)
        event = np.minimum(event, layout.num_items - 1)
        is_token = layout.is_token[targets.positions][None]
        items = jnp.where(is_token, PAD, jnp.asarray(batch.items)[:, event])
        return cls(features[:, targets.slots], items, jnp.asarray(batch.times)[:, event])


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How the queries of a batch are scored against items.

    scale: factor of the logits; half_lives: of history counts, none unless scores count repeats.
    """

    config: LossConfig
    items: Items
    scale: jax.Array
    half_lives: HalfLives


def against_catalog(scoring: Scoring, queries: Queries, targets: Targets) -> SumWeight:
    """(loss sum, weight) against the whole catalog, whose rows may be split (`mesh.model`)."""
    config, vectors = scoring.config, queries.vectors
    x = vectors.reshape(-1, vectors.shape[-1])
    ids, weights = targets.ids.reshape(-1), targets.weights.reshape(-1)
    catalog, mesh = scoring.items.catalog(), jax.sharding.get_abstract_mesh()
    if mesh.shape.get(MODEL, 1) == 1:
        return full_softmax.full_softmax(
            x, catalog, ids, weights, scale=scoring.scale, chunk=config.chunk
        )
    return sharded_softmax.full_softmax(
        x,
        catalog,
        ids,
        weights,
        mesh=mesh,
        num_items=scoring.items.num_items,
        scale=scoring.scale,
        chunk=config.chunk,
    )


def sampled(
    scoring: Scoring,
    queries: Queries,
    targets: Targets,
    *,
    history: Repeats | None,
    negatives: sampling.Negatives,
) -> SumWeight:
    """(loss sum, weight) against negatives that all users of the batch share."""
    config, items, vectors = scoring.config, scoring.items, queries.vectors
    width = vectors.shape[-1]
    ids = targets.ids.reshape(-1)
    positive, negative = items.vectors(targets.ids), items.vectors(negatives.ids)
    positive = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), positive)
    chex.assert_shape([positive.vectors, negative.vectors], (None, width))
    contrast = Contrast(
        x=vectors.reshape(-1, width),
        positives=positive.vectors,
        negatives=negative.vectors,
        targets=ids,
        negative_ids=negatives.ids,
        weights=targets.weights.reshape(-1),
        offsets=_sum_offsets(
            _history_offsets(queries, history, negatives.ids, scoring.half_lives),
            _bias_offsets(positive, negative),
        ),
    )
    scale, false_negative = scoring.scale, config.false_negative
    if config.kind == "sampled_softmax":
        log_q = negatives.log_q if config.log_q else None
        return losses.sampled_softmax(
            contrast, log_q=log_q, scale=scale, false_negative=false_negative
        )
    if config.kind == "bce":
        return losses.bce(contrast, scale=scale, false_negative=false_negative)
    beta = losses.gbce_beta(config.negatives, items.num_items, config.gbce_t)
    return losses.gbce(contrast, beta=beta, scale=scale, false_negative=false_negative)


def sampled_in_groups(
    scoring: Scoring,
    queries: Queries,
    targets: Targets,
    *,
    history: Repeats | None,
    rng: jax.Array,
    item_counts: Array | None,
) -> SumWeight:
    """`sampled` with negatives drawn here, anew for each of `loss.negative_groups` groups of users.

    item_counts: [V + 1] training events per item, for loss.sampling=popularity. Raises
    ValueError when the groups do not divide the users.
    """
    config, num_items = scoring.config, scoring.items.num_items

    def draw(key: jax.Array) -> sampling.Negatives:
        ids, log_q = sampling.sample_negatives(
            key, num_items, config.negatives, counts=item_counts, sampling=config.sampling
        )
        return sampling.Negatives(ids, log_q[ids])

    groups, users = config.negative_groups, len(targets.ids)
    if groups == 1:
        return sampled(scoring, queries, targets, history=history, negatives=draw(rng))
    if users % groups:
        raise ValueError(f"loss.negative_groups={groups} does not divide {users} users")

    def loss(group: tuple[Queries, Array, Array, Repeats | None, jax.Array]) -> SumWeight:
        queries, ids, weights, history, key = group
        of_group = targets._replace(ids=ids, weights=weights)
        return sampled(scoring, queries, of_group, history=history, negatives=draw(key))

    per_user = queries, targets.ids, targets.weights, history
    split = jax.tree.map(lambda a: jnp.reshape(a, (groups, -1, *jnp.shape(a)[1:])), per_user)
    sums, weights = jax.lax.map(loss, (*split, jax.random.split(rng, groups)))
    return sums.sum(), weights.sum()


def _history_offsets(
    queries: Queries, history: Repeats | None, negative_ids: Array, half_lives: HalfLives
) -> Offsets | None:
    """What repeats add to the scores; None where scores do not count them."""
    if history is None or queries.gates is None:
        return None
    positive = jnp.sum(queries.gates * history.features, axis=-1)
    negative = repeats.candidate_bonus(
        queries.gates, history.items, history.times, negative_ids, half_lives
    )
    return Offsets(positive.reshape(-1, 1), negative.reshape(-1, len(negative_ids)))


def _bias_offsets(positive: ItemVectors, negative: ItemVectors) -> Offsets | None:
    """What item biases add to the scores; None without `model.item_bias`."""
    if positive.bias is None or negative.bias is None:
        return None
    shape = len(positive.bias), len(negative.bias)
    return Offsets(positive.bias[:, None], jnp.broadcast_to(negative.bias[None, :], shape))


def _sum_offsets(first: Offsets | None, second: Offsets | None) -> Offsets | None:
    if first is None or second is None:
        return second if first is None else first
    return Offsets(first.positive + second.positive, first.negative + second.negative)
