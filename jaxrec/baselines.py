"""Recommenders without parameters, ranked like the models: popularity, recency, frequency.

Personal rules order the user's own items (by how often, ties by how recently) and put the rest
of the catalog behind them by popularity. Popularity counts training events; equally popular
items count against the rule.
"""

from collections.abc import Callable, Mapping

import numpy as np

# items of a history, oldest first -> its distinct items, best first
Order = Callable[[np.ndarray], np.ndarray]


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


def rules(recent: int) -> Mapping[str, tuple[Order, int]]:
    """Name -> (order, events of the history it looks at; 0: all)."""
    return {
        "popularity": (nothing, 0),
        "copy-last": (by_recency, 0),
        f"frequency-last-{recent}": (by_frequency, recent),
        "frequency-all": (by_frequency, 0),
    }


class Popularity:
    """Ranks by training counts [V + 1] (entry 0 is padding)."""

    def __init__(self, counts: np.ndarray):
        self.counts = np.asarray(counts)
        ordered = np.sort(self.counts[1:])
        # items at least as popular, the item itself left out
        at_least = len(ordered) - np.searchsorted(ordered, self.counts, side="left")
        self.rank = at_least - 1

    def behind(self, target: int, others: np.ndarray) -> int:
        """Rank of `target` by popularity when `others` (distinct, without it) are set aside."""
        return int(self.rank[target] - (self.counts[others] >= self.counts[target]).sum())


def rank(
    order: Order,
    look_back: int,
    popularity: Popularity,
    history: np.ndarray,
    target: int,
    filter_seen: bool,
) -> int:
    """Rank of `target` after `history` (items, oldest first)."""
    if filter_seen:
        seen = np.unique(history)
        return popularity.behind(target, seen[seen != target])
    own = order(history[-look_back:] if look_back else history)
    place = np.flatnonzero(own == target)
    return int(place[0]) if len(place) else len(own) + popularity.behind(target, own)
