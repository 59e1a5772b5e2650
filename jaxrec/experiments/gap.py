"""How much of what full history adds compressed tokens keep: the experiment `gap`.

All models are trained for what they are shown: the recent window alone, compressed history and
full history, without counters of the user's own items, which would carry raw ids past the
tokens. With `experiments.counters` a second part of the table holds the same with counters. Of
data with planted returns a part of its own holds the returns alone.
"""

import math
from collections.abc import Sequence

from jaxrec.config import Config
from jaxrec.evaluation.ranks import Ranks
from jaxrec.experiments import baselines, measures, oracle, plateau, verdict
from jaxrec.experiments.baselines import BASELINES
from jaxrec.experiments.quality import full_of, price, recent_of
from jaxrec.experiments.result_table import Cell, Experiment, Line, Values
from jaxrec.experiments.runs import Lab, RuleOf, known_rule, with_values
from jaxrec.experiments.settings import ExperimentsConfig

TOKENS = "tokens alone"  # parts of the table
COUNTERS = "with counters"
RETURNS = "planted returns"
WITHOUT = "compressed without its tokens"
FREQUENCY = "personal frequency"
RULES = {"popularity": "popularity", FREQUENCY: "frequency-all"}  # row -> rule


def base_of(lab: Lab) -> Config:
    """The compressed run of the first part: the base run without counters."""
    return with_values(lab.base, model__repeat_half_lives=(), model__repeat_half_times=())


def counted_of(lab: Lab) -> Config | None:
    """The compressed run of the second part; None where `experiments.counters` are not given."""
    chosen = lab.config.experiments
    if not (chosen.counters or chosen.counter_times):
        return None
    return with_values(
        lab.base,
        model__repeat_half_lives=chosen.counters,
        model__repeat_half_times=chosen.counter_times,
    )


COUNTED = (
    " In the part with counters the scores also count the user's own items, which takes no tokens: "
    "`counters alone` is personal frequency. Those of `recent + counters` end with its window, the "
    "others reach back as far as the history does: what tokens read adds to them is compressed "
    "against a baseline whose tokens read nothing, not against `recent + counters`."
)


def modes_of(base: Config) -> dict[str, Config]:
    """The runs that are compared, by layout.mode, from the compressed one."""
    return {"recent": recent_of(base), "compressed": base, "full": full_of(base)}


class _Part:
    """Makes the rows of one part from runs with recent, compressed and full history.

    suffix: of the names of its rows. returns: only planted returns count as targets, whose item
    was last seen (low <= events < high) ago.
    """

    def __init__(
        self,
        lab: Lab,
        name: str,
        base: Config,
        suffix: str = "",
        *,
        returns: tuple[float, float] | None = None,
    ) -> None:
        self.lab, self.name, self.suffix, self.returns = lab, name, suffix, returns
        self.samples = lab.config.experiments.bootstrap
        self.runs = modes_of(base)
        if not suffix:  # runs that were given have no counters
            self.runs |= lab.given
        self.baselines = baselines.chosen(lab.config.experiments.baselines, base)

    def run(self, mode: str) -> Config:
        """The run of a mode, or of a baseline."""
        return self.runs[mode] if mode in self.runs else self.baselines[mode]

    def ranks(self, mode: str) -> list[Ranks]:
        """Ranks by seed of the run of a mode."""
        return self._targets(measures.by_seed(self.lab, self.run(mode)))

    def _targets(self, by_seed: list[Ranks]) -> list[Ranks]:
        """The targets of this part."""
        return (
            by_seed if self.returns is None else measures.returns(self.lab, by_seed, *self.returns)
        )

    def model(self, mode: str) -> Cell:
        """The row of a trained run."""
        name = mode + self.suffix

        def make() -> Values:
            run = self.run(mode)
            row = self._row(name, self.ranks(mode)) | price(run, run.layout.mode, self._base)
            row["still_rising"] = self._still_rising(mode)
            if mode == "compressed" or mode in self.baselines:
                ends = self.ranks("recent"), self.ranks("full")
                row |= measures.closed(self.ranks(mode), *ends, self.samples)
            return row

        return Cell(name, make, lambda: self.ranks(mode))

    def _still_rising(self, mode: str) -> int:
        """How many of the seeds' trainings ended before their plateau."""
        configs = [with_values(self.run(mode), seed=seed) for seed in self.lab.seeds]
        return sum(plateau.unfinished(self.lab.place(config), config) for config in configs)

    def without_tokens(self) -> Cell:
        """The compressed run shown only its recent window."""

        def ranks() -> list[Ranks]:
            return measures.by_seed(self.lab, self._base, "without-tokens")

        def make() -> Values:
            return self._row(WITHOUT, ranks()) | price(self._base, "without-tokens")

        return Cell(WITHOUT, make, ranks)

    def rule(self, row: str, name: str, rule: RuleOf | None = None) -> Cell:
        """The row of a rule without parameters, which is the same for every seed.

        name: of the rule, one of `evaluation.baselines` where none is given.
        """
        made = known_rule(name) if rule is None else rule

        def ranks() -> list[Ranks]:
            config = with_values(self._base, seed=self.lab.seeds[0])
            (once,) = self._targets([self.lab.rule_ranks(config, name, made)])
            return [once] * len(self.lab.seeds)

        return Cell(row, lambda: self._row(row, ranks()), ranks)

    @property
    def _base(self) -> Config:
        return self.runs["compressed"]

    def _row(self, name: str, ranks: Sequence[Ranks]) -> Values:
        facts: Values = {"name": name, "part": self.name, "series": self.name}
        return facts | measures.levels(ranks, self.samples)


