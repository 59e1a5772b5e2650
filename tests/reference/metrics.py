"""Ranks, lists and metrics from their definitions, one query at a time, float64."""

import math

import numpy as np


def candidates(items: int, exclude=()):
    return [v for v in range(1, items + 1) if v not in set(exclude)]


def rank(x, table, target, exclude=()):
    own = np.float64(x) @ np.float64(table[target])
    others = [v for v in candidates(len(table) - 1, exclude) if v != target]
    return sum(not np.float64(x) @ np.float64(table[v]) < own for v in others)


def top(x, table, k, exclude=()):
    scored = [
        (-(np.float64(x) @ np.float64(table[v])), v) for v in candidates(len(table) - 1, exclude)
    ]
    best = sorted(scored)[:k]
    best += [(math.inf, 0)] * (k - len(best))
    return [-score for score, _ in best], [v for _, v in best]


def gain(name, rank, k):
    if rank >= k:
        return 0.0
    return {"recall": 1.0, "ndcg": 1 / math.log2(rank + 2), "mrr": 1 / (rank + 1)}[name]
