"""Ranks of held-out targets: by a model's queries, or by a rule without parameters."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import jax
import numpy as np

from jaxrec import ranking
from jaxrec.errors import ConfigError
from jaxrec.evaluation import baselines
from jaxrec.evaluation.rendering import HEADLINE
from jaxrec.ranking import ItemIndex
from jaxrec.types import Array, Batch, HistoryItems, Params, Queries

LIST = HEADLINE  # length of the lists that coverage looks at

# (params, batch) -> queries [B, E + 1, ...]; entry j asks for the event in slot j
Predict: TypeAlias = Callable[[Params, Batch], Queries]
History: TypeAlias = Callable[[int], np.ndarray]  # dense user index -> all items, oldest first
Progress: TypeAlias = Callable[[int], None]  # gets how many targets are done


class Ranks(NamedTuple):
    """Where a recommender ranks the targets: one entry per target.

    user: int [P], dense index of the user.
    position: int [P], index of the target in the user's history.
    item: int [P], the target.
    rank: int [P], 0-based; how many other candidates score at least as high.
    lists: int [U, K], the recommendations at each user's first target, 0 where no candidate is
        left; None when no lists were made.
    """

    user: np.ndarray
    position: np.ndarray
    item: np.ndarray
    rank: np.ndarray
    lists: np.ndarray | None


class HistoryItemsOf(Protocol):
    """(batch, rows [P], slots [P]) -> history items of these queries."""

    def __call__(self, batch: Batch, rows: Array, slots: Array, /) -> HistoryItems | None:
        """None when scores do not depend on history items."""
        ...


def targets_of(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, slot, index in the user's history) of every weighted target of a batch."""
    weights = np.asarray(batch.weights) > 0
    rows, slots = np.nonzero(weights)
    order = np.cumsum(weights, axis=1)[rows, slots] - 1
    return rows, slots, np.asarray(batch.history)[rows] + order


def model_ranks(
    predict: Predict,
    params: Params,
    index: ItemIndex,
    batches: Iterable[Batch],
    *,
    history_items: HistoryItemsOf = lambda batch, rows, slots, /: None,
    history: History | None = None,
    chunk: int = 16384,
    lists: bool = True,
    progress: Progress = lambda targets: None,
) -> Ranks:
    """Ranks of all targets by a model's prediction.

    index: the catalog (`Model.item_index`); history_items: what the queries' gates weigh
    (`Model.history_items_before`). history: turns the seen filter on: a user's earlier items are no
    candidates. lists: also recommend items at each user's first target. Raises ConfigError without
    any target.
    """
    chunks, listed, done = [], set[int](), 0
    k = min(LIST, index.num_items)
    for batch in batches:
        rows, slots, position = targets_of(batch)
        if not len(rows):
            continue
        user = np.asarray(batch.user)[rows]
        item = np.asarray(batch.items)[rows, slots]
        size = 1 << (len(rows) - 1).bit_length()  # few shapes, few compilations
        padded = _pad(rows, size), _pad(slots, size)
        queries = jax.tree.map(lambda a: a[padded], predict(params, batch))  # noqa: B023
        past_items = history_items(batch, *padded)
        exclude = None if history is None else _pad(_seen(history, user, position), size)
        rank = ranking.rank_of_targets(
            queries, index, _pad(item, size), exclude=exclude, history=past_items, chunk=chunk
        )
        best = np.zeros((0, k), np.int32)
        first_targets = _unlisted(user, listed) if lists else np.zeros(0, np.int64)
        if len(first_targets):
            first = _pad(first_targets, len(batch.user))
            _, ids = ranking.top_k(
                jax.tree.map(lambda a: a[first], queries),  # noqa: B023
                index,
                k,
                exclude=None if exclude is None else exclude[first],
                history=jax.tree.map(lambda a: a[first], past_items),  # noqa: B023
                chunk=chunk,
            )
            best = np.asarray(ids)[: len(first_targets)]
        chunks.append((user, position, item, np.asarray(rank)[: len(rows)], best))
        done += len(rows)
        progress(done)
    user, position, item, rank, best = _joined(chunks)
    return Ranks(user, position, item, rank, best if lists else None)


