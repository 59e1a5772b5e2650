"""From ranks to results: metrics with intervals, comparisons, cost of a request, protocol.

A user's metric is the mean over its targets; users count equally. Intervals resample users.
`jaxrec report` prints results again (`jaxrec.evaluation.printing`).
"""

import dataclasses
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrec.config import Config
from jaxrec.data.datasets.synthetic import durable_items
from jaxrec.evaluation import intervals, metrics
from jaxrec.evaluation.intervals import Closed, Interval
from jaxrec.evaluation.ranks import Ranks
from jaxrec.evaluation.rendering import COMPARED, HEADLINE
from jaxrec.layout import SegmentLayout
from jaxrec.model import cost
from jaxrec.runtime.program import exit_status
from jaxrec.types import Json

# The first of these rows that was evaluated is compared with every other row.
LEADERS = ("compressed", "full", "recent")


class Cost(NamedTuple):
    """What one request costs a model.

    pairs: query-key pairs of one attention layer.
    flops: floating point operations of the encoder.
    state_bytes: bytes of the user state that it reads.
    """

    pairs: int
    flops: int
    state_bytes: int


class Group(NamedTuple):
    """Metrics of a group of users or targets, and the size of the group."""

    size: int
    metrics: dict[str, Interval]


@dataclasses.dataclass(frozen=True)
class Row:
    """The results of one recommender, and what a request costs it.

    metrics: by name such as `recall@10`, mean over users and interval.
    buckets: users grouped by the length of their history, such as `200-499`.
    kinds: targets grouped by what they are to the user, such as `never` (bought before).
    coverage: share of the catalog that is in at least one list; None without lists.
    cost: None for a rule, which has no model.
    """

    name: str
    users: int
    targets: int
    metrics: dict[str, Interval]
    buckets: dict[str, Group]
    kinds: dict[str, Group]
    coverage: float | None
    cost: Cost | None


