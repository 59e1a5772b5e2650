"""A planted signal by how far back it lies: the experiment `probe`."""

import dataclasses
import itertools
import math

import numpy as np

from jaxrec.config import Config
from jaxrec.data.datasets import synthetic
from jaxrec.evaluation.ranks import Ranks
from jaxrec.experiments import measures, statistics
from jaxrec.experiments.measures import QUALITY, K
from jaxrec.experiments.quality import full_of, price, recent_of
from jaxrec.experiments.result_table import Cell, Experiment, Line, Values, spread
from jaxrec.experiments.runs import Lab, with_values
from jaxrec.experiments.settings import ExperimentsConfig

SERIES = {
    "full": "full history",
    "compressed": "compressed",
    "learned": "compressed, not pooled",
    "recent": "recent window alone",
}


def run_of(config: ExperimentsConfig) -> Config:
    """The base run on the planted data, without counters of history items in its scores."""
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
        model__dropout=0.0,  # the probe has many users instead
        model__embed_dropout=0.0,
        loss__kind="softmax",
        eval__filter_seen=False,  # what returns was seen
        train__batch_size=probe.batch_size,
        train__learning_rate=probe.learning_rate,
        train__steps=probe.steps,
        train__eval_every=probe.steps,
        train__checkpoint_every=probe.steps,
    )


def buckets(edges: tuple[int, ...]) -> list[tuple[float, float, str]]:
    """(low, high, label) of distances in events: low <= distance < high.

    >>> buckets((56, 64))
    [(0, 56, 'below 56'), (56, 64, '56 to 63'), (64, inf, '64 and more')]
    """
    bounds = itertools.pairwise([0, *edges, math.inf])
    return [(low, high, _label(low, high)) for low, high in bounds]


def _label(low: float, high: float) -> str:
    if low == 0:
        return f"below {high:g}"
    return f"{low:g} and more" if high == math.inf else f"{low:g} to {high - 1:g}"


class _Study:
    """Makes the rows of `probe` from runs with full, compressed and recent history."""

    def __init__(self, lab: Lab) -> None:
        self.base = run_of(lab.config)
        # the planted data is a data set of its own: every user counts
        settings = dataclasses.replace(lab.config.experiments, min_events=0)
        config = ExperimentsConfig(**vars(self.base), experiments=settings)
        self.lab = Lab(config, lab.folder, lab.say, lab.train, lab.fresh)
        self.durable = len(synthetic.durable_items(self.base.data.synthetic))
        self.runs = {"full": full_of(self.base), "compressed": self.base}
        if self.base.model.token_input != "learned":
            self.runs["learned"] = with_values(self.base, model__token_input="learned")
        self.runs["recent"] = recent_of(self.base)

    def evaluated(self, mode: str, seed: int) -> tuple[Ranks, np.ndarray]:
        """Ranks of all targets, and `planted` of them."""
        config = with_values(self.runs[mode], seed=seed)
        ranks = self.lab.ranks(config, config.layout.mode)

        def make() -> dict[str, np.ndarray]:
            return {"distance": measures.distance_of_returns(self.lab.session(config), ranks)}

        distance = self.lab.kept(config, "distance of planted returns", make)["distance"]
        return ranks, distance

    def returns(self, mode: str, low: float = 1, high: float = math.inf) -> list[Ranks]:
        """Ranks by seed of the returns with low <= distance < high."""
        by_seed = []
        for seed in self.lab.seeds:
            ranks, distance = self.evaluated(mode, seed)
            inside = (distance > 0) & (distance >= low) & (distance < high)
            user, position, item, rank = (column[inside] for column in ranks[:4])
            by_seed.append(Ranks(user, position, item, rank, None))
        return by_seed

    def cell(self, mode: str, low: float, high: float, label: str) -> Cell:
        """Recall of the returns with low <= distance < high."""
        name = f"{SERIES[mode]}, {label}"

        def make() -> Values:
            row: Values = {"name": name, "part": "by distance", "series": SERIES[mode]}
            by_seed = self.returns(mode, low, high)
            row |= {"distance": label, "targets": len(by_seed[-1].rank)}
            row["chance"] = min(1.0, K / self.durable)
            if row["targets"]:  # a row without targets says only that
                table = statistics.values(by_seed, "recall", K)
                samples = self.lab.config.experiments.bootstrap
                row |= spread(QUALITY, statistics.interval(table, samples))
                row[f"{QUALITY}_seeds"] = table.mean(1).tolist()
            return row

        return Cell(name, make, lambda: self.returns(mode))

    def summary(self, mode: str) -> Cell:
        """All returns: every metric, as shares of full history's, and the cost of a request."""
        config, samples = self.runs[mode], self.lab.config.experiments.bootstrap

        def make() -> Values:
            by_seed, full = self.returns(mode), self.returns("full")
            row: Values = {"name": SERIES[mode], "part": "all returns"}
            row |= measures.levels(by_seed, samples)
            for name, (metric, k) in measures.MEASURES.items():
                ours, theirs = (statistics.values(ranks, metric, k) for ranks in (by_seed, full))
                row |= spread(f"{name}_of_full", statistics.ratio(ours, theirs, samples))
            if config.layout.mode == "compressed":
                row |= measures.closed(by_seed, self.returns("recent"), full, samples)
            return row | price(config, config.layout.mode, self.base)

        return Cell(SERIES[mode], make, lambda: self.returns(mode))


def probe(lab: Lab) -> Experiment:
    """Recall of planted returns by how many events ago the item was last seen."""
    study = _Study(lab)
    layout, edges = study.base.layout, lab.config.experiments.probe.edges
    return Experiment(
        "probe",
        "A planted signal, by distance",
        "Does what happened long before the recent window still reach a recommendation?",
        "Synthetic users own a few favourites; one that was not seen for "
        f"{study.base.data.synthetic.gap} everyday events or more comes back after an occasion, "
        f"which nothing in the recent window of at most {layout.recent} events tells. The targets "
        "are these returns, by how many events ago the favourite was last seen. Scores do not "
        "count what users had, so all that is known came through items or tokens.",
        f"The recent window alone can only guess among {study.durable} items (`chance`). What the "
        "compressed model reaches above that, its tokens have kept.",
        [
            *(study.summary(mode) for mode in study.runs),
            *(study.cell(mode, *bucket) for mode in study.runs for bucket in buckets(edges)),
        ],
        [
            Line(
                "Planted returns recovered",
                x="distance",
                y=QUALITY,
                x_label="events since the favourite was last seen",
                y_label=f"Recall@{K}",
                kind="bar",
                zero=True,
            )
        ],
    )
