"""From ranks to figures: metrics with intervals, comparisons, costs, the printed table.

A user's metric is the mean over its targets; users count equally. Intervals resample users.
"""

import argparse
import dataclasses
import itertools
import json
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrec.config import Config
from jaxrec.data.datasets.synthetic import durable_items
from jaxrec.evaluation import metrics
from jaxrec.evaluation.metrics import Interval
from jaxrec.evaluation.rendering import COMPARED, HEADLINE, format_table, markdown, page
from jaxrec.layout import SegmentLayout
from jaxrec.model import cost

LEADERS = ("compressed", "full", "recent-only")  # the first row found is compared with the others


class Ranks(NamedTuple):
    """One entry per target: user, position in the user's history, item, rank.

    lists: [U, K] recommendations at each user's first target, 0 where there is none left
    (None: not made).
    """

    user: np.ndarray
    position: np.ndarray
    item: np.ndarray
    rank: np.ndarray
    lists: np.ndarray | None


class Cost(NamedTuple):
    """One request of a model: query-key pairs of one layer, encoder FLOPs, bytes of state read."""

    pairs: int
    flops: int
    state_bytes: int


@dataclasses.dataclass(frozen=True)
class Row:
    """What one recommender reached, and what a request costs it (None: no model).

    metrics: name@k -> mean over users and interval; buckets: label of the history's length ->
    (users, the same); kinds: what the target is to the user -> (targets, the same);
    coverage: share of the catalog in anyone's list.
    """

    name: str
    users: int
    targets: int
    metrics: dict[str, Interval]
    buckets: dict[str, tuple[int, dict[str, Interval]]]
    kinds: dict[str, tuple[int, dict[str, Interval]]]
    coverage: float | None
    cost: Cost | None


