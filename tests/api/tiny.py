"""Events and settings of a run that takes next to nothing."""

import numpy as np
import polars as pl

COLUMNS = {"user": "customer", "item": "product", "time": "when"}
SETTINGS = {
    "data.min_item_events": 1,
    "data.min_user_events": 3,
    "data.workers": 0,
    "layout.mode": "compressed",  # of short histories the data would choose full
    "layout.segment_size": 6,
    "layout.tokens": 2,
    "layout.max_segments": 3,
    "model.width": 8,
    "model.layers": 1,
    "model.heads": 2,
    "loss.negatives": 8,
    "train.steps": 16,
    "train.batch_size": 4,
    "train.log_every": 8,
    "train.eval_every": 8,
    "train.checkpoint_every": 8,
    "eval.bootstrap": 20,
    "eval.batch_size": 8,
    "eval.mode": "compressed,popularity",
    "mesh.data": 1,
}


def events(seed: int = 0, users: int = 24, items: int = 40, most: int = 20) -> pl.DataFrame:
    """Rows in no order: integer users 100.., text items, seconds since 1970."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(100, 100 + users):
        count = int(rng.integers(8, most))
        times = 1_600_000_000 + np.sort(rng.choice(10**7, count, replace=False))
        chosen = rng.integers(0, items, count)
        rows += [(user, f"p{i:02d}", int(t)) for i, t in zip(chosen, times, strict=True)]
    rng.shuffle(rows)
    users_, items_, times_ = zip(*rows, strict=True)
    names = COLUMNS.values()
    columns = (map(int, users_), items_, map(int, times_))
    return pl.DataFrame(dict(zip(names, map(list, columns), strict=True)))
