"""What longer training changes: the experiment `steps`.

A rate that falls to its end flattens every validation, so that a plateau of one run is no proof.
Here every row is trained again with other numbers of steps, each with a schedule of its own.
"""

import math
from collections.abc import Sequence

from jaxrec.config import Config
from jaxrec.experiments import measures, statistics
from jaxrec.experiments.gap import base_of, modes_of
from jaxrec.experiments.quality import price, ranks_of
from jaxrec.experiments.result_table import Cell, Experiment, Line, Values, spread
from jaxrec.experiments.runs import Lab, with_values
from jaxrec.experiments.verdict import METRIC, METRICS, Estimate, share

NAME = "steps"
SLACK = 0.01  # gain by more steps that a plateau may have, as a share of the metric


def with_steps(config: Config, factor: float) -> Config:
    """The run with `factor` times the steps and as many validations and checkpoints.

    >>> made = with_steps(Config(), 0.5)
    >>> made.train.steps / Config().train.steps, made.train.eval_every / Config().train.eval_every
    (0.5, 0.5)
    """
    train = config.train
    keys = ("steps", "eval_every", "checkpoint_every")
    scaled = {key: max(1, round(factor * getattr(train, key))) for key in keys}
    return with_values(config, **{f"train__{key}": value for key, value in scaled.items()})


class _Study:
    """Makes the rows of `steps` from runs with recent, compressed and full history."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.base = lab, base_of(lab)
        self.runs = modes_of(self.base)
        self.factors = lab.config.experiments.steps
        self.samples = lab.config.experiments.bootstrap

    def cell(self, mode: str, at: int) -> Cell:
        """The row of a mode with `steps[at]` times the steps."""
        config = with_steps(self.runs[mode], self.factors[at])
        steps = config.train.steps
        name = f"{mode}, {steps:,} steps"

        def make() -> Values:
            row: Values = {"name": name, "series": mode, "steps": steps}
            ranks = ranks_of(self.lab, config)
            row |= measures.levels(ranks, self.samples)
            if at:
                fewer = ranks_of(self.lab, with_steps(self.runs[mode], self.factors[at - 1]))
                for column, (metric, k) in measures.MEASURES.items():
                    more, less = (statistics.values(r, metric, k) for r in (ranks, fewer))
                    row |= spread(f"{column}_of_fewer", statistics.ratio(more, less, self.samples))
            if mode == "compressed":
                low, high = (
                    ranks_of(self.lab, with_steps(self.runs[end], self.factors[at]))
                    for end in ("recent", "full")
                )
                row |= measures.closed(ranks, low, high, self.samples)
            return row | price(config, mode, self.base)

        return Cell(name, make, lambda: ranks_of(self.lab, config))


def reading(rows: Sequence[Values]) -> str:
    """What the longest training of each mode gained over the one before it."""
    sentences, title = [], METRICS[METRIC]
    longest = {row["series"]: row for row in rows}  # rows of a mode stand by steps
    for mode, row in longest.items():
        gain = Estimate.of(row, f"{METRIC}_of_fewer")
        if math.isnan(gain.mean):
            return "One number of steps alone tells nothing: experiments.steps needs two."
        told = (
            "a plateau"
            if gain.high <= 1 + SLACK
            else "still gaining"
            if gain.low > 1
            else "no more than the noise"
        )
        sentences.append(
            f"`{mode}` after {row['steps']:,} steps is {gain.mean:.3f} [{gain.low:.3f}, "
            f"{gain.high:.3f}] times as good by {title} as with the fewer steps before: {told}."
        )
    closed = Estimate.of(longest["compressed"], f"{METRIC}_closed")
    if not math.isnan(closed.mean):
        sentences.append(f"After most steps compressed closes {share(closed)} of the gap.")
    return " ".join(sentences)


def steps(lab: Lab) -> Experiment:
    """Quality of recent, compressed and full history by the steps that they are trained."""
    study = _Study(lab)
    title = METRICS[METRIC]
    return Experiment(
        NAME,
        "Longer training",
        "Are the models at their plateau, and does the share of the gap depend on the steps?",
        "Every row is a training of its own whose rate falls to its own end, with as many "
        "validations; `of fewer` is the ratio to the same mode with the next fewer steps.",
        reading,
        [study.cell(mode, at) for mode in study.runs for at in range(len(study.factors))],
        [
            Line(f"{title} by steps", "steps", METRIC, "steps of training", title, log=True),
            Line(
                "Share of the gap closed",
                "steps",
                f"{METRIC}_closed",
                "steps of training",
                f"gap closed, {title}",
                log=True,
            ),
        ],
    )