def per_user(ranks: Ranks, metric: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(users, mean of the metric over each user's targets), users ascending."""
    gain = metrics.gain(metric, ranks.rank, k)
    return metrics.over_users(gain, np.ones(len(gain)), ranks.user)


def summarise(
    name: str,
    ranks: Ranks,
    config: Config,
    num_items: int,
    cost: Cost | None,
    kinds: Mapping[str, np.ndarray] | None = None,
) -> Row:
    """Metrics of `eval.ks` with intervals, by history length before the first target.

    kinds: label -> bool, one per target: the metrics over these targets alone, too.
    """
    settings = config.eval
    keys = [(metric, k) for metric in metrics.NAMES for k in settings.ks]
    gains = np.stack([metrics.gain(metric, ranks.rank, k) for metric, k in keys], axis=1)
    users, values = metrics.over_users(gains, np.ones(len(gains)), ranks.user)
    first = np.full(len(users), np.iinfo(np.int64).max)
    np.minimum.at(first, np.searchsorted(users, ranks.user), ranks.position)

    def intervals(values: np.ndarray) -> dict[str, Interval]:
        found = metrics.bootstrap(values, settings.bootstrap, config.seed)
        columns = zip(keys, *found, strict=True)
        return {f"{metric}@{k}": Interval(*numbers) for (metric, k), *numbers in columns}

    buckets = {}
    for low, high in itertools.pairwise([0, *settings.buckets, math.inf]):
        inside = (first >= low) & (first < high)
        label = f"{low:g}+" if high == math.inf else f"{low:g}-{high - 1:g}"
        if inside.any():
            buckets[label] = int(inside.sum()), intervals(values[inside])
    by_kind = {}
    for label, kind in (kinds or {}).items():
        if kind.any():
            _, some = metrics.over_users(gains[kind], np.ones(kind.sum()), ranks.user[kind])
            by_kind[label] = int(kind.sum()), intervals(some)
    coverage = None
    if ranks.lists is not None:
        coverage = len(np.setdiff1d(ranks.lists, [0])) / num_items
    return Row(name, len(users), len(gains), intervals(values), buckets, by_kind, coverage, cost)


def ratio(a: Ranks, b: Ranks, metric: str, config: Config) -> Interval:
    """Metric of row a over that of row b, users paired. Raises ValueError for other targets."""
    users_a, left = per_user(a, metric, HEADLINE)
    users_b, right = per_user(b, metric, HEADLINE)
    if len(a.rank) != len(b.rank) or not np.array_equal(users_a, users_b):
        raise ValueError("rows that rank targets of different users cannot be compared")
    return metrics.paired_ratio(left, right, config.eval.bootstrap, config.seed)


def compare(found: Mapping[str, Ranks], config: Config) -> dict[str, dict[str, Interval]]:
    """ "a / b" -> metric -> ratio: the leading row over every other one, masked over full."""
    leader = next((name for name in LEADERS if name in found), None)
    pairs = [(leader, name) for name in found if leader not in (None, name)]
    if {"masked", "full"} <= set(found):
        pairs.append(("masked", "full"))
    return {
        f"{a} / {b}": {
            f"{metric}@{HEADLINE}": ratio(found[a], found[b], metric, config) for metric in COMPARED
        }
        for a, b in pairs
        if a is not None
    }


def full_history(config: Config) -> Cost:
    """A request to a full-history model over as many events as the layout covers."""
    layout = SegmentLayout.full(config.layout.history)
    return Cost(layout.pairs("visible"), cost.forward_flops(config.model, layout), 0)


def protocol(config: Config, num_items: int, row: Row) -> dict[str, Any]:
    """What a figure needs beside it to be compared with another."""
    data, layout = config.data, config.layout
    held = f"last {data.holdout} events" if data.split == "last" else "global temporal split"
    sequence = f"{layout.history} events"
    if layout.mode == "compressed":
        sequence += (
            f": {layout.max_segments} x ({layout.segment_size} + {layout.tokens} tokens) "
            f"+ recent up to {layout.recent}"
        )
    elif layout.mode == "recent":
        sequence = f"{layout.recent} events"
    model, train = config.model, config.train
    planted = {}
    if data.dataset == "synthetic":
        durable = len(durable_items(data.synthetic))
        planted["planted returns"] = (
            f"of {durable} items that return, a guess has Recall@{HEADLINE} "
            f"{min(1.0, HEADLINE / durable):.3f}"
        )
    return {
        "dataset": data.dataset + (f" {data.variant}" if data.variant else ""),
        "split": f"{config.eval.split}: {held}, each predicted from all events before it",
        "candidates": num_items,
        "ranking": "full catalog",
        "seen items": "filtered" if config.eval.filter_seen else "not filtered",
        "ties": "count against the model",
        "users": row.users,
        "targets": row.targets,
        "weighting": "mean over a user's targets, users equally",
        "sequence": f"{sequence} ({layout.mode})",
        "recent-only": f"newest {layout.recent} events before the last target of a row",
        "interval": f"95 % bootstrap over users, {config.eval.bootstrap} samples",
        "coverage": f"share of the catalog in the users' first {HEADLINE}, one list per user",
        "request time": "known" if config.model.request_time else "not used",
        "model": f"{model.backbone}, {model.layers} layers of width {model.width}; {train.steps} "
        f"training steps of {train.batch_size} users",
        **planted,
    }


def plain(value: Any) -> Any:
    """`value` as JSON: rows and intervals as objects, numbers that are none as null."""
    if isinstance(value, Row):
        columns = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        cost = columns.pop("cost")
        columns["buckets"] = {
            label: {"users": users, "metrics": found}
            for label, (users, found) in value.buckets.items()
        }
        columns["kinds"] = {
            label: {"targets": targets, "metrics": found}
            for label, (targets, found) in value.kinds.items()
        }
        names = ("request_pairs", "request_flops", "state_bytes")
        return plain({**columns, **dict(zip(names, cost or (None,) * 3, strict=True))})
    if isinstance(value, Interval | Cost):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.generic | np.ndarray):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxrec.evaluation.report",
        description="Prints the JSON results of an evaluation.",
    )
    parser.add_argument("files", nargs="*", help="what eval.py or train.py wrote")
    parser.add_argument("--markdown", action="store_true", help="for a README")
    parser.add_argument("--page", metavar="FOLDER", help="all results of a folder as one page")
    args = parser.parse_args(argv)
    if bool(args.files) == bool(args.page):
        parser.error("files, or --page=FOLDER, are needed")
    if args.page:
        folder = pathlib.Path(args.page)
        if not folder.is_dir():
            parser.error(f"{folder}: no such folder")
        sys.stdout.write(page(folder))
    for file in args.files:
        try:
            result = json.loads(pathlib.Path(file).read_text())
            text = markdown(result) if args.markdown else format_table(result)
        except (OSError, ValueError, KeyError, TypeError) as error:
            parser.error(f"{file}: not the result of an evaluation ({error!r})")
        print(text)


if __name__ == "__main__":
    main()
