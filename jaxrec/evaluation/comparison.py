"""Two evaluated runs beside each other: paired bootstrap over the users that both ranked."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxrec.errors import ConfigError
from jaxrec.evaluation import intervals
from jaxrec.evaluation.intervals import Interval
from jaxrec.evaluation.rank_file import RankFile
from jaxrec.evaluation.ranks import Ranks
from jaxrec.evaluation.report import per_user
from jaxrec.types import Json

# metric, list length (None: the whole catalog); the first one decides
METRICS = (("ndcg", 10), ("recall", 10), ("mrr", None))
OWN_ROWS = ("compressed", "full", "recent")  # rows of a run's own model, in every mode


class Side(NamedTuple):
    """One of the two. name: for messages. facts: as in `rank_file`. row: of the table."""

    name: str
    facts: Json
    row: str
    ranks: Ranks


class Compared(NamedTuple):
    """A metric of both sides, a - b and a / b over the same users."""

    a: Interval
    b: Interval
    difference: Interval
    ratio: Interval


class Comparison(NamedTuple):
    """metrics: `ndcg@10` and the like -> its values."""

    users: int
    targets: int
    metrics: dict[str, Compared]


def side(name: str, stored: RankFile, row: str = "") -> Side:
    """A row of a run; default: that of its own model. Raises ConfigError for an unknown one."""
    known = list(stored.ranks)
    if not row:
        row = next((own for own in OWN_ROWS if own in known), known[0])
    if row not in known:
        raise ConfigError(f"{name}: no row {row!r} was evaluated; there are {', '.join(known)}")
    return Side(name, stored.facts, row, stored.ranks[row])


def check(a: Side, b: Side) -> None:
    """Raises ConfigError naming what differs where the two did not rank the same targets."""
    differing = [
        f"{key}={a.facts.get(key)!r} and {b.facts.get(key)!r}"
        for key in dict.fromkeys((*a.facts, *b.facts))
        if a.facts.get(key) != b.facts.get(key)
    ]
    if differing:
        raise ConfigError(
            f"{a.name} and {b.name} cannot be compared, they differ in {'; '.join(differing)}. "
            "Evaluate both on the same data, split and candidates"
        )
    for name in ("user", "position", "item"):
        if not np.array_equal(getattr(a.ranks, name), getattr(b.ranks, name)):
            raise ConfigError(
                f"{a.name} and {b.name} cannot be compared, they ranked other targets "
                f"({len(a.ranks.user):,} and {len(b.ranks.user):,}): evaluate both again"
            )


def compare(a: Side, b: Side, samples: int, seed: int = 0) -> Comparison:
    """Every metric of both, users drawn together. Raises ConfigError (see `check`)."""
    check(a, b)
    found: dict[str, Compared] = {}
    for metric, k in METRICS:
        users, of_a = per_user(a.ranks, metric, k)
        _, of_b = per_user(b.ranks, metric, k)
        found[metric if k is None else f"{metric}@{k}"] = Compared(
            intervals.bootstrap(of_a, samples, seed),
            intervals.bootstrap(of_b, samples, seed),
            intervals.bootstrap(of_a - of_b, samples, seed),
            intervals.paired_ratio(of_a, of_b, samples, seed),
        )
    return Comparison(len(users), len(a.ranks.rank), found)


def titles(a: Side, b: Side) -> tuple[str, str]:
    """Names of the two that differ: of the runs, with their rows where the runs are one."""
    if a.name != b.name:
        return a.name, b.name
    return f"{a.name} ({a.row})", f"{b.name} ({b.row})"


def verdict(names: tuple[str, str], compared: Mapping[str, Compared]) -> str:
    """One plain sentence by the first metric: which is better, or that it cannot be told."""
    first = next(iter(compared))
    value, label = compared[first], first.upper()
    low, high = float(value.difference.low), float(value.difference.high)
    if low > 0 or high < 0:
        better, worse = names if low > 0 else names[::-1]
        return f"{better} is better than {worse} by {label}: {_times(value, low < 0)}"
    return (
        f"no difference can be told between {names[0]} and {names[1]}: the {label} of the first is "
        f"{_times(value, False)} that of the second"
    )


def _times(value: Compared, inverse: bool) -> str:
    """The ratio with its interval; the difference where there is no ratio."""
    mean, low, high = (float(number) for number in value.ratio)
    if not np.isfinite([mean, low, high]).all() or (inverse and min(mean, low) <= 0):
        center, below, above = (float(number) for number in value.difference)
        if inverse:
            center, below, above = -center, -above, -below
        return f"{center:+.4f} [{below:+.4f}, {above:+.4f}]"
    if inverse:
        mean, low, high = 1 / mean, 1 / high, 1 / low
    return f"{mean:.2f} times [{low:.2f}, {high:.2f}]"


def table(names: tuple[str, str], sides: tuple[Side, Side], value: Comparison) -> str:
    """The metrics as a table for a terminal."""
    lines = [
        f"A: {names[0]}, row {sides[0].row}",
        f"B: {names[1]}, row {sides[1].row}",
        f"{value.users:,} users, {value.targets:,} targets; 95 % bootstrap over users, paired",
        "",
        f"{'metric':<10}{'A':>25}{'B':>25}{'A - B':>29}{'A / B':>25}",
    ]
    for name, row in value.metrics.items():
        cells = [_cell(row.a, ".4f"), _cell(row.b, ".4f")]
        wide = _cell(row.difference, "+.4f")
        lines.append(
            f"{name:<10}{cells[0]:>25}{cells[1]:>25}{wide:>29}{_cell(row.ratio, '.3f'):>25}"
        )
    return "\n".join(lines)


def _cell(value: Interval, digits: str) -> str:
    mean, low, high = (float(number) for number in value)
    if not np.isfinite(mean):
        return "undefined"
    return f"{mean:{digits}} [{low:{digits}}, {high:{digits}}]"
