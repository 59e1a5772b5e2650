"""What a stored state costs and how it ages: staleness, forms."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxrec.benchmark import state_forms as form_bench
from jaxrec.evaluation.report import Ranks
from jaxrec.experiments.quality import QUALITY, K, columns
from jaxrec.experiments.runs import Lab, with_values
from jaxrec.experiments.table import Cell, Experiment, Line, Values
from jaxrec.model import states
from jaxrec.model.recommender import Model
from jaxrec.ranking import retrieval
from jaxrec.runtime.progress import track
from jaxrec.serving import Recommender, rows
from jaxrec.serving.rows import Events
from jaxrec.session import Session
from jaxrec.state_store.forms import FORMS
from jaxrec.types import Array, Params, UserState

BATCH = 64  # users whose states are made at once
EXTENDED, WINDOW, STALE = "extended", "old segments, new window", "not extended"
STATES = {"kv": "keys and values", "embedding": "token outputs"}


def newest(session: Session, users: np.ndarray) -> list[Events]:
    """Whole histories of users, oldest event first."""
    records = session.prepared.source.__getitems__(users.tolist())
    return [Events(record.items, record.times) for record in records]


def targets(users: np.ndarray, histories: Sequence[Events], last: int) -> dict[str, np.ndarray]:
    """The newest `last` events of every user, user after user: columns of `Ranks`."""
    position = [len(items) - last + np.arange(last) for items, _ in histories]
    item = [items[-last:] for items, _ in histories]
    return {
        "user": np.repeat(users, last),
        "position": np.concatenate(position),
        "item": np.concatenate(item),
    }


# -- staleness


def aged_ranks(
    model: Model, params: Params, histories: Sequence[Events], ages: Sequence[int], last: int
) -> dict[str, np.ndarray]:
    """Ranks of every user's newest `last` events when the state is `ages` events old.

    Name of what was done about the age -> int [U, last, ages], 0 the best:
    extended: the newer events were added by `states.extend`. old segments, new window: tokens
    are those of the old state, the window holds the newest events that fit; what lies between
    is lost. not extended: the old state answers. A state holds one event at least.
    """
    compress = jax.jit(functools.partial(states.compress, model))
    extend = jax.jit(functools.partial(states.extend, model))
    ask = jax.jit(functools.partial(_rank, model))
    table = model.item_table(params)
    reach = max(ages) + last
    found = {
        name: np.zeros((len(histories), last, len(ages)), np.int32)
        for name in (EXTENDED, WINDOW, STALE)
    }
    order = np.argsort([len(items) for items, _ in histories], kind="stable")
    parts = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    for part in track(parts, len(parts), "batches of users"):
        lines = _Lines([histories[i] for i in part], BATCH)
        first = np.maximum(lines.counts - reach, 1)  # what the oldest state knows
        width = 1 << int(first.max() - 1).bit_length()
        base = compress(params, *lines.cut(np.zeros_like(first), first, width))
        for number in range(last):
            now = lines.counts - last + number  # events before the target
            target, moment = lines.event(now)
            for column, age in enumerate(ages):
                had = np.clip(now - age, first, now)
                old = extend(params, base, *lines.cut(first, had, reach))
                served = {
                    EXTENDED: extend(params, old, *lines.cut(had, now, reach)),
                    WINDOW: with_window(old, lines, now, model.layout.segments[0][0]),
                    STALE: old,
                }
                for name, state in served.items():
                    rank = np.asarray(ask(params, table, state, moment, target))
                    found[name][part, number, column] = rank[: len(part)]
    return found


class _Lines:
    """Histories of a batch of users as padded arrays, filled up with copies of the first."""

    def __init__(self, histories: Sequence[Events], size: int):
        filled = [*histories, *[histories[0]] * (size - len(histories))]
        self.counts = np.asarray([len(items) for items, _ in filled])
        self.items, self.times = np.zeros((2, size, self.counts.max() + 1), np.int32)
        for row, (items, times) in enumerate(filled):
            self.items[row, : len(items)], self.times[row, : len(times)] = items, times

    def event(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Item and time of event number `index` [B] of each user."""
        rows = np.arange(len(index))
        return self.items[rows, index], self.times[rows, index]

    def cut(self, start: np.ndarray, stop: np.ndarray, width: int) -> tuple[np.ndarray, ...]:
        """Events start..stop [B] of each user: items and times [B, width], how many [B]."""
        place = start[:, None] + np.arange(width)[None]
        inside = place < stop[:, None]
        place = np.minimum(place, self.items.shape[1] - 1)
        items, times = (
            np.where(inside, np.take_along_axis(line, place, 1), 0)
            for line in (self.items, self.times)
        )
        return items, times, (stop - start).astype(np.int32)


def with_window(state: UserState, lines: _Lines, now: np.ndarray, size: int) -> UserState:
    """The state's segments before the newest events that the window holds, of `now` [B] events."""
    room = state.items.shape[1]
    start = np.maximum(np.asarray(state.segments) * size, now - room)
    items, times, pending = lines.cut(start, now, room)
    return state._replace(items=items, times=times, pending=pending)


def _rank(
    model: Model, params: Params, table: Array, state: UserState, now: Array, target: Array
) -> jax.Array:
    """[B] rank of each user's target."""
    x, own = states.query(model, params, state, now), states.own_items(model, state)
    return retrieval.rank_of_targets(x, table, target, None, own)


