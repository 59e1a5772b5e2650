"""Evaluation: every row ranks the same targets over the whole catalog.

Rows are named `compressed` (state, then the recent window), `masked` (one masked forward),
`recent-only` (the same model shown only the recent window), `full` (a full-history model) and
the rules of `baselines`. A user's metric is the mean over its targets; users count equally.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrec import baselines, cost, metrics, retrieval, states
from jaxrec.config import Config, ConfigError
from jaxrec.recommender import Model
from jaxrec.types import Batch, Params

Predict = Callable[[Params, Batch], jax.Array]
History = Callable[[int], np.ndarray]  # dense user index -> all items, oldest first
Say = Callable[[str], None]

MODEL_ROWS = ("compressed", "masked", "recent-only", "full")
LIST = 10  # length of the lists that coverage looks at


class Ranks(NamedTuple):
    """One entry per target: user, position in the user's history, item, rank.

    lists: [users, 10] recommendations at each user's first target (None: not made).
    """

    user: np.ndarray
    position: np.ndarray
    item: np.ndarray
    rank: np.ndarray
    lists: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Row:
    """What one recommender reached, and what a request costs it (None: no model)."""

    name: str
    metrics: dict[str, metrics.Interval]
    buckets: dict[str, dict[str, float]]
    coverage: float | None
    users: int
    targets: int
    request_flops: int | None
    state_bytes: int | None


def targets_of(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, slot, index in the user's history) of every weighted target of a batch."""
    weights = np.asarray(batch.weights) > 0
    rows, slots = np.nonzero(weights)
    order = np.cumsum(weights, axis=1)[rows, slots] - 1
    return rows, slots, np.asarray(batch.history)[rows] + order


def model_ranks(
    predict: Predict,
    params: Params,
    table: jax.Array,
    batches: Iterable[Batch],
    *,
    history: History | None = None,
    chunk: int = 16384,
    lists: bool = True,
) -> Ranks:
    """Ranks of all targets by a model's prediction.

    history: when given, a user's earlier events are no candidates (seen filter).
    """
    parts = []
    for batch in batches:
        rows, slots, index = targets_of(batch)
        if not len(rows):
            continue
        user = np.asarray(batch.user)[rows]
        item = np.asarray(batch.items)[rows, slots]
        size = 1 << (len(rows) - 1).bit_length()  # few shapes, few compilations
        flat = _pad(rows * batch.items.shape[1] + slots, size)
        x = predict(params, batch)
        x = x.reshape(-1, x.shape[-1])[flat]
        exclude = None if history is None else _pad(_seen(history, user, index), size)
        rank = retrieval.rank_of_targets(x, table, _pad(item, size), exclude, chunk=chunk)
        best = np.zeros((len(rows), 0), np.int32)
        if lists:
            first = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]])
            count = len(batch.user)
            # every row's first target; padding repeats one of them
            k = min(LIST, table.shape[0] - 1)
            picked = None if exclude is None else exclude[_pad(first, count)]
            _, ids = retrieval.top_k(x[_pad(first, count)], table, k, picked, chunk=chunk)
            best = np.zeros((len(rows), k), np.int32)
            best[first] = np.asarray(ids)[: len(first)]
        parts.append((user, index, item, np.asarray(rank)[: len(rows)], best))
    if not parts:
        raise ConfigError(
            "eval.split: no user has a target; lower data.holdout or give more events"
        )
    user, index, item, rank, best = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Ranks(user, index, item, rank, best[best.any(1)] if lists else None)


def rule_ranks(
    order: baselines.Order,
    look_back: int,
    popularity: baselines.Popularity,
    history: History,
    like: Ranks,
    filter_seen: bool,
) -> Ranks:
    """Ranks of the same targets by a rule without parameters."""
    rank = np.empty(len(like.user), np.int64)
    order_of_users = np.argsort(like.user, kind="stable")
    current, events = -1, np.zeros(0, np.int32)
    for i in order_of_users:
        if like.user[i] != current:
            current = like.user[i]
            events = history(int(current))
        past = events[: like.position[i]]
        rank[i] = baselines.rank(order, look_back, popularity, past, int(like.item[i]), filter_seen)
    return like._replace(rank=rank, lists=None)


