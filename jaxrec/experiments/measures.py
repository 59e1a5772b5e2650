"""Columns of quality from ranks by seed: levels, ratios, and the share of a gap that is closed."""

import math
from collections.abc import Sequence

import numpy as np

from jaxrec.config import Config
from jaxrec.data.datasets import PLANTED
from jaxrec.errors import DataError
from jaxrec.evaluation.ranks import Ranks
from jaxrec.experiments import statistics
from jaxrec.experiments.result_table import Values, spread
from jaxrec.experiments.runs import Lab, with_values
from jaxrec.experiments.settings import ExperimentsConfig
from jaxrec.session import Session

METRICS = ("recall", "ndcg")  # that ratios are of, at K
K = 10
QUALITY = f"recall@{K}"
# columns of the measure of compression -> metric and length of the list, None: the whole catalog
MEASURES: dict[str, tuple[str, int | None]] = {
    f"recall@{K}": ("recall", K),
    f"ndcg@{K}": ("ndcg", K),
    "mrr": ("mrr", None),
}


def by_seed(lab: Lab, config: Config, row: str = "") -> list[Ranks]:
    """Ranks of a setting, one entry per seed.

    config: of any seed; row: see `Lab.ranks`, default the one in which its layout answers.
    """
    row = row or config.layout.mode
    return [lab.ranks(with_values(config, seed=seed), row) for seed in lab.seeds]


def distance_of_returns(session: Session, ranks: Ranks) -> np.ndarray:
    """How many events ago each target, a planted return, was last seen, int [P]; else 0."""
    distance = np.zeros(len(ranks.rank), np.int64)
    users, first = np.unique(ranks.user, return_index=True)
    for user, begin in zip(users.tolist(), first.tolist(), strict=True):
        returning, items = session.returning(user), session.history(user)
        for row in range(begin, len(ranks.user)):
            if ranks.user[row] != user:
                break
            position = int(ranks.position[row])
            if returning[position]:
                seen = np.flatnonzero(items[:position] == ranks.item[row])
                distance[row] = position - seen[-1] if len(seen) else 0
    return distance


def returns(
    lab: Lab, by_seed: Sequence[Ranks], low: float = 1, high: float = math.inf
) -> list[Ranks]:
    """Those of ranks by seed whose targets are planted returns (`datasets.PLANTED`).

    low, high: low <= events since the item was last seen < high. Raises DataError where there is
    none.
    """
    session = lab.data
    kept = []
    for ranks in by_seed:
        distance = distance_of_returns(session, ranks)
        inside = (distance > 0) & (distance >= low) & (distance < high)
        if not inside.any():
            which = "a planted return" if low <= 1 else f"a return after {low:g} events and more"
            raise DataError(
                f"none of {len(distance):,} targets is {which}: raise data.planted.rate, or "
                "experiments.last and data.holdout, or count every target "
                "(experiments.returns=False)"
            )
        user, position, item, rank = (column[inside] for column in ranks[:4])
        kept.append(Ranks(user, position, item, rank, None))
    return kept


def counted(lab: Lab, by_seed: Sequence[Ranks]) -> list[Ranks]:
    """The ranks that count: with `experiments.returns` planted returns, where data have some.

    Raises DataError where none of the targets is one.
    """
    return returns(lab, by_seed) if count_returns(lab.config) else list(by_seed)


def count_returns(config: ExperimentsConfig) -> bool:
    """Whether planted returns alone are targets."""
    return config.experiments.returns and config.data.dataset in PLANTED


def columns(
    ranks: Sequence[Ranks],
    samples: int,
    against: Sequence[Ranks] | None = None,
    name: str = "full",
) -> Values:
    """Columns of a setting from its ranks by seed.

    against: ranks by seed of another setting, called `name` in the columns of the ratio.
    """
    values: Values = {}
    for metric in METRICS:
        table = statistics.values(ranks, metric, K)
        values |= spread(f"{metric}@{K}", statistics.interval(table, samples))
        values[f"{metric}@{K}_seeds"] = table.mean(1).tolist()
        if against is not None:
            base = statistics.values(against, metric, K)
            values |= spread(f"{metric}_of_{name}", statistics.ratio(table, base, samples))
    return values | {"users": int(table.shape[1]), "targets": len(ranks[0].rank)}


def levels(ranks: Sequence[Ranks], samples: int) -> Values:
    """Every metric of `MEASURES` with its interval and its values by seed."""
    values: Values = {}
    for name, (metric, k) in MEASURES.items():
        table = statistics.values(ranks, metric, k)
        values |= spread(name, statistics.interval(table, samples))
        values[f"{name}_seeds"] = table.mean(1).tolist()
    return values | {"users": int(table.shape[1]), "targets": len(ranks[0].rank)}


def closed(
    kept: Sequence[Ranks], recent: Sequence[Ranks], full: Sequence[Ranks], samples: int
) -> Values:
    """The share of the gap between `recent` and `full` that `kept` closes, by every metric.

    `<metric>_closed` is the share, `<metric>_gap` full - recent, `<metric>_without_gap` the share
    of resamples in which full is not above recent (`intervals.Closed`).
    """
    values: Values = {}
    for name, (metric, k) in MEASURES.items():
        table, low, high = (statistics.values(ranks, metric, k) for ranks in (kept, recent, full))
        result = statistics.gap_closed(table, low, high, samples)
        values |= spread(f"{name}_closed", result.share) | spread(f"{name}_gap", result.gap)
        values[f"{name}_without_gap"] = result.without_gap
    return values
