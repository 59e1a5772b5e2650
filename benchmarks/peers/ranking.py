"""Ranks of targets from scores, by the rules of jaxrec, in NumPy for environments without it.

A rank counts the other candidates that score at least as high as the target; 0 is best. Ties
count against the model, and so does a score that is not a number.
"""

from collections.abc import Callable

import numpy as np

from benchmarks.peers.exchange import Events, Targets

KINDS = ("rank", "rank_filtered")
BLOCK = 256  # targets ranked at once


def rank_block(scores: np.ndarray, items: np.ndarray, seen: list[np.ndarray]) -> np.ndarray:
    """int64 [2, P]: among all items; among those that are not in `seen`, the target always is.

    scores: [P, V + 1], column v of item v, column 0 is nobody. items: [P], 1..V. seen:
    distinct items of each target's history.
    """
    reached = scores[np.arange(len(items)), items]
    better = ~(scores < reached[:, None])
    better[:, 0] = False
    better[np.arange(len(items)), items] = False
    everyone = better.sum(1)
    had = np.asarray([row[some].sum() for row, some in zip(better, seen, strict=True)], np.int64)
    return np.stack([everyone, everyone - had])


def ranks(
    score: Callable[[slice], np.ndarray], events: Events, wanted: Targets, block: int = BLOCK
) -> dict[str, np.ndarray]:
    """The ranks of all targets, seen items filtered and not (`KINDS`).

    score: targets -> [P, V + 1].
    """
    parts = []
    for start in range(0, len(wanted.user), block):
        some = slice(start, start + block)
        seen = [
            np.unique(events.history(user)[:position])
            for user, position in zip(wanted.user[some], wanted.position[some], strict=True)
        ]
        parts.append(rank_block(score(some), wanted.item[some], seen))
    return dict(zip(KINDS, np.concatenate(parts, axis=1), strict=True))


def quality(ranks: np.ndarray, user: np.ndarray, k: int = 10) -> dict[str, float]:
    """Recall@k and NDCG@k: mean over a user's targets, then over users."""
    hit = ranks < k
    gains = {"recall": hit.astype(float), "ndcg": np.where(hit, 1 / np.log2(ranks + 2.0), 0.0)}
    _, index, counts = np.unique(user, return_inverse=True, return_counts=True)
    return {
        f"{name}@{k}": float((np.bincount(index, gain) / counts).mean())
        for name, gain in gains.items()
    }
