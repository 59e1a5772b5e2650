"""What each setting of a recipe is worth: the experiment `ablations`.

`experiments.ablations` lists the rows as text, `NAME: KEY=VALUE; KEY=VALUE`. The first row is
the base; what it sets holds in all other rows, and each of them changes one thing. Rows are
paired: the same seeds and the same users are resampled together (`statistics`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxrec import config as config_lib
from jaxrec.config import Config
from jaxrec.errors import ConfigError
from jaxrec.experiments import measures, quality, settings, statistics
from jaxrec.experiments.result_table import Cell, Experiment, Line, Values, spread
from jaxrec.experiments.runs import Lab, plain
from jaxrec.runtime import workdir

KEY = "experiments.ablations"


class Row(NamedTuple):
    """name: of the row; changes: `--config.KEY=VALUE` arguments."""

    name: str
    changes: tuple[str, ...]


def parse(texts: Sequence[str]) -> list[Row]:
    """Rows of `experiments.ablations`; raises ConfigError naming the row that cannot be read."""
    rows = []
    for text in texts:
        name, colon, rest = text.partition(":")
        changes = [change.strip() for change in rest.split(";") if change.strip()]
        if not name.strip() or not colon or any("=" not in change for change in changes):
            raise ConfigError(
                f"{KEY}: {text!r} is no row; needed is 'NAME: KEY=VALUE; KEY=VALUE', and "
                "'NAME:' where nothing changes"
            )
        rows.append(Row(name.strip(), tuple(f"--config.{change}" for change in changes)))
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise ConfigError(f"{KEY}: two rows have one name among {', '.join(names)}")
    if len(rows) < 2:
        raise ConfigError(f"{KEY}={tuple(texts)!r}: a base row and one more at least are needed")
    return rows


def changed(base: Config, row: Row) -> Config:
    """`base` with a row's values; raises ConfigError naming the row whose values cannot work."""
    config = plain(base)
    try:
        for change in row.changes:
            settings.override(config, change)
        return config_lib.validate(config)
    except ConfigError as error:
        raise ConfigError(f"{KEY}, row {row.name!r}: {error}") from error


def ablations(lab: Lab) -> Experiment:
    """One row per changed setting, against the recipe."""
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
                x="name",
                y="ndcg_of_base",
                x_label="",
                y_label=f"NDCG@{measures.K} / recipe",
                kind="bar",
            )
        ],
    )


def _cell(lab: Lab, name: str, config: Config, base: Config) -> Cell:
    facts: Values = {"name": name, "series": "ablations", "changed": _differences(config, base)}

    def make() -> Values:
        columns = facts | quality.price(config, config.layout.mode)
        samples = lab.config.experiments.bootstrap
        for metric in measures.METRICS:
            table, of_base = values(lab, config, metric), values(lab, base, metric)
            columns |= spread(f"{metric}@{measures.K}", statistics.interval(table, samples))
            columns[f"{metric}@{measures.K}_seeds"] = table.mean(1).tolist()
            columns |= spread(f"{metric}_of_base", statistics.ratio(table, of_base, samples))
        return columns | {"users": int(table.shape[1])}

    return Cell(name, make, lambda: quality.ranks_of(lab, config))


def values(lab: Lab, config: Config, metric: str) -> np.ndarray:
    """Metric [seeds, users] of a setting."""
    return statistics.values(quality.ranks_of(lab, config), metric, measures.K)


def _differences(config: Config, base: Config) -> str:
    """The changed settings as `key=value`, sorted by key."""
    before, after = workdir.flatten(base), workdir.flatten(config)
    return ", ".join(f"{k}={v}" for k, v in sorted(after.items()) if before[k] != v)
