"""Top lists from the histories of the training data, without a store of states.

What is ranked is what evaluation ranks: the same cut of a history, the same prediction, for every
layout.mode. So the figures of a run are those of its recommendations.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from jaxrec import ranking
from jaxrec.data import pipeline
from jaxrec.data.vocabulary import Vocabulary
from jaxrec.evaluation import evaluator
from jaxrec.evaluation.ranks import targets_of
from jaxrec.objective.logits import unit
from jaxrec.ranking import ItemIndex, TopK
from jaxrec.runtime.progress import say, track
from jaxrec.serving import buckets, requests
from jaxrec.serving.compiled import UserQueries
from jaxrec.serving.requests import Request
from jaxrec.session import Session
from jaxrec.types import PAD, Array, Batch, ItemVectors, Queries

QUIET = 1024  # users whose lists are made without progress


class Ranker:
    """The best checkpoint of a run, ready to rank; `requests.Search` over its catalog."""

    shapes = buckets.SHAPES

    def __init__(self, session: Session) -> None:
        """Reads the parameters. Raises CheckpointError where the run has none yet."""
        trained = session.trained_model()
        self.session, self.params, mesh = session, trained.params, trained.mesh
        self.model = trained.model
        self.predict = evaluator.predictor(
            evaluator.own_rows(session.config)[0], trained.model, mesh
        )
        self.history_items = evaluator.history_items(trained.model, mesh)
        self.items = trained.model.item_index(self.params, mesh)
        counts = np.asarray(session.prepared.counts, np.float32)
        self.popularity = ItemIndex.of(ItemVectors(counts[:, None]))
        self.users = Vocabulary(session.prepared.users)
        self._of_candidates = jax.jit(ranking.top_k_of_candidates, static_argnames=("k",))

    def answer(
        self, users: np.ndarray, request: Request, *, exclude_seen: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Dense items int32 [B, k] and scores float32 [B, k], best first.

        users: int [B], dense indices, -1 for unknown ones, who get the most popular items with
        training counts as scores. A short list ends in item 0 with score -inf.
        """
        ids = np.full((len(users), request.k), PAD, np.int32)
        scores = np.full((len(users), request.k), -np.inf, np.float32)

        def fill(rows: np.ndarray, queries: UserQueries, index: ItemIndex) -> None:
            chosen = request.of(rows.tolist())
            if exclude_seen and index is self.items:
                chosen = _without_seen(self.session, users[rows], chosen)
            best_scores, best_ids = requests.top_lists(self, queries, index, chosen)
            width = min(best_ids.shape[1], request.k)
            ids[rows, :width], scores[rows, :width] = best_ids[:, :width], best_scores[:, :width]

        known, unknown = np.flatnonzero(users >= 0), np.flatnonzero(users < 0)
        size = self.session.config.eval.batch_size
        times = None if request.now is None else request.now[known]
        batches = pipeline.next_batches(
            self.session.prepared,
            self.session.config.layout,
            users[known],
            batch_size=size,
            now=times,
        )
        parts = [known[start : start + size] for start in range(0, len(known), size)]
        if len(known) > QUIET:
            batches = track(batches, len(parts), "recommending, batches of users")
        for rows, batch in zip(parts, batches, strict=True):
            fill(rows, self._queries(batch), self.items)
        for start in range(0, len(unknown), buckets.BATCH):
            rows = unknown[start : start + buckets.BATCH]
            ones = np.ones((buckets.size_of(len(rows), buckets.USERS), 1), np.float32)
            fill(rows, UserQueries(Queries(ones), None), self.popularity)
        return ids, scores

    def _queries(self, batch: Batch) -> UserQueries:
        """Queries of the rows that ask for something; rounded up to a bucket."""
        rows, slots, _ = targets_of(batch)
        size = buckets.size_of(len(rows), buckets.USERS)
        places = tuple(np.resize(place, size) for place in (rows, slots))
        queries = jax.tree.map(lambda a: a[places], self.predict(self.params, batch))
        return UserQueries(queries, self.history_items(batch, *places))

    @functools.cached_property
    def _directions(self) -> ItemIndex:
        """The catalog as vectors of unit length."""
        vectors = self.model.item_vectors(self.params).vectors
        return ItemIndex.of(ItemVectors(unit(vectors)))

    def neighbours(self, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Dense ids [N, k] and cosines [N, k] of the items closest to each, itself left out.

        items: int32 [N], dense ids. k: at most all items but one.
        """
        ids, scores = np.zeros((len(items), k), np.int32), np.zeros((len(items), k), np.float32)
        for start in range(0, len(items), buckets.BATCH):
            part = items[start : start + buckets.BATCH]
            padded = np.resize(part, buckets.size_of(len(part), buckets.USERS))
            queries = Queries(self._directions.vectors(padded).vectors)
            best = self.top_k(UserQueries(queries, None), self._directions, padded[:, None], k=k)
            rows = slice(start, start + len(part))
            scores[rows], ids[rows] = (np.asarray(column)[: len(part)] for column in best)
        return ids, scores

    def top_k(
        self, queries: UserQueries, index: ItemIndex, exclude: Array | None, *, k: int
    ) -> TopK:
        """The k best items of an index (`requests.Search`)."""
        vectors, history = queries
        chunk = self.session.config.eval.chunk
        return ranking.top_k(vectors, index, k, exclude=exclude, history=history, chunk=chunk)

    def top_k_of_candidates(
        self, queries: UserQueries, index: ItemIndex, candidates: Array, *, k: int
    ) -> TopK:
        """The k best of each user's candidates (`requests.Search`)."""
        vectors, history = queries
        lists: TopK = self._of_candidates(vectors, index, candidates, k=k, history=history)
        return lists


def _without_seen(session: Session, users: np.ndarray, request: Request) -> Request:
    """The request without the items that each user has had; users: dense indices."""
    records = session.prepared.source.__getitems__(users.tolist())
    seen = [np.unique(record.items) for record in records]
    width = max(len(items) for items in seen)
    return request.without(np.stack([np.pad(items, (0, width - len(items))) for items in seen]))


def say_unknown(unknown: Sequence[bool] | np.ndarray, what: str, outcome: str) -> None:
    """Says on standard error how many of some ids [N] are unknown, unless all are known."""
    count = int(np.sum(unknown))
    if count:
        say(f"recommend: {count:,} of {len(unknown):,} {what} are unknown: {outcome}")
