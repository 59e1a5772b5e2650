"""Ranks of held-out targets: by a model's queries, or by a rule without parameters."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias

import jax
import numpy as np

from jaxrec import ranking
from jaxrec.errors import ConfigError
from jaxrec.evaluation import baselines, report
from jaxrec.evaluation.report import Ranks
from jaxrec.ranking import ItemIndex
from jaxrec.types import Array, Batch, HistoryItems, Params, Queries

LIST = report.HEADLINE  # length of the lists that coverage looks at

# (params, batch) -> queries [B, E + 1, ...]; entry j asks for the event in slot j
Predict: TypeAlias = Callable[[Params, Batch], Queries]
History: TypeAlias = Callable[[int], np.ndarray]  # dense user index -> all items, oldest first
Progress: TypeAlias = Callable[[int], None]  # gets how many targets are done


class HistoryItemsOf(Protocol):
    """(batch, rows [P], slots [P]) -> history items of these queries."""

    def __call__(self, batch: Batch, rows: Array, slots: Array, /) -> HistoryItems | None:
        """None when scores do not depend on a user's own items."""
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
    (`Model.history_items_before`). history: when given, a user's earlier events are no candidates
    (seen filter). lists: also the best items at each user's first target. Raises ConfigError
    without any target.
    """
    parts, listed, done = [], set[int](), 0
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
        counted = history_items(batch, *padded)
        exclude = None if history is None else _pad(_seen(history, user, position), size)
        rank = ranking.rank_of_targets(
            queries, index, _pad(item, size), exclude=exclude, history=counted, chunk=chunk
        )
        best = np.zeros((0, k), np.int32)
        opens = _unlisted(user, listed) if lists else np.zeros(0, np.int64)
        if len(opens):
            first = _pad(opens, len(batch.user))
            _, ids = ranking.top_k(
                jax.tree.map(lambda a: a[first], queries),  # noqa: B023
                index,
                k,
                exclude=None if exclude is None else exclude[first],
                history=jax.tree.map(lambda a: a[first], counted),  # noqa: B023
                chunk=chunk,
            )
            best = np.asarray(ids)[: len(opens)]
        parts.append((user, position, item, np.asarray(rank)[: len(rows)], best))
        done += len(rows)
        progress(done)
    user, position, item, rank, best = _joined(parts)
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
    for row, of_user in enumerate(np.split(by_user, starts[1:])):
        events = history(int(targets.user[of_user[0]]))
        for i in of_user:
            past, item = events[: targets.position[i]], int(targets.item[i])
            rank[i] = baselines.rank(rule, popularity, past, item, filter_seen)
        past = events[: targets.position[of_user[0]]]
        best = baselines.top(rule, popularity, past, k, filter_seen)
        lists[row, : len(best)] = best
        progress(int(starts[row]) + len(of_user))
    return targets._replace(rank=rank, lists=lists)


def unranked(batches: Iterable[Batch]) -> Ranks:
    """The targets alone, for rules that are evaluated without a model."""
    parts = []
    for batch in batches:
        rows, slots, position = targets_of(batch)
        item = np.asarray(batch.items)[rows, slots]
        user = np.asarray(batch.user)[rows]
        parts.append((user, position, item, np.zeros(len(rows), np.int64)))
    user, position, item, rank = _joined(parts)
    return Ranks(user, position, item, rank, None)


def kinds_of(
    targets: Ranks,
    history: History,
    recent: int,
    returning: Callable[[int], np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """What each target is to its user: label -> bool [P].

    Had within the last `recent` events, earlier only, or never; where the data says so, a
    planted return.
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
    opens = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
    opens = np.asarray([i for i in opens if int(user[i]) not in listed], np.int64)
    listed.update(user[opens].tolist())
    return opens


def _joined(parts: Sequence[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    if not any(len(part[0]) for part in parts):
        raise ConfigError(
            "eval.split: no user has a target; lower data.holdout or give more events"
        )
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


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
