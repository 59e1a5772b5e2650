"""What each setting of a recipe is worth: one changed setting a row, against the recipe itself.

`experiments.ablations` lists the rows as text, `NAME: KEY=VALUE; KEY=VALUE`. The first row is
the base: what it sets holds in all the others. Rows are paired: the same seeds, the same users,
resampled together (`statistics`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxrec import config as config_lib
from jaxrec.config import Config
from jaxrec.errors import ConfigError
from jaxrec.experiments import quality, settings, statistics
from jaxrec.experiments.runs import Lab, plain, with_values
from jaxrec.experiments.table import Cell, Experiment, Line, Values, spread
from jaxrec.runtime import workdir

KEY = "experiments.ablations"


class Row(NamedTuple):
    """name: of the row; changes: `--config.KEY=VALUE` arguments."""

    name: str
    changes: tuple[str, ...]


def parse(texts: Sequence[str]) -> list[Row]:
    """Rows of `experiments.ablations`; raises ConfigError naming the row that is none."""
    rows = []
    for text in texts:
        name, colon, rest = text.partition(":")
        parts = [part.strip() for part in rest.split(";") if part.strip()]
        if not name.strip() or not colon or any("=" not in part for part in parts):
            raise ConfigError(
                f"{KEY}: {text!r} is no row; needed is 'NAME: KEY=VALUE; KEY=VALUE', and "
                "'NAME:' where nothing changes"
            )
        rows.append(Row(name.strip(), tuple(f"--config.{part}" for part in parts)))
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise ConfigError(f"{KEY}: two rows have one name among {', '.join(names)}")
    if len(rows) < 2:
        raise ConfigError(f"{KEY}={tuple(texts)!r}: a base row and one more at least are needed")
    return rows


def changed(base: Config, row: Row) -> Config:
    """`base` with a row's values; raises ConfigError for one that cannot work, naming the row."""
    config = plain(base)
    try:
        for change in row.changes:
            settings.override(config, change)
        return config_lib.validate(config)
    except ConfigError as error:
        raise ConfigError(f"{KEY}, row {row.name!r}: {error}") from error


def ablations(lab: Lab) -> Experiment:
    rows = parse(lab.config.experiments.ablations)
    base = changed(lab.base, rows[0])
    cells = [_cell(lab, row.name, changed(base, row), base) for row in rows]
    return Experiment(
        "ablations",
        "What each setting is worth",
        "Which settings of the recipe matter, and which would do as well?",
        f"The first row is the recipe; every other row changes what the column `changed` says and "
        f"nothing else. All rows train {base.train.steps} steps on the same examples, one run per "
        "seed; a model that learns more slowly stands lower than it would after a longer training.",
        "A ratio whose interval holds 1 says that the setting makes no difference that so many "
        "seeds and users can show.",
        cells,
        [
            Line(
                "What each setting is worth",
                "name",
                "ndcg_of_base",
                "",
                f"NDCG@{quality.K} / recipe",
                kind="bar",
            )
        ],
    )


def _cell(lab: Lab, name: str, config: Config, base: Config) -> Cell:
    facts: Values = {"name": name, "series": "ablations", "changed": _differences(config, base)}

    def make() -> Values:
        columns = facts | quality.price(config, answering(config))
        samples = lab.config.experiments.bootstrap
        for metric in quality.METRICS:
            own, theirs = (values(lab, one, metric) for one in (config, base))
            columns |= spread(f"{metric}@{quality.K}", statistics.interval(own, samples))
            columns[f"{metric}@{quality.K}_seeds"] = own.mean(1).tolist()
            columns |= spread(f"{metric}_of_base", statistics.ratio(own, theirs, samples))
        return columns | {"users": int(own.shape[1])}

    return Cell(name, make)


def answering(config: Config) -> str:
    """The evaluation row in which a run of this layout answers requests (see `Lab.ranks`)."""
    return "recent-only" if config.layout.mode == "recent" else config.layout.mode


def values(lab: Lab, config: Config, metric: str) -> np.ndarray:
    """[seeds, users] of a setting."""
    runs = [with_values(config, seed=seed) for seed in lab.seeds]
    ranks = [lab.ranks(run, answering(config)) for run in runs]
    return statistics.values(ranks, metric, quality.K)


def _differences(config: Config, base: Config) -> str:
    """What a row changes, as `key=value` in the order of the keys."""
    mine, theirs = (workdir.flatten(one) for one in (config, base))
    return ", ".join(f"{k}={v}" for k, v in sorted(mine.items()) if theirs[k] != v)