def rule_ranks(
    rule: baselines.Rule,
    popularity: baselines.Popularity,
    history: History,
    targets: Ranks,
    *,
    filter_seen: bool,
    progress: Progress = lambda targets: None,
) -> Ranks:
    """Ranks of the same targets by a rule without parameters."""
    rank = np.empty(len(targets.user), np.int64)
    k = min(LIST, len(popularity.counts) - 1)
    by_user = np.lexsort((targets.position, targets.user))
    starts = np.flatnonzero(np.diff(targets.user[by_user], prepend=-1))
    lists = np.zeros((len(starts), k), np.int32)
    for row, user_targets in enumerate(np.split(by_user, starts[1:])):
        events = history(int(targets.user[user_targets[0]]))
        for i in user_targets:
            past, item = events[: targets.position[i]], int(targets.item[i])
            rank[i] = baselines.rank(rule, popularity, past, item, filter_seen)
        past = events[: targets.position[user_targets[0]]]
        best = baselines.top(rule, popularity, past, k, filter_seen)
        lists[row, : len(best)] = best
        progress(int(starts[row]) + len(user_targets))
    return targets._replace(rank=rank, lists=lists)


def unranked(batches: Iterable[Batch]) -> Ranks:
    """The targets with rank 0, for rules that are evaluated without a model."""
    chunks = []
    for batch in batches:
        rows, slots, position = targets_of(batch)
        item = np.asarray(batch.items)[rows, slots]
        user = np.asarray(batch.user)[rows]
        chunks.append((user, position, item, np.zeros(len(rows), np.int64)))
    user, position, item, rank = _joined(chunks)
    return Ranks(user, position, item, rank, None)


def kinds_of(
    targets: Ranks,
    history: History,
    recent: int,
    returning: Callable[[int], np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Groups of targets by what they are to their user: label -> bool [P].

    The user had the item within the last `recent` events, only earlier, or never. returning: user
    -> bool per event, planted returns (they may be in another group too).
    """
    age = np.empty(len(targets.user), np.int64)
    planted = np.zeros(len(targets.user), bool)
    for row, (user, position, item) in enumerate(
        zip(targets.user.tolist(), targets.position.tolist(), targets.item.tolist(), strict=True)
    ):
        earlier = np.flatnonzero(history(user)[:position] == item)
        age[row] = position - earlier[-1] if len(earlier) else 0
        if returning is not None:
            planted[row] = returning(user)[position]
    kinds = {
        f"last {recent}": (age > 0) & (age <= recent),
        "earlier": age > recent,
        "never": age == 0,
    }
    return kinds | ({} if returning is None else {"planted return": planted})


def _unlisted(user: np.ndarray, listed: set[int]) -> np.ndarray:
    """Row of the first target of every user that is not in `listed` yet; adds them."""
    first = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
    first = np.asarray([i for i in first if int(user[i]) not in listed], np.int64)
    listed.update(user[first].tolist())
    return first


def _joined(chunks: Sequence[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """The columns of all batches, concatenated. Raises ConfigError without any target."""
    if not any(len(chunk[0]) for chunk in chunks):
        raise ConfigError(
            "eval.split: no user has a target; lower data.holdout or give more events"
        )
    return [np.concatenate(column) for column in zip(*chunks, strict=True)]


def _seen(history: History, user: np.ndarray, position: np.ndarray) -> np.ndarray:
    """[P, X] distinct items of each user before each target, 0-padded; X a power of two."""
    seen = [np.unique(history(int(u))[:t]) for u, t in zip(user, position, strict=True)]
    width = 1 << (max(len(items) for items in seen) - 1).bit_length()
    padded = np.zeros((len(seen), width), np.int32)
    for row, items in enumerate(seen):
        padded[row, : len(items)] = items
    return padded


def _pad(array: np.ndarray, size: int) -> np.ndarray:
    """`array` with its first axis filled up to `size` by repeating the first entry."""
    return np.concatenate([array, np.repeat(array[:1], size - len(array), axis=0)])
