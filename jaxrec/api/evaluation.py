"""The figures of a run as a value: rows, ratios, protocol; prints as the table of `eval.py`."""

import dataclasses
import functools
import html
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxrec.api import frames
from jaxrec.api.frames import Frame
from jaxrec.evaluation import rendering, terminal
from jaxrec.types import Json


class Figure(NamedTuple):
    """A mean over users and its bootstrap interval; None where it is not defined."""

    mean: float | None
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class EvaluationRow:
    """A recommender: a model or a rule without parameters.

    metrics: by name such as `ndcg@10`. coverage: share of the catalog in the users' first lists.
    request_flops, state_bytes: of one request to a model; None for a rule.
    """

    name: str
    users: int
    targets: int
    metrics: Mapping[str, Figure]
    coverage: float | None
    request_flops: int | None
    state_bytes: int | None


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation:
    """What an evaluation found. report: its JSON value, as in results.json; library: of frames."""

    report: Json
    library: str = "polars"

    @functools.cached_property
    def rows(self) -> Mapping[str, EvaluationRow]:
        """The recommenders, by name."""
        return {row["name"]: _row(row) for row in self.report["rows"]}

    @property
    def ratios(self) -> Mapping[str, Mapping[str, Figure]]:
        """`compressed / popularity` and the like -> metric -> ratio, users paired."""
        return {
            pair: {metric: Figure(**value) for metric, value in ratios.items()}
            for pair, ratios in self.report["comparisons"].items()
        }

    @property
    def protocol(self) -> Mapping[str, object]:
        """Split, candidates, ties and all else that a reader needs to compare with others."""
        return self.report["protocol"]

    def to_frame(self) -> Frame:
        """A row per recommender and metric: row, metric, mean, low, high."""
        found = [
            (name, metric, *figure)
            for name, row in self.rows.items()
            for metric, figure in row.metrics.items()
        ]
        names, metrics, *numbers = zip(*found, strict=True)
        columns = dict(
            zip(Figure._fields, (np.asarray(n, np.float64) for n in numbers), strict=True)
        )
        return frames.make(
            {"row": np.asarray(names), "metric": np.asarray(metrics), **columns}, self.library
        )

    def __repr__(self) -> str:
        return terminal.format_table(self.report)

    def _repr_html_(self) -> str:
        """Two tables for a notebook: rows, and ratios."""
        first = next(iter(self.rows.values())).metrics
        headline = [f"{metric}@{rendering.HEADLINE}" for metric in rendering.COMPARED]
        shown = [name for name in headline if name in first] or list(first)
        rows = [
            [row.name, *(_text(row.metrics[name], 4) for name in shown)]
            for row in self.rows.values()
        ]
        ratios = [
            [pair, *(_text(figure, 3) for figure in figures.values())]
            for pair, figures in self.ratios.items()
        ]
        tables = _table(["row", *shown], rows)
        if ratios:
            tables += _table(["ratio", *next(iter(self.ratios.values()))], ratios)
        protocol = self.protocol
        about = f"{protocol['split']}; {protocol['users']:,} users, {protocol['ranking']}"
        return f"{tables}<p>{html.escape(about)}</p>"


def _row(row: Json) -> EvaluationRow:
    return EvaluationRow(
        name=row["name"],
        users=row["users"],
        targets=row["targets"],
        metrics={name: Figure(**value) for name, value in row["metrics"].items()},
        coverage=row["coverage"],
        request_flops=row["request_flops"],
        state_bytes=row["state_bytes"],
    )


def _text(figure: Figure, digits: int) -> str:
    if figure.mean is None:
        return "undefined"
    mean = f"{figure.mean:.{digits}f}"
    if figure.low is None or figure.high is None:
        return mean
    return f"{mean} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{line(heads, 'th')}</tr></thead><tbody>{body}</tbody></table>"
