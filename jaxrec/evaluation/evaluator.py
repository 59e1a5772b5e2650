"""Evaluation: every row ranks the same targets over the whole catalog.

Rows are named `compressed` (state, then the recent window), `masked` (one masked forward),
`recent-only` (the same model shown only the recent window), `full` (a full-history model) and
the rules of `baselines`. Figures are made in `report`.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrec.config import Config, MeshConfig
from jaxrec.errors import ConfigError
from jaxrec.evaluation import baselines, report
from jaxrec.evaluation.report import Cost, Ranks, Row
from jaxrec.evaluation.report import format_table as format_table
from jaxrec.evaluation.report import per_user as per_user
from jaxrec.model import cost, states
from jaxrec.model.recommender import Model
from jaxrec.ranking import retrieval, sharded
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.types import Batch, Params

Predict = Callable[[Params, Batch], jax.Array]
# (batch, rows [P], slots [P]) -> own items of these queries
OwnItems = Callable[[Batch, np.ndarray, np.ndarray], retrieval.Own | None]
History = Callable[[int], np.ndarray]  # dense user index -> all items, oldest first
Say = Callable[[str], None]

LIST = report.HEADLINE  # length of the lists that coverage looks at
PAUSE = 5.0  # seconds between two lines of progress
CHECKED = 4, 32  # batches, and targets in each, whose scores are compared between the two paths


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model and the batches that ask it.

    recent_batches: the same targets without complete segments and with the recent window as
    full as it can be, for the row `recent-only` of a compressed model. mesh: where params live,
    when not on a single device; batches are split over it.
    """

    model: Model
    params: Params
    batches: Callable[[], Iterable[Batch]]
    recent_batches: Callable[[], Iterable[Batch]] | None = None
    mesh: Mesh | None = None


def targets_of(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, slot, index in the user's history) of every weighted target of a batch."""
    weights = np.asarray(batch.weights) > 0
    rows, slots = np.nonzero(weights)
    order = np.cumsum(weights, axis=1)[rows, slots] - 1
    return rows, slots, np.asarray(batch.history)[rows] + order


def model_ranks(
    predict: Predict,
    params: Params,
    table: jax.Array | sharded.Made,
    batches: Iterable[Batch],
    *,
    own: OwnItems = lambda batch, rows, slots: None,
    history: History | None = None,
    chunk: int = 16384,
    lists: bool = True,
    mesh: Mesh | None = None,
    progress: Callable[[int], None] = lambda targets: None,
) -> Ranks:
    """Ranks of all targets by a model's prediction.

    predict: (params, batch) -> [B, E + 1, D + K], entry j asks for the event in slot j; table:
    `Model.candidates`; own: what the K columns weigh (`Model.own_items_before`). history: when
    given, a user's earlier events are no candidates (seen filter). mesh: where the table
    lives; split over `model` it is ranked in place (`sharded`). progress is told how
    many targets are done. Raises ConfigError without any target.
    """
    rank_of_targets, top_k = _ranking(mesh, table)
    parts, listed, done = [], set[int](), 0
    k = min(LIST, table.shape[0] - 1)
    for batch in batches:
        rows, slots, index = targets_of(batch)
        if not len(rows):
            continue
        user = np.asarray(batch.user)[rows]
        item = np.asarray(batch.items)[rows, slots]
        size = 1 << (len(rows) - 1).bit_length()  # few shapes, few compilations
        asked = _pad(rows, size), _pad(slots, size)
        x = predict(params, batch)[asked]
        items = own(batch, *asked)
        exclude = None if history is None else _pad(_seen(history, user, index), size)
        rank = rank_of_targets(x, table, _pad(item, size), exclude, items, chunk=chunk)
        best = np.zeros((0, k), np.int32)
        if lists:
            opens = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
            opens = np.asarray([i for i in opens if int(user[i]) not in listed], np.int64)
            listed.update(user[opens].tolist())
            if len(opens):
                picked = _pad(opens, len(batch.user))
                unseen = None if exclude is None else exclude[picked]
                theirs = jax.tree.map(lambda a: a[picked], items)  # noqa: B023
                _, ids = top_k(x[picked], table, k, unseen, theirs, chunk=chunk)
                best = np.asarray(ids)[: len(opens)]
        parts.append((user, index, item, np.asarray(rank)[: len(rows)], best))
        done += len(rows)
        progress(done)
    user, index, item, rank, best = _joined(parts)
    return Ranks(user, index, item, rank, best if lists else None)


def _ranking(mesh: Mesh | None, table: jax.Array | sharded.Made) -> tuple[Any, Any]:
    """(rank_of_targets, top_k) for a table on one device, on all, split by rows, or `Made`."""
    made = isinstance(table, sharded.Made)
    if made and mesh is None:
        mesh = mesh_lib.make_mesh(MeshConfig(data=1))
    if mesh is None or (mesh.shape[sharded.AXIS] == 1 and not made):
        return retrieval.rank_of_targets, retrieval.top_k
    where: Any = {"mesh": mesh, "num_items": table.shape[0] - 1}
    return (
        jax.jit(functools.partial(sharded.rank_of_targets, **where), static_argnames="chunk"),
        jax.jit(functools.partial(sharded.top_k, **where), static_argnames=("k", "chunk")),
    )


def rule_ranks(
    rule: baselines.Rule,
    popularity: baselines.Popularity,
    history: History,
    like: Ranks,
    filter_seen: bool,
    progress: Callable[[int], None] = lambda targets: None,
) -> Ranks:
    """Ranks of the same targets by a rule without parameters."""
    rank = np.empty(len(like.user), np.int64)
    k = min(LIST, len(popularity.counts) - 1)
    by_user = np.lexsort((like.position, like.user))
    starts = np.flatnonzero(np.diff(like.user[by_user], prepend=-1))
    lists = np.zeros((len(starts), k), np.int32)
    for row, targets in enumerate(np.split(by_user, starts[1:])):
        events = history(int(like.user[targets[0]]))
        for i in targets:
            past, item = events[: like.position[i]], int(like.item[i])
            rank[i] = baselines.rank(rule, popularity, past, item, filter_seen)
        past = events[: like.position[targets[0]]]
        best = baselines.top(rule, popularity, past, k, filter_seen)
        lists[row, : len(best)] = best
        progress(int(starts[row]) + len(targets))
    return like._replace(rank=rank, lists=lists)


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
    names = tuple(dict.fromkeys(part.strip() for part in config.eval.mode.split(",")))
    unknown = [name for name in names if name not in allowed]
    if unknown:
        hint = ""
        if "full" in unknown and not full:
            hint = "; full needs eval.full_workdir, the folder of a run with layout.mode=full"
        raise ConfigError(
            f"eval.mode={config.eval.mode!r}: {unknown[0]!r} is no row of this run; allowed are "
            f"all, or names from {', '.join(allowed)}{hint}"
        )
    return names


def predictor(name: str, model: Model, mesh: Mesh | None = None) -> Predict:
    """The jitted prediction behind a model row.

    mesh: users are split over its devices, and the queries known to all of them.
    """
    cached = functools.partial(states.predict_cached, model)
    predict: Predict = cached if name == "compressed" else model.predict
    if mesh is None:
        return jax.jit(predict)
    rows, everywhere = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)

    def split(params: Params, batch: Batch) -> jax.Array:
        return predict(params, jax.lax.with_sharding_constraint(batch, rows))

    return jax.jit(split, in_shardings=(None, everywhere), out_shardings=everywhere)


