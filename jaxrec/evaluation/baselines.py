"""Recommenders without parameters, ranked like the models: popularity, recency, frequency.

A personal rule puts the user's own items first and then the rest of the catalog by popularity (the
number of training events). The rules differ in how they order the user's items; ties between those
are broken by recency. Equally popular items count against the rule in ranks and are ordered by id
in lists. With the seen filter no personal item is a candidate, so every rule reduces to popularity
without the user's items.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class Rule(NamedTuple):
    """How a baseline orders the items of a history.

    order: items [N] of a history, oldest first -> its distinct items, best first.
    look_back: how many of the newest events it looks at; 0 is all of them.
    """

    order: Callable[[np.ndarray], np.ndarray]
    look_back: int

    def personal_items(self, history: np.ndarray) -> np.ndarray:
        """Distinct items of a history [N], best first."""
        return self.order(history[-self.look_back :] if self.look_back else history)


def by_frequency(history: np.ndarray) -> np.ndarray:
    """Distinct items, most frequent first, ties by recency."""
    items, age, counts = np.unique(history[::-1], return_index=True, return_counts=True)
    return items[np.lexsort((age, -counts))]


def by_recency(history: np.ndarray) -> np.ndarray:
    """Distinct items, most recent first: "copy the last item", continued to a whole list."""
    items, age = np.unique(history[::-1], return_index=True)
    return items[np.argsort(age, kind="stable")]


def no_personal_items(history: np.ndarray) -> np.ndarray:
    """No item of the history: popularity alone."""
    return history[:0]


def rules(recent: int) -> Mapping[str, Rule]:
    """The rules by row name; `recent` is the number of events in the model's recent window."""
    return {
        "popularity": Rule(no_personal_items, 0),
        "copy-last": Rule(by_recency, 0),
        f"frequency-last-{recent}": Rule(by_frequency, recent),
        "frequency-all": Rule(by_frequency, 0),
    }


class Popularity:
    """The catalog ordered by training events.

    counts: int [V + 1], training events per item; entry 0 is padding.
    rank: int [V + 1], how many other items are at least as popular.
    ids: int [V], most popular first, ties by id.
    """

    def __init__(self, counts: np.ndarray):
        self.counts = np.asarray(counts)
        ascending = np.sort(self.counts[1:])
        self.rank = len(ascending) - np.searchsorted(ascending, self.counts, side="left") - 1
        self.ids = np.argsort(-self.counts[1:], kind="stable") + 1

    def rank_without(self, target: int, others: np.ndarray) -> int:
        """Rank of `target` by popularity when `others` (distinct, without it) are left out."""
        return int(self.rank[target] - (self.counts[others] >= self.counts[target]).sum())


def rank(
    rule: Rule, popularity: Popularity, history: np.ndarray, target: int, filter_seen: bool
) -> int:
    """0-based rank of `target` after `history` (item ids [N], oldest first)."""
    if filter_seen:
        seen = np.unique(history)
        return popularity.rank_without(target, seen[seen != target])
    personal = rule.personal_items(history)
    place = np.flatnonzero(personal == target)
    if len(place):
        return int(place[0])
    return len(personal) + popularity.rank_without(target, personal)


def top(
    rule: Rule, popularity: Popularity, history: np.ndarray, k: int, filter_seen: bool
) -> np.ndarray:
    """The rule's first `k` items; fewer when the filter leaves fewer."""
    personal = np.unique(history) if filter_seen else rule.personal_items(history)
    popular = popularity.ids[: k + len(personal)]
    rest = popular[~np.isin(popular, personal)]
    return (rest if filter_seen else np.concatenate([personal, rest]))[:k]
