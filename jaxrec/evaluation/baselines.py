"""Recommenders without parameters, ranked like the models: popularity, recency, frequency.

Personal rules order the user's own items and put the rest of the catalog behind them by
popularity, the number of training events. Own items tie by how recent they are, then they
differ; equally popular items count against the rule in ranks and come by id in lists. With
the seen filter nothing personal is left: every rule is popularity without the user's items.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class Rule(NamedTuple):
    """order: items of a history, oldest first -> its distinct items, best first.

    look_back: newest events of the history that it looks at; 0: all.
    """

    order: Callable[[np.ndarray], np.ndarray]
    look_back: int


def by_frequency(history: np.ndarray) -> np.ndarray:
    """Distinct items, most frequent first, ties by recency."""
    items, first, counts = np.unique(history[::-1], return_index=True, return_counts=True)
    return items[np.lexsort((first, -counts))]


def by_recency(history: np.ndarray) -> np.ndarray:
    """Distinct items, most recent first: what "copy the last item" extends to."""
    items, first = np.unique(history[::-1], return_index=True)
    return items[np.argsort(first, kind="stable")]


def nothing(history: np.ndarray) -> np.ndarray:
    """No personal items: popularity alone."""
    return history[:0]


def rules(recent: int) -> Mapping[str, Rule]:
    """The rules by row name; `recent` events are those of the model's recent window."""
    return {
        "popularity": Rule(nothing, 0),
        "copy-last": Rule(by_recency, 0),
        f"frequency-last-{recent}": Rule(by_frequency, recent),
        "frequency-all": Rule(by_frequency, 0),
    }


class Popularity:
    """Order by training counts [V + 1] (entry 0 is padding).

    rank: [V + 1] items at least as popular as each one, itself left out.
    ids: [V] item ids, most popular first, ties by id.
    """

    def __init__(self, counts: np.ndarray):
        self.counts = np.asarray(counts)
        ordered = np.sort(self.counts[1:])
        self.rank = len(ordered) - np.searchsorted(ordered, self.counts, side="left") - 1
        self.ids = np.argsort(-self.counts[1:], kind="stable") + 1

    def behind(self, target: int, others: np.ndarray) -> int:
        """Rank of `target` by popularity when `others` (distinct, without it) are set aside."""
        return int(self.rank[target] - (self.counts[others] >= self.counts[target]).sum())


def _own(rule: Rule, history: np.ndarray) -> np.ndarray:
    return rule.order(history[-rule.look_back :] if rule.look_back else history)


def rank(
    rule: Rule, popularity: Popularity, history: np.ndarray, target: int, filter_seen: bool
) -> int:
    """Rank of `target` after `history` (items, oldest first)."""
    if filter_seen:
        seen = np.unique(history)
        return popularity.behind(target, seen[seen != target])
    own = _own(rule, history)
    place = np.flatnonzero(own == target)
    return int(place[0]) if len(place) else len(own) + popularity.behind(target, own)


def top(
    rule: Rule, popularity: Popularity, history: np.ndarray, k: int, filter_seen: bool
) -> np.ndarray:
    """The rule's first `k` items (fewer when the filter leaves fewer)."""
    aside = np.unique(history) if filter_seen else _own(rule, history)
    head = popularity.ids[: k + len(aside)]
    rest = head[~np.isin(head, aside)]
    return (rest if filter_seen else np.concatenate([aside, rest]))[:k]
