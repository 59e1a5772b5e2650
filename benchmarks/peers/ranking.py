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
    target_scores = scores[np.arange(len(items)), items]
    better = ~(scores < target_scores[:, None])
    better[:, 0] = False
    better[np.arange(len(items)), items] = False
    above = better.sum(1)
    seen_above = [row[items].sum() for row, items in zip(better, seen, strict=True)]
    return np.stack([above, above - np.asarray(seen_above, np.int64)])


def ranks(
    score: Callable[[slice], np.ndarray], events: Events, targets: Targets, block: int = BLOCK
) -> dict[str, np.ndarray]:
    """The ranks of all targets, seen items filtered and not (`KINDS`).

    score: targets -> [P, V + 1].
    """
    blocks = []
    for start in range(0, len(targets.user), block):
        rows = slice(start, start + block)
        seen = [
            np.unique(events.history(user)[:position])
            for user, position in zip(targets.user[rows], targets.position[rows], strict=True)
        ]
        blocks.append(rank_block(score(rows), targets.item[rows], seen))
    return dict(zip(KINDS, np.concatenate(blocks, axis=1), strict=True))


def quality(ranks: np.ndarray, user: np.ndarray, k: int = 10) -> dict[str, float]:
    """Recall@k and NDCG@k: mean over a user's targets, then over users."""
    hit = ranks < k
    gains = {"recall": hit.astype(float), "ndcg": np.where(hit, 1 / np.log2(ranks + 2.0), 0.0)}
    _, index, counts = np.unique(user, return_inverse=True, return_counts=True)
    return {
        f"{name}@{k}": float((np.bincount(index, gain) / counts).mean())
        for name, gain in gains.items()
    }