def gap(lab: Lab) -> Experiment:
    """Recent, compressed and full history, each trained, and the share of the gap closed."""
    first = _Part(lab, TOKENS, base_of(lab))
    # where seen items are no candidates a rule that recommends them is popularity
    rules = {"popularity": RULES["popularity"]} if lab.base.eval.filter_seen else RULES
    cells = [
        *(first.rule(row, rule) for row, rule in rules.items()),
        first.model("recent"),
        first.without_tokens(),
        first.model("compressed"),
        *(first.model(name) for name in first.baselines),
        first.model("full"),
    ]
    if (counted := counted_of(lab)) is not None:
        second = _Part(lab, COUNTERS, counted, " + counters")
        cells.append(second.rule("counters alone", RULES[FREQUENCY]))
        cells += [second.model(mode) for mode in (*second.runs, *second.baselines)]
    with_oracle = measures.count_returns(lab.config) and not lab.base.eval.filter_seen
    for name, suffix, distances in _returns(lab.config):
        third = _Part(lab, name, base_of(lab), suffix, returns=distances)
        cells.append(third.rule(f"popularity{suffix}", RULES["popularity"]))
        cells += [third.model(mode) for mode in (*third.runs, *third.baselines)]
        if with_oracle:
            cells.append(third.rule(f"{oracle.NAME}{suffix}", oracle.NAME, oracle.rule))
    layout = lab.base.layout
    return Experiment(
        "gap",
        "What the tokens keep of a long history",
        "How much of what full history adds over the recent window do compressed tokens keep?",
        f"`recent` is a model trained on the newest {layout.recent} events alone, `full` one "
        f"trained on {layout.history} events, `compressed` one whose older events are compressed; "
        f"`{WITHOUT}` is that same model shown only its recent window. No score of theirs counts "
        "what the user had. `closed` is (compressed - recent) / (full - recent), all three on the "
        "same draws of seeds and users."
        + (COUNTED if counted is not None else "")
        + (oracle.SENTENCE if with_oracle else "")
        + "".join(f" {BASELINES[name].sentence}" for name in lab.config.experiments.baselines),
        verdict.reading,
        cells,
        [_bars(name) for name in (f"ndcg@{measures.K}", measures.QUALITY)],
    )


def _returns(config: ExperimentsConfig) -> list[tuple[str, str, tuple[float, float]]]:
    """(part, suffix of its rows, events since the item was last seen) of planted returns.

    All of them; in real histories also those from `gap` on within a segment's length, and the
    others: a token's age is that of its segment, so it tells little about what can only just be
    due. (Of generated histories `probe` tells more.) Nothing where there are none.
    """
    if not measures.count_returns(config):
        return []
    if config.data.dataset != "planted":
        return [(RETURNS, ", returns", (1, math.inf))]
    due = config.data.planted.gap
    middle = due + config.layout.segment_size
    return [
        (RETURNS, ", returns", (1, math.inf)),
        (f"{RETURNS} after {due} to {middle - 1} events", f", after {due}", (1, middle)),
        (f"{RETURNS} after {middle} events and more", f", after {middle}", (middle, math.inf)),
    ]


def _bars(metric: str) -> Line:
    title = verdict.METRICS[metric]
    return Line(
        f"{title} by what a model is shown",
        x="name",
        y=metric,
        x_label="",
        y_label=title,
        kind="bar",
        zero=True,
    )
