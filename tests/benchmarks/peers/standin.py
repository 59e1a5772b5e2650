"""Small events, targets and cells made by hand."""

import pathlib
from typing import Any

import numpy as np

from benchmarks.peers import exchange, ranking
from benchmarks.peers.exchange import Events


def events(users: int = 6, items: int = 9, holdout: int = 2, seed: int = 0) -> Events:
    """Histories of 7 to 12 events; the last `holdout` test, as many before them validate."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(7, 13, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    size = int(offsets[-1])
    return Events(
        offsets=offsets,
        items=rng.integers(1, items + 1, size).astype(np.int32),
        times=1000 + np.arange(size) * 10,
        train_end=lengths - 2 * holdout,
        validation_end=lengths - holdout,
        validated=np.arange(users),
        num_items=items,
        digest="d1",
    )


def curve(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{"step": i, "seconds": s, "ndcg@10": v} for i, (s, v) in enumerate(points)]


def cell(
    runs: pathlib.Path,
    data: str,
    name: str,
    seed: int,
    shift: float,
    points: list[dict[str, float]],
    **facts: Any,
) -> None:
    """A finished cell whose scores prefer the target by `shift`."""
    made = exchange.load_events(runs / data / exchange.EVENTS)
    wanted = exchange.targets(made, "test")
    scores = np.random.default_rng(seed).random((len(wanted.user), made.num_items + 1))
    scores[np.arange(len(wanted.user)), wanted.item] += shift
    ranks = ranking.ranks(lambda some: scores[some], made, wanted)
    best = max(points, key=lambda point: point["ndcg@10"])
    values = {
        "name": name,
        "data": data,
        "seed": seed,
        "digest": made.digest,
        "curve": points,
        "best": best,
        "stopped": "budget",
        "train_seconds": points[-1]["seconds"],
        "request_flops": 50,
        **facts,
    }
    exchange.save_cell(exchange.cell_folder(runs, data, name, seed), wanted, ranks, values)