def per_user(ranks: Ranks, metric: str, k: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(user ids [U], ascending; mean of metric@k over each user's targets [U]).

    k: None is the whole catalog.
    """
    gains = metrics.gain(metric, ranks.rank, k)
    return metrics.over_users(gains, np.ones(len(gains)), ranks.user)


def summarise(
    name: str,
    ranks: Ranks,
    config: Config,
    num_items: int,
    cost: Cost | None,
    kinds: Mapping[str, np.ndarray] | None = None,
) -> Row:
    """The row `name`: every metric at every `eval.ks`, over all targets and by group.

    kinds: label -> bool [P], the targets of each kind.
    """
    names = [(metric, k) for metric in metrics.NAMES for k in config.eval.ks]
    gains = np.stack([metrics.gain(metric, ranks.rank, k) for metric, k in names], axis=1)
    users, values = metrics.over_users(gains, np.ones(len(gains)), ranks.user)

    def with_intervals(values: np.ndarray) -> dict[str, Interval]:
        columns = np.stack(intervals.bootstrap(values, config.eval.bootstrap, config.seed), axis=1)
        by_metric = zip(names, columns, strict=True)
        return {f"{metric}@{k}": Interval(*numbers) for (metric, k), numbers in by_metric}

    first = np.full(len(users), np.iinfo(np.int64).max)  # position of each user's first target
    np.minimum.at(first, np.searchsorted(users, ranks.user), ranks.position)
    buckets = {
        label: Group(int(inside.sum()), with_intervals(values[inside]))
        for label, inside in _by_length(first, config.eval.buckets).items()
        if inside.any()
    }
    by_kind = {}
    for label, chosen in (kinds or {}).items():
        if chosen.any():
            size = int(chosen.sum())
            _, means = metrics.over_users(gains[chosen], np.ones(size), ranks.user[chosen])
            by_kind[label] = Group(size, with_intervals(means))
    coverage = None
    if ranks.lists is not None:
        coverage = len(np.setdiff1d(ranks.lists, [0])) / num_items
    return Row(
        name, len(users), len(gains), with_intervals(values), buckets, by_kind, coverage, cost
    )


def _by_length(lengths: np.ndarray, edges: Sequence[int]) -> dict[str, np.ndarray]:
    """Label such as `0-99` or `1000+` -> bool [U], users with a length in that range."""
    buckets = {}
    for low, high in itertools.pairwise([0, *edges, math.inf]):
        label = f"{low:g}+" if high == math.inf else f"{low:g}-{high - 1:g}"
        buckets[label] = (lengths >= low) & (lengths < high)
    return buckets


def ratio(a: Ranks, b: Ranks, metric: str, config: Config) -> Interval:
    """Metric of row a over that of row b, users paired.

    Raises ValueError where the rows ranked targets of different users.
    """
    users_a, means_a = per_user(a, metric, HEADLINE)
    users_b, means_b = per_user(b, metric, HEADLINE)
    if len(a.rank) != len(b.rank) or not np.array_equal(users_a, users_b):
        raise ValueError("rows that rank targets of different users cannot be compared")
    return intervals.paired_ratio(means_a, means_b, config.eval.bootstrap, config.seed)


def compare(by_row: Mapping[str, Ranks], config: Config) -> dict[str, dict[str, Interval]]:
    """`a / b` -> metric -> ratio: the leading row over every other one, and masked over full."""
    leader = next((name for name in LEADERS if name in by_row), None)
    pairs = [(leader, name) for name in by_row if leader is not None and name != leader]
    if {"masked", "full"} <= set(by_row):
        pairs.append(("masked", "full"))
    return {
        f"{a} / {b}": {
            f"{metric}@{HEADLINE}": ratio(by_row[a], by_row[b], metric, config)
            for metric in COMPARED
        }
        for a, b in pairs
    }


def gap_closed(by_row: Mapping[str, Ranks], config: Config) -> dict[str, Closed] | None:
    """Metric -> share of the gap between `recent` and `full` that `compressed` closes.

    By Recall and NDCG at HEADLINE and by MRR of the whole catalog; None without these rows.
    """
    if not {"compressed", "recent", "full"} <= set(by_row):
        return None
    found = {}
    for metric, k in (*((metric, HEADLINE) for metric in COMPARED), ("mrr", None)):
        rows = [per_user(by_row[name], metric, k) for name in ("compressed", "recent", "full")]
        if not all(np.array_equal(rows[0][0], users) for users, _ in rows):
            raise ValueError("rows that rank targets of different users cannot be compared")
        kept, recent, full = (values for _, values in rows)
        found[metric if k is None else f"{metric}@{k}"] = intervals.gap_closed(
            kept, recent, full, config.eval.bootstrap, config.seed
        )
    return found


def full_history(config: Config) -> Cost:
    """A request to a full-history model over as many events as the layout covers."""
    layout = SegmentLayout.full(config.layout.history)
    return Cost(layout.pairs("visible"), cost.forward_flops(config.model, layout), 0)


def protocol(config: Config, num_items: int, *, users: int, targets: int) -> Json:
    """The evaluation protocol: what a reader needs to compare results with others."""
    data, layout, model, train = config.data, config.layout, config.model, config.train
    held_out = f"last {data.holdout} events" if data.split == "last" else "global temporal split"
    return {
        "dataset": data.dataset + (f" {data.variant}" if data.variant else ""),
        "split": f"{config.eval.split}: {held_out}, each predicted from all events before it",
        "candidates": num_items,
        "ranking": "full catalog",
        "seen items": "filtered" if config.eval.filter_seen else "not filtered",
        "ties": "count against the model",
        "users": users,
        "targets": targets,
        "weighting": "mean over a user's targets, users equally",
        "sequence": f"{_sequence(config)} ({layout.mode})",
        "recent window": f"newest {layout.recent} events before the last target of a row",
        "interval": f"{100 * intervals.LEVEL:g} % bootstrap over users, "
        f"{config.eval.bootstrap} samples",
        "coverage": f"share of the catalog in the users' first {HEADLINE}, one list per user",
        "request time": "known" if model.request_time else "not used",
        "model": f"{model.backbone}, {model.layers} layers of width {model.width}; {train.steps} "
        f"training steps of {train.batch_size} users",
        **_chance(config),
    }


def _sequence(config: Config) -> str:
    """What the model reads of a history.

    >>> config = Config()
    >>> config.layout.mode, config.layout.window, config.layout.prefix = "full", 64, 8
    >>> _sequence(config)
    '500 events, each sees the 64 newest and the first 8'
    """
    layout = config.layout
    if layout.mode == "recent":
        return f"{layout.recent} events"
    if layout.mode != "compressed":
        local = f", each sees the {layout.window} newest and the first {layout.prefix}"
        return f"{layout.history} events" + (local if layout.window else "")
    return (
        f"{layout.history} events: {layout.max_segments} x ({layout.segment_size} + "
        f"{layout.tokens} tokens) + recent up to {layout.recent}"
    )


def _chance(config: Config) -> dict[str, str]:
    """Recall of guessing on the planted returns of synthetic data; empty for other data."""
    if config.data.dataset != "synthetic":
        return {}
    durable = len(durable_items(config.data.synthetic))
    return {
        "planted returns": f"of {durable} items that return, a guess has Recall@{HEADLINE} "
        f"{min(1.0, HEADLINE / durable):.3f}"
    }


def to_json(value: object) -> Any:
    """`value` as JSON: rows and intervals become objects, NaN and infinity become null."""
    if isinstance(value, Row):
        return to_json(_row_columns(value))
    if isinstance(value, Interval | Cost | Closed):
        return to_json(value._asdict())
    if isinstance(value, Mapping):
        return {name: to_json(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(entry) for entry in value]
    if isinstance(value, np.generic | np.ndarray):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row_columns(row: Row) -> dict[str, object]:
    columns = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    del columns["cost"]
    for name, counted in (("buckets", "users"), ("kinds", "targets")):
        groups: dict[str, Group] = columns[name]
        columns[name] = {
            label: {counted: group.size, "metrics": group.metrics}
            for label, group in groups.items()
        }
    names = ("request_pairs", "request_flops", "state_bytes")
    return {**columns, **dict(zip(names, row.cost or (None,) * 3, strict=True))}


if __name__ == "__main__":
    from jaxrec.evaluation import printing

    sys.exit(exit_status("python -m jaxrec.evaluation.report", printing.main))