def own_items(model: Model, mesh: Mesh | None = None) -> OwnItems:
    """The jitted `Model.own_items_before`, known to all devices of the mesh."""
    if mesh is None:
        return jax.jit(model.own_items_before)
    return jax.jit(model.own_items_before, out_shardings=mesh_lib.replicated(mesh))


def row_cost(name: str, model: Model) -> Cost:
    """One request behind a model row, with the layout filled to its capacity."""
    config, layout = model.network.config, model.layout
    state = 0
    if name == "compressed":
        layout, state = layout.request(), cost.state_bytes(config, layout)
    elif name == "recent-only" and layout.num_tokens:
        layout = dataclasses.replace(layout, segments=layout.segments[-1:], cached=())
    return Cost(layout.pairs("visible"), cost.forward_flops(config, layout), state)


def path_difference(subject: Subject) -> float:
    """Largest |score by state - score by masked forward| / largest |score|, over some targets."""
    cached = predictor("compressed", subject.model, subject.mesh)
    masked = predictor("masked", subject.model, subject.mesh)
    table = subject.model.item_table(subject.params)
    batches, count = CHECKED
    apart, largest = 0.0, 0.0
    for batch, _ in zip(subject.batches(), range(batches), strict=False):
        rows, slots, _ = targets_of(batch)
        some = slice(None, None, max(1, len(rows) // count))
        asked = rows[some], slots[some]
        own = subject.model.own_items_before(batch, *asked)
        a, b = (
            retrieval.scores(f(subject.params, batch)[asked], table, own)[:, 1:]
            for f in (cached, masked)
        )
        # NumPy's maximum keeps what is not a number
        apart = float(np.maximum(apart, jnp.max(jnp.abs(a - b), initial=0.0)))
        largest = float(np.maximum(largest, jnp.max(jnp.abs(b), initial=0.0)))
    return apart / largest if largest else apart


def evaluate(
    config: Config,
    subject: Subject,
    *,
    counts: np.ndarray,
    history: History,
    full: Subject | None = None,
    returning: Callable[[int], np.ndarray] | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """All rows of `eval.mode` as a JSON value.

    counts: [V + 1] training events per item; full: a full-history model of the same data;
    returning: user -> bool per event, planted returns of synthetic data; say: gets lines of
    progress. Keys: `protocol`, `rows`, `comparisons` (paired ratios), `paths`
    (how far the two ways to compute a compressed prediction are apart) and `full_history`
    (what a request would cost that model). Raises ConfigError for unknown row names and for a
    split without targets.
    """
    names = chosen(config, full is not None)
    popularity = baselines.Popularity(counts)
    rules = baselines.rules(config.layout.recent)
    items = len(counts) - 1
    found: dict[str, Ranks] = {}
    rows: list[Row] = []
    kinds: dict[str, np.ndarray] = {}

    def rank_by_model(name: str) -> tuple[Ranks, Cost]:
        who = full if name == "full" and full is not None else subject
        batches = who.batches
        if name == "recent-only" and who.recent_batches is not None:
            batches = who.recent_batches
        ranks = model_ranks(
            predictor(name, who.model, who.mesh),
            who.params,
            who.model.candidates(who.params),
            batches(),
            own=own_items(who.model, who.mesh),
            history=history if config.eval.filter_seen else None,
            chunk=config.eval.chunk,
            mesh=who.mesh,
            progress=_progress(name, say),
        )
        return ranks, row_cost(name, who.model)

    def rank_by_rule(name: str) -> Ranks:
        like = next(iter(found.values()), None) or _targets(subject.batches())
        seen = config.eval.filter_seen
        return rule_ranks(rules[name], popularity, history, like, seen, _progress(name, say))

    for name in names:
        say(f"evaluating {name}")
        paid = None
        if name in rules:
            found[name] = rank_by_rule(name)
        else:
            found[name], paid = rank_by_model(name)
        kinds = kinds or kinds_of(found[name], history, config.layout.recent, returning)
        rows.append(report.summarise(name, found[name], config, items, paid, kinds))
    paths = None
    if "compressed" in found:
        say("comparing the scores of the two paths")
        paths = _paths(path_difference(subject), found)
    return report.plain(
        {
            "protocol": report.protocol(config, items, rows[0]),
            "rows": rows,
            "comparisons": report.compare(found, config),
            "paths": paths,
            "full_history": report.full_history(config),
        }
    )


def kinds_of(
    targets: Ranks,
    history: History,
    recent: int,
    returning: Callable[[int], np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """What each target is to its user: label -> bool [P].

    Had within the last `recent` events, earlier only, or never; where the data says so, a
    planted return.
    """
    age = np.empty(len(targets.user), np.int64)
    planted = np.zeros(len(targets.user), bool)
    for row, (user, position, item) in enumerate(
        zip(targets.user.tolist(), targets.position.tolist(), targets.item.tolist(), strict=True)
    ):
        had = np.flatnonzero(history(user)[:position] == item)
        age[row] = position - had[-1] if len(had) else 0
        if returning is not None:
            planted[row] = returning(user)[position]
    kinds = {
        f"last {recent}": (age > 0) & (age <= recent),
        "earlier": age > recent,
        "never": age == 0,
    }
    return kinds | ({} if returning is None else {"planted return": planted})


def _paths(difference: float, found: dict[str, Ranks]) -> dict[str, Any]:
    moved = None
    if "masked" in found:
        moved = int((found["compressed"].rank != found["masked"].rank).sum())
    targets = len(found["compressed"].rank)
    return {"score_difference": difference, "ranks_that_differ": moved, "targets": targets}


def _targets(batches: Iterable[Batch]) -> Ranks:
    """The targets alone, for rules evaluated without a model."""
    parts = []
    for batch in batches:
        rows, slots, index = targets_of(batch)
        item = np.asarray(batch.items)[rows, slots]
        parts.append((np.asarray(batch.user)[rows], index, item, np.zeros(len(rows), np.int64)))
    user, index, item, rank = _joined(parts)
    return Ranks(user, index, item, rank, None)


def _joined(parts: Sequence[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    if not any(len(part[0]) for part in parts):
        raise ConfigError(
            "eval.split: no user has a target; lower data.holdout or give more events"
        )
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _progress(name: str, say: Say) -> Callable[[int], None]:
    """Says how many targets of a row are done, every few seconds."""
    last = time.monotonic()

    def tell(targets: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PAUSE:
            last = time.monotonic()
            say(f"evaluating {name}: {targets:,} targets done")

    return tell


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
