"""A planted signal, by how far back it lies: probe."""

import dataclasses
import itertools
import math

import numpy as np

from jaxrec.config import Config
from jaxrec.data.datasets import synthetic
from jaxrec.evaluation.report import Ranks
from jaxrec.experiments import statistics
from jaxrec.experiments.quality import QUALITY, ROWS, K, full_of, recent_of
from jaxrec.experiments.runs import Lab, with_values
from jaxrec.experiments.settings import ExperimentsConfig
from jaxrec.experiments.table import Cell, Experiment, Line, Values, spread
from jaxrec.session import Session

SERIES = {"full": "full history", "compressed": "compressed", "recent": "recent window alone"}


def run_of(config: ExperimentsConfig) -> Config:
    """The base run on the planted data; what users had does not count directly in its scores."""
    probe = config.experiments.probe
    return with_values(
        config,
        data__dataset="synthetic",
        data__variant="",
        data__path="",
        data__items_path="",
        data__append=(),
        data__synthetic=probe.data,
        data__holdout=probe.holdout,
        data__min_item_events=1,
        data__max_user_events=0,
        layout__segment_size=probe.segment_size,
        layout__max_segments=probe.max_segments,
        layout__tokens=probe.tokens,
        model__repeat_half_lives=(),
        model__repeat_half_times=(),
        model__dropout=0.0,  # more users are cheaper than longer training
        model__embed_dropout=0.0,
        loss__kind="softmax",
        train__batch_size=probe.batch_size,
        train__learning_rate=probe.learning_rate,
        train__steps=probe.steps,
        train__eval_every=probe.steps,
        train__checkpoint_every=probe.steps,
    )


def buckets(edges: tuple[int, ...]) -> list[tuple[float, float, str]]:
    """(low, high, label) of distances in events: low <= distance < high."""
    bounds = itertools.pairwise([0, *edges, math.inf])
    return [(low, high, _label(low, high)) for low, high in bounds]


def _label(low: float, high: float) -> str:
    if low == 0:
        return f"below {high:g}"
    return f"{low:g} and more" if high == math.inf else f"{low:g} to {high - 1:g}"


def planted(session: Session, ranks: Ranks) -> np.ndarray:
    """int [P]: how many events ago a planted return was last seen; 0 for every other target."""
    distance = np.zeros(len(ranks.rank), np.int64)
    users, first = np.unique(ranks.user, return_index=True)
    for user, begin in zip(users.tolist(), first.tolist(), strict=True):
        returning, items = session.returning(user), session.history(user)
        for at in range(begin, len(ranks.user)):
            if ranks.user[at] != user:
                break
            position = int(ranks.position[at])
            if returning[position]:
                had = np.flatnonzero(items[:position] == ranks.item[at])
                distance[at] = position - had[-1] if len(had) else 0
    return distance


def probe(lab: Lab) -> Experiment:
    base = run_of(lab.config)
    # the planted data is one of its own: every user counts
    settings = dataclasses.replace(lab.config.experiments, min_events=0)
    lab = Lab(
        ExperimentsConfig(**vars(base), experiments=settings),
        lab.folder,
        lab.say,
        lab.train,
        lab.fresh,
    )
    runs = {"full": full_of(base), "compressed": base, "recent": recent_of(base)}
    durable = len(synthetic.durable_items(base.data.synthetic))
    window = base.layout.recent

    def found(mode: str, seed: int) -> tuple[Ranks, np.ndarray]:
        """Ranks of all targets, and how far back each planted return lies."""
        config = with_values(runs[mode], seed=seed)
        ranks = lab.ranks(config, ROWS[mode])

        def make() -> dict[str, np.ndarray]:
            return {"distance": planted(lab.session(config), ranks)}

        distance = lab.kept(config, "distance of planted returns", make)["distance"]
        return ranks, distance

    def cell(mode: str, low: float, high: float, label: str) -> Cell:
        name = f"{SERIES[mode]}, {label}"

        def make() -> Values:
            row: Values = {"name": name, "series": SERIES[mode], "distance": label}
            inside, counts = [], 0
            for seed in lab.seeds:
                ranks, distance = found(mode, seed)
                some = (distance > 0) & (distance >= low) & (distance < high)
                counts = int(some.sum())
                user, position, item, rank = (column[some] for column in ranks[:4])
                inside.append(Ranks(user, position, item, rank, None))
            row["targets"] = counts
            row["chance"] = min(1.0, K / durable)
            if counts:  # an empty bucket is a row that says so
                table = statistics.values(inside, "recall", K)
                row |= spread(QUALITY, statistics.interval(table, settings.bootstrap))
                row[f"{QUALITY}_seeds"] = table.mean(1).tolist()
            return row

        return Cell(name, make)

    return Experiment(
        "probe",
        "A planted signal, by distance",
        "Does what happened long before the recent window still reach a recommendation?",
        "Synthetic users own a few favourites; one that was not seen for "
        f"{base.data.synthetic.gap} everyday events or more comes back after an occasion, which "
        f"nothing in the recent window of at most {window} events tells. The targets are these "
        "returns, by how many events ago the favourite was last seen. Scores do not count what "
        "users had, so all that is known came through items or tokens.",
        f"The recent window alone can only guess among {durable} items (`chance`). What the "
        "compressed model reaches above that, its tokens have kept.",
        [cell(mode, *bucket) for mode in SERIES for bucket in buckets(settings.probe.edges)],
        [
            Line(
                "Planted returns recovered",
                "distance",
                QUALITY,
                "events since the favourite was last seen",
                f"Recall@{K}",
                kind="bar",
                zero=True,
            )
        ],
    )
