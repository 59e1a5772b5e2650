"""How stored states age: the experiment `staleness`."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from jaxrec import ranking
from jaxrec.evaluation.ranks import Ranks
from jaxrec.experiments import measures, stored
from jaxrec.experiments.quality import QUALITY, K, columns
from jaxrec.experiments.result_table import Cell, Experiment, Line, Values
from jaxrec.experiments.runs import Lab, with_values
from jaxrec.model import states
from jaxrec.model.recommender import Model
from jaxrec.ranking import ItemIndex
from jaxrec.runtime.progress import track
from jaxrec.serving.state_rows import Events
from jaxrec.types import Array, Params, UserState

BATCH = 64  # users whose states are made at once
EXTENDED, WINDOW, STALE = "extended", "old segments, new window", "not extended"


def aged_ranks(
    model: Model, params: Params, histories: Sequence[Events], ages: Sequence[int], last: int
) -> dict[str, np.ndarray]:
    """Ranks of every user's newest `last` events from states that are `ages` events old.

    Returns int [U, last, ages] (0 is the best rank) per treatment of old states:
        extended: `states.extend` added the newer events.
        old segments, new window: the tokens are those of the old state, the window holds the
            newest events that fit; the events between are lost.
        not extended: the old state answers.
    A state holds at least one event.
    """
    compress = jax.jit(functools.partial(states.compress, model))
    extend = jax.jit(functools.partial(states.extend, model))
    rank_targets = jax.jit(functools.partial(_rank, model))
    index = model.item_index(params)
    reach = max(ages) + last
    ranks = {
        name: np.zeros((len(histories), last, len(ages)), np.int32)
        for name in (EXTENDED, WINDOW, STALE)
    }
    order = np.argsort([len(items) for items, _ in histories], kind="stable")
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    for batch in track(batches, len(batches), "batches of users"):
        padded = _Histories([histories[i] for i in batch], BATCH)
        first = np.maximum(padded.counts - reach, 1)  # events in the oldest state
        width = 1 << int(first.max() - 1).bit_length()  # powers of two: few compiled shapes
        base = compress(params, *padded.cut(np.zeros_like(first), first, width))
        for number in range(last):
            now = padded.counts - last + number  # events before the target
            target, moment = padded.event(now)
            for column, age in enumerate(ages):
                known = np.clip(now - age, first, now)
                old = extend(params, base, *padded.cut(first, known, reach))
                served = {
                    EXTENDED: extend(params, old, *padded.cut(known, now, reach)),
                    WINDOW: with_window(old, padded, now, model.layout.segments[0][0]),
                    STALE: old,
                }
                for name, state in served.items():
                    rank = np.asarray(rank_targets(params, index, state, moment, target))
                    ranks[name][batch, number, column] = rank[: len(batch)]
    return ranks


class _Histories:
    """Histories of B users as padded arrays; copies of the first fill the batch up to `size`."""

    def __init__(self, histories: Sequence[Events], size: int) -> None:
        filled = [*histories, *[histories[0]] * (size - len(histories))]
        self.counts = np.asarray([len(items) for items, _ in filled])
        self.items, self.times = np.zeros((2, size, self.counts.max() + 1), np.int32)
        for row, (items, times) in enumerate(filled):
            self.items[row, : len(items)], self.times[row, : len(times)] = items, times

    def event(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Item and time [B] of event number `index` [B] of each user."""
        rows = np.arange(len(index))
        return self.items[rows, index], self.times[rows, index]

    def cut(
        self, start: np.ndarray, stop: np.ndarray, width: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Events start..stop [B] of each user: items and times [B, width], their number [B]."""
        place = start[:, None] + np.arange(width)[None]
        inside = place < stop[:, None]
        place = np.minimum(place, self.items.shape[1] - 1)
        items, times = (
            np.where(inside, np.take_along_axis(column, place, 1), 0)
            for column in (self.items, self.times)
        )
        return items, times, (stop - start).astype(np.int32)


def with_window(state: UserState, histories: _Histories, now: np.ndarray, size: int) -> UserState:
    """The state's segments with the newest of `now` [B] events in its recent window."""
    room = state.items.shape[1]
    start = np.maximum(np.asarray(state.segments) * size, now - room)
    items, times, pending = histories.cut(start, now, room)
    return state._replace(items=items, times=times, pending=pending)


def _rank(
    model: Model, params: Params, index: ItemIndex, state: UserState, now: Array, target: Array
) -> jax.Array:
    """Rank [B] of each user's target."""
    queries, history = states.query(model, params, state, now), states.history_items(model, state)
    return ranking.rank_of_targets(queries, index, target, history=history)


def staleness(lab: Lab) -> Experiment:
    """Quality of states that are some events old."""
    ages, last = lab.config.experiments.ages, lab.config.experiments.last
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
        [_cell(lab, series, at) for series in (EXTENDED, WINDOW, STALE) for at in range(len(ages))],
        [
            Line(
                "Quality of old states",
                x="age",
                y=QUALITY,
                x_label="events since the state was made",
                y_label=f"Recall@{K}",
                log=True,
            )
        ],
    )


def _cell(lab: Lab, series: str, column: int) -> Cell:
    """The row of states `ages[column]` events old."""
    settings = lab.config.experiments
    age, youngest = settings.ages[column], settings.ages[0]

    def make() -> Values:
        ranks, fresh = _ranks(lab, series, column), _ranks(lab, EXTENDED, 0)
        counted = measures.counted(lab, ranks), measures.counted(lab, fresh)
        return {
            "name": f"{series}, {age}",
            "series": series,
            "age": age,
            **columns(counted[0], settings.bootstrap, counted[1], f"age_{youngest}"),
            "ranks_that_differ": stored.share_that_differs(ranks, fresh),
        }

    return Cell(f"{series}, {age}", make)


def _ranks(lab: Lab, series: str, column: int) -> list[Ranks]:
    """Ranks by seed from states `ages[column]` events old."""
    by_seed = [_evaluated(lab, seed) for seed in lab.seeds]
    return [stored.as_ranks(arrays, arrays[series][:, column]) for arrays in by_seed]


def _evaluated(lab: Lab, seed: int) -> dict[str, np.ndarray]:
    """Targets, and ranks [targets, ages] by series, of a seed's run."""
    ages, last = lab.config.experiments.ages, lab.config.experiments.last
    config = with_values(lab.base, seed=seed)

    def make() -> dict[str, np.ndarray]:
        session = lab.session(config)
        trained = session.trained_model()
        users = lab.users(session.prepared)
        histories = stored.histories_of(session, users)
        ranks = aged_ranks(trained.model, trained.params, histories, ages, last)
        flat = {name: rank.reshape(-1, len(ages)) for name, rank in ranks.items()}
        return flat | stored.targets(users, histories, last)

    return lab.kept(config, f"staleness {ages} {last}", make)