def per_user(ranks: Ranks, metric: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(users, mean of the metric over each user's targets), users ascending."""
    users, inverse = np.unique(ranks.user, return_inverse=True)
    gain, _ = metrics.METRICS[metric](ranks.rank[:, None], np.ones((len(ranks.rank), 1)), k)
    return users, np.bincount(inverse, gain) / np.bincount(inverse)


def summarise(
    name: str,
    ranks: Ranks,
    config: Config,
    num_items: int,
    *,
    request_flops: int | None = None,
    state_bytes: int | None = None,
) -> Row:
    """Metrics with intervals, by history length, and coverage of the lists."""
    settings = config.eval
    values = {
        f"{metric}@{k}": per_user(ranks, metric, k)[1]
        for metric in metrics.METRICS
        for k in settings.ks
    }
    users, inverse = np.unique(ranks.user, return_inverse=True)
    first = np.full(len(users), np.iinfo(np.int64).max)
    np.minimum.at(first, inverse, ranks.position)
    buckets = {}
    edges = [0, *settings.buckets, np.inf]
    for low, high in itertools.pairwise(edges):
        inside = (first >= low) & (first < high)
        label = f"{low:g}+" if high == np.inf else f"{low:g}-{high - 1:g}"
        if inside.any():
            means = {key: float(value[inside].mean()) for key, value in values.items()}
            buckets[label] = {"users": int(inside.sum()), **means}
    coverage = None
    if ranks.lists is not None:
        coverage = len(np.setdiff1d(ranks.lists, [0])) / num_items
    return Row(
        name=name,
        metrics={
            key: metrics.bootstrap(value, settings.bootstrap, config.seed)
            for key, value in values.items()
        },
        buckets=buckets,
        coverage=coverage,
        users=len(users),
        targets=len(ranks.user),
        request_flops=request_flops,
        state_bytes=state_bytes,
    )


def available(config: Config, full: bool) -> tuple[str, ...]:
    """Row names that a run can print."""
    mode = config.layout.mode
    own = {"compressed": ("compressed", "masked", "recent-only"), "full": ("full",)}
    rows = own.get(mode, ("recent-only",))
    if full and "full" not in rows:
        rows = (*rows, "full")
    return (*rows, *baselines.rules(config.layout.recent))


def chosen(config: Config, full: bool) -> tuple[str, ...]:
    """The rows of `eval.mode`; raises ConfigError naming what is allowed."""
    allowed = available(config, full)
    if config.eval.mode == "all":
        return allowed
    names = tuple(part.strip() for part in config.eval.mode.split(",") if part.strip())
    unknown = [name for name in names if name not in allowed]
    if unknown or not names:
        raise ConfigError(
            f"eval.mode={config.eval.mode!r}: allowed are all, or names from {', '.join(allowed)}"
        )
    return names


def predictor(name: str, model: Model) -> Predict:
    """The jitted prediction behind a model row."""
    if name == "compressed":
        return jax.jit(functools.partial(states.predict_cached, model))
    if name == "recent-only" and model.layout.num_tokens:
        return jax.jit(functools.partial(states.predict_recent, model))
    return jax.jit(model.predict)


def row_cost(name: str, model: Model) -> tuple[int, int | None]:
    """(FLOPs of the encoder for one request, bytes of the state it needs)."""
    config, layout = model.network.config, model.layout
    if name == "compressed":
        return cost.forward_flops(config, layout.request()), cost.state_bytes(config, layout)
    if name == "recent-only" and layout.num_tokens:
        alone = dataclasses.replace(layout, segments=layout.segments[-1:], cached=())
        return cost.forward_flops(config, alone), 0
    return cost.forward_flops(config, layout), 0


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model and the batches that ask it."""

    model: Model
    params: Params
    batches: Callable[[], Iterable[Batch]]


def evaluate(
    config: Config,
    subject: Subject,
    *,
    counts: np.ndarray,
    history: History,
    full: Subject | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """All rows of `eval.mode` as a JSON value: protocol, rows, comparisons.

    counts: [V + 1] training events per item; full: a full-history model of the same data.
    """
    names = chosen(config, full is not None)
    popularity = baselines.Popularity(counts)
    rules = baselines.rules(config.layout.recent)
    seen = history if config.eval.filter_seen else None
    found: dict[str, Ranks] = {}
    rows: list[Row] = []
    like: Ranks | None = None

    def rank(name: str, who: Subject) -> Ranks:
        table = who.model.item_table(who.params)
        return model_ranks(
            predictor(name, who.model),
            who.params,
            table,
            who.batches(),
            history=seen,
            chunk=config.eval.chunk,
        )

    for name in names:
        say(f"evaluating {name}")
        if name in rules:
            if like is None:
                like = next(iter(found.values())) if found else _targets(subject.batches())
            ranks = rule_ranks(*rules[name], popularity, history, like, config.eval.filter_seen)
            rows.append(summarise(name, ranks, config, len(counts) - 1))
        else:
            who = full if name == "full" and full is not None else subject
            ranks = rank(name, who)
            flops, size = row_cost(name, who.model)
            rows.append(
                summarise(
                    name,
                    ranks,
                    config,
                    len(counts) - 1,
                    request_flops=flops,
                    state_bytes=size,
                )
            )
        found[name] = ranks
    return {
        "protocol": protocol(config, len(counts) - 1, rows[0]),
        "rows": [_plain(row) for row in rows],
        "comparisons": compare(found, config),
    }


def compare(found: Mapping[str, Ranks], config: Config) -> dict[str, Any]:
    """Paired ratios over the same users, and how far the two compressed paths are apart."""
    result: dict[str, Any] = {}
    pairs = [("compressed", "full"), ("compressed", "recent-only"), ("masked", "full")]
    for a, b in pairs:
        if a in found and b in found:
            ratios = {}
            for metric in ("recall", "ndcg"):
                users_a, left = per_user(found[a], metric, 10)
                users_b, right = per_user(found[b], metric, 10)
                if not np.array_equal(users_a, users_b):
                    raise ValueError(f"rows {a} and {b} rank targets of different users")
                ratio = metrics.paired_ratio(left, right, config.eval.bootstrap, config.seed)
                ratios[f"{metric}@10"] = ratio._asdict()
            result[f"{a} / {b}"] = ratios
    if "compressed" in found and "masked" in found:
        moved = found["compressed"].rank != found["masked"].rank
        result["cached ranks that differ from masked"] = {
            "targets": int(moved.sum()),
            "share": float(moved.mean()),
        }
    return result


def protocol(config: Config, num_items: int, row: Row) -> dict[str, Any]:
    """What a figure needs beside it to be compared with another."""
    data, layout = config.data, config.layout
    held = f"last {data.holdout} events" if data.split == "last" else "global temporal split"
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
        "sequence": f"{layout.history} events"
        + (
            f": {layout.max_segments} x ({layout.segment_size} + {layout.tokens} tokens) "
            f"+ recent up to {layout.recent}"
            if layout.mode == "compressed"
            else f" ({layout.mode})"
        ),
        "interval": f"95 % bootstrap over users, {config.eval.bootstrap} samples",
        "request time": "known" if config.model.request_time else "not used",
    }


def format_table(result: Mapping[str, Any], ks: Sequence[int] = (10,)) -> str:
    """The result as a table for people."""
    shown = [f"{metric}@{k}" for k in ks for metric in ("recall", "ndcg")]
    header = f"{'row':<20}" + "".join(f"{name:>26}" for name in shown)
    lines = [header + f"{'coverage':>10}{'request MFLOP':>15}{'state KB':>10}"]
    for row in result["rows"]:
        cells = f"{row['name']:<20}"
        for name in shown:
            value = row["metrics"][name]
            cells += f"{value['mean']:>10.4f} [{value['low']:.4f}, {value['high']:.4f}]".rjust(26)
        coverage = "" if row["coverage"] is None else f"{row['coverage']:.1%}"
        flops = "" if row["request_flops"] is None else f"{row['request_flops'] / 1e6:.2f}"
        size = "" if row["state_bytes"] is None else f"{row['state_bytes'] / 1024:.1f}"
        lines.append(cells + f"{coverage:>10}{flops:>15}{size:>10}")
    for name, value in result["comparisons"].items():
        if "share" in value:
            lines.append(f"{name}: {value['targets']} of the targets ({value['share']:.2%})")
        else:
            parts = ", ".join(
                f"{metric} {v['mean']:.3f} [{v['low']:.3f}, {v['high']:.3f}]"
                for metric, v in value.items()
            )
            lines.append(f"{name}: {parts}")
    lines += [f"{key}: {value}" for key, value in result["protocol"].items()]
    return "\n".join(lines)


def _targets(batches: Iterable[Batch]) -> Ranks:
    """The targets alone, for rules evaluated without a model."""
    parts = []
    for batch in batches:
        rows, slots, index = targets_of(batch)
        item = np.asarray(batch.items)[rows, slots]
        parts.append((np.asarray(batch.user)[rows], index, item, np.zeros(len(rows), np.int64)))
    user, index, item, rank = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Ranks(user, index, item, rank, None)


def _plain(row: Row) -> dict[str, Any]:
    value = dataclasses.asdict(row)
    value["metrics"] = {name: interval._asdict() for name, interval in row.metrics.items()}
    return value


def _seen(history: History, user: np.ndarray, index: np.ndarray) -> np.ndarray:
    """[P, X] distinct items of each user before each target, 0-padded; X a power of two."""
    seen = [np.unique(history(int(u))[:t]) for u, t in zip(user, index, strict=True)]
    width = 1 << (max(len(items) for items in seen) - 1).bit_length()
    padded = np.zeros((len(seen), width), np.int32)
    for row, items in enumerate(seen):
        padded[row, : len(items)] = items
    return padded


def _pad(array: np.ndarray, size: int) -> np.ndarray:
    """`array` with its first axis filled up to `size` by repeating the first entry."""
    return np.concatenate([array, np.repeat(array[:1], size - len(array), axis=0)])
