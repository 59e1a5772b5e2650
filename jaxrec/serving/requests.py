"""Top lists for a batch of users: the request, and its answer from their stored rows."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from jaxrec.data.catalog import Catalog
from jaxrec.ranking import ItemIndex, TopK
from jaxrec.serving import buckets, raw_inputs, state_rows
from jaxrec.serving.compiled import CompiledModel, UserQueries
from jaxrec.serving.raw_inputs import ItemLists
from jaxrec.state_store.keys import UserIds, id_list
from jaxrec.state_store.row_format import Columns
from jaxrec.types import PAD, Array, UserId


@dataclasses.dataclass(frozen=True)
class Request:
    """A request for the top lists of B users, in dense item ids.

    k: length of the lists. now: int32 [B] model times, None for the users' last events.
    exclude: ids to leave out, per user. candidates: ids to choose from, per user; None for the
    whole catalog. exclude_seen: leave out what the store remembers of a user too.
    """

    k: int
    now: np.ndarray | None
    exclude: Sequence[np.ndarray]
    candidates: Sequence[np.ndarray] | None
    exclude_seen: bool = False

    def of(self, users: Sequence[int]) -> "Request":
        """The request for some of the users, by their positions."""
        return Request(
            self.k,
            None if self.now is None else self.now[users],
            [self.exclude[i] for i in users],
            None if self.candidates is None else [self.candidates[i] for i in users],
            self.exclude_seen,
        )

    def without(self, items: np.ndarray) -> "Request":
        """The request that leaves out `items` [B, X] too; 0 is none."""
        pairs = zip(self.exclude, items, strict=True)
        return dataclasses.replace(self, exclude=[np.concatenate(pair) for pair in pairs])


def make_request(
    catalog: Catalog,
    user_ids: UserIds,
    k: int = 10,
    *,
    now: ArrayLike | None = None,
    exclude_seen: bool = False,
    exclude: ItemLists | None = None,
    candidates: ItemLists | None = None,
) -> tuple[list[UserId], Request]:
    """The checked arguments of `Recommender.recommend`; raises as it does."""
    users = id_list(user_ids)
    catalog.check_users(users, "recommend")
    k, count = raw_inputs.check_k(k), len(users)
    nothing = [np.zeros(0, np.int32)] * count
    return users, Request(
        k,
        now=raw_inputs.check_now(now, count, catalog),
        exclude=raw_inputs.check_items(exclude, count, "exclude", catalog) or nothing,
        candidates=raw_inputs.check_items(candidates, count, "candidates", catalog),
        exclude_seen=exclude_seen,
    )


class Answer(NamedTuple):
    """Top lists of B users: raw item ids [B, k], scores float32 [B, k], best first.

    known: bool [B], users with a state; the scores of the others are training counts.
    """

    items: np.ndarray
    scores: np.ndarray
    known: np.ndarray


def answer(
    model: CompiledModel, columns: Columns, known: np.ndarray, request: Request, encoding: str
) -> tuple[np.ndarray, np.ndarray]:
    """Dense ids int32 [B, k] and scores float32 [B, k]; a short list ends in id 0, score -inf.

    columns: stored rows [B, ...], `encoding` of their vectors. known: bool [B], whether a user has
    a row; the others get the most popular items.
    """
    ids = np.full((len(known), request.k), PAD, np.int32)
    scores = np.full((len(known), request.k), -np.inf, np.float32)
    for has_row in (True, False):
        users = np.flatnonzero(known == has_row).tolist()
        if not users:
            continue
        chosen = request.of(users)
        if has_row:
            rows = {n: c[users] for n, c in columns.items() if n != state_rows.SEEN}
            queries, index = model.queries(rows, encoding, chosen.now), model.items
        else:
            queries, index = model.popularity_queries(len(users)), model.popularity
        best_scores, best_ids = top_lists(model, queries, index, chosen)
        width = min(best_ids.shape[1], request.k)
        ids[users, :width] = best_ids[:, :width]
        scores[users, :width] = best_scores[:, :width]
    return ids, scores


class Search(Protocol):
    """The two searches of a `CompiledModel`. shapes: sizes that batches are rounded up to."""

    shapes: buckets.Shapes

    def top_k(
        self, queries: UserQueries, index: ItemIndex, exclude: Array | None, *, k: int
    ) -> TopK:
        """The k best items of an index."""
        ...

    def top_k_of_candidates(
        self, queries: UserQueries, index: ItemIndex, candidates: Array, *, k: int
    ) -> TopK:
        """The k best of each user's candidates."""
        ...


def top_lists(
    model: Search, queries: UserQueries, index: ItemIndex, request: Request
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and dense ids [B, K]: K is k rounded up, at most the number of candidates.

    queries: of B users, rounded up to one of `buckets.USERS`.
    """
    count = len(request.exclude)
    shapes = model.shapes
    size = buckets.size_of(count, shapes.users)
    width = buckets.size_of(request.k, shapes.lists)
    if request.candidates is None:
        exclude = None
        if any(len(items) for items in request.exclude):
            exclude = buckets.fill(buckets.rectangle(request.exclude, shapes.ids), size)
        scores, ids = model.top_k(queries, index, exclude, k=min(width, index.num_items))
    else:
        pairs = zip(request.candidates, request.exclude, strict=True)
        allowed = [np.setdiff1d(items, excluded) for items, excluded in pairs]
        candidates = buckets.fill(buckets.rectangle(allowed, shapes.ids), size)
        width = min(width, candidates.shape[1])
        scores, ids = model.top_k_of_candidates(queries, index, candidates, k=width)
    return np.asarray(scores)[:count], np.asarray(ids)[:count]