def staleness(lab: Lab) -> Experiment:
    settings = lab.config.experiments
    ages, last = settings.ages, settings.last

    def found(seed: int) -> dict[str, np.ndarray]:
        config = with_values(lab.base, seed=seed)

        def make() -> dict[str, np.ndarray]:
            session = lab.session(config)
            subject = session.trained_model()
            users = lab.users(session.prepared)
            histories = newest(session, users)
            ranks = aged_ranks(subject.model, subject.params, histories, ages, last)
            flat = {name: rank.reshape(-1, len(ages)) for name, rank in ranks.items()}
            return flat | targets(users, histories, last)

        return lab.kept(config, f"staleness {ages} {last}", make)

    def ranks(name: str, column: int) -> list[Ranks]:
        return [_ranks(one, one[name][:, column]) for one in map(found, lab.seeds)]

    def cell(series: str, column: int) -> Cell:
        name = f"{series}, {ages[column]}"

        def make() -> Values:
            own, fresh = ranks(series, column), ranks(EXTENDED, 0)
            facts = {"name": name, "series": series, "age": ages[column]}
            differ = sum(int((a.rank != b.rank).sum()) for a, b in zip(own, fresh, strict=True))
            return {
                **facts,
                **columns(own, settings.bootstrap, fresh, f"age_{ages[0]}"),
                "ranks_that_differ": differ / sum(len(one.rank) for one in own),
            }

        return Cell(name, make)

    return Experiment(
        "staleness",
        "Quality of states that are some events old",
        "How often does a state have to be extended, and what is lost while it is not?",
        f"The newest {last} events of every user are asked for with states made so many events "
        "before. `extended`: the events since then were added by `extend` before the request. "
        f"`{WINDOW}`: the tokens are old, the recent window holds the newest events that fit in "
        f"it, and what lies between is lost. `{STALE}`: nothing since then is known. States are "
        "compressed from whole histories.",
        "`extended` is flat: a state that is extended does not age. The distance of the other "
        "lines from it is what waiting costs. `ranks that differ` is the share of targets whose "
        f"rank is not that of an extended state of age {ages[0]}.",
        [cell(series, at) for series in (EXTENDED, WINDOW, STALE) for at in range(len(ages))],
        [
            Line(
                "Quality of old states",
                "age",
                QUALITY,
                "events since the state was made",
                f"Recall@{K}",
                log=True,
            )
        ],
    )


def _ranks(found: dict[str, np.ndarray], rank: np.ndarray) -> Ranks:
    return Ranks(found["user"], found["position"], found["item"], rank, None)


# -- forms


def forms(lab: Lab) -> Experiment:
    settings = lab.config.experiments
    last = settings.last
    runs = {state: with_values(lab.base, model__state=state) for state in STATES}

    @functools.cache
    def loaded(state: str, seed: int) -> Recommender:
        config = with_values(runs[state], seed=seed)
        lab.session(config)
        return Recommender.load(lab.place(config), devices=jax.local_devices()[:1])

    def found(state: str, seed: int) -> dict[str, np.ndarray]:
        config = with_values(runs[state], seed=seed)

        def make() -> dict[str, np.ndarray]:
            session = lab.session(config)
            users = lab.users(session.prepared)
            histories = newest(session, users)
            asked = [
                Events(items[: len(items) - last + 1 + n], times[: len(items) - last + 1 + n])
                for items, times in histories
                for n in range(last)
            ]
            ranks: dict[str, Any] = form_bench.ranks(loaded(state, seed), asked)
            return ranks | targets(users, histories, last)

        return lab.kept(config, f"forms {last}", make)

    def ranks(state: str, form: str) -> list[Ranks]:
        return [_ranks(one, one[form]) for one in (found(state, seed) for seed in lab.seeds)]

    def cell(state: str, form: str) -> Cell:
        name = f"{STATES[state]}, {form}"

        def make() -> Values:
            own, plain = ranks(state, form), ranks("kv", FORMS[0])
            same = ranks(state, FORMS[0])
            spec = rows.row_spec(loaded(state, lab.seeds[0]).model, form, 0)
            vectors = [field for field in spec.fields if field.name in rows.TOKEN_COLUMNS]
            differ = sum(int((a.rank != b.rank).sum()) for a, b in zip(own, same, strict=True))
            return {
                "name": name,
                "series": STATES[state],
                "form": form,
                "row_bytes": spec.row_bytes,
                "vector_bytes": sum(field.nbytes for field in vectors),
                **columns(own, settings.bootstrap, plain, "float32"),
                "ranks_that_differ": differ / sum(len(one.rank) for one in own),
            }

        return Cell(name, make)

    return Experiment(
        "forms",
        "Forms of stored states",
        "How small may a stored state be before recommendations get worse?",
        f"States are compressed, written and read back in each form, and asked for the newest "
        f"{last} events of every user. `token outputs` is a model of its own, trained with "
        "model.state=embedding: it stores one vector per token and makes every layer's keys and "
        "values from it.",
        "`of float32` compares with keys and values in float32; `ranks that differ` is the share "
        "of targets whose rank is not that of the same model's float32 states. A row also holds "
        "the recent window and the items that repeat-aware scores need, in every form alike.",
        [cell(state, form) for state in STATES for form in FORMS],
        [
            Line(
                "Quality against bytes per user",
                "row_bytes",
                QUALITY,
                "bytes per user",
                f"Recall@{K}",
                log=True,
            )
        ],
    )
