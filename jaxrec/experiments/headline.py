"""Headline numbers: what a request and a training step cost, and what quality remains."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxrec.types import Json

PAPER = (5, 4)  # segments and tokens of the paper's layout
MEASURED = "median over rounds in turn, quartiles"


class Headline(NamedTuple):
    """One row of `length`, relative to the full history of the same events.

    compute: share of the FLOPs of a request, counted from the layout.
    quality: (ratio, low, high) by metric.
    """

    history: int
    compute: float
    quality: dict[str, tuple[float, float, float]]
    users: int
    seeds: int
    state_bytes: int


def from_table(table: Json) -> Headline | None:
    """The longest history of the table `length` with a compressed and a full run."""
    rows = [r for r in table["rows"] if r.get("recall_of_full") is not None]
    if not rows:
        return None
    row = max(rows, key=lambda r: r["history"])
    quality = {
        name: (
            row[f"{metric}_of_full"],
            row[f"{metric}_of_full_low"],
            row[f"{metric}_of_full_high"],
        )
        for name, metric in (("Recall@10", "recall"), ("NDCG@10", "ndcg"))
    }
    seeds = len(table["protocol"]["seeds"])
    return Headline(
        row["history"], row["flops_of_full"], quality, row["users"], seeds, row["state_bytes"]
    )


def sentence(headline: Headline) -> str:
    """`x % of the compute at y % of the quality`, with the interval of the quality."""
    quality = span(headline.quality["Recall@10"])
    return f"{percent(headline.compute)} of the compute at {quality} of the quality"


def tiles(headline: Headline) -> list[tuple[str, str, str]]:
    """Headline numbers as (number, what it is, source)."""
    setting = f"history of {headline.history:,} events, against full history of the same events"
    sample = f"{headline.users:,} users"
    if headline.seeds > 1:
        sample += f", {headline.seeds} seeds"
    rows = [
        (percent(headline.compute), "FLOPs of a request", f"{setting}; counted from the layout")
    ]
    for name, (ratio, low, high) in headline.quality.items():
        interval = f"95 %: {100 * low:.1f} to {100 * high:.1f} %; {sample}"
        rows.append((percent(ratio), f"{name} of full history", interval))
    size = f"{headline.state_bytes:,} B"
    return [*rows, (size, "kept per user", "K and V of the tokens, float32")]


def paper_row(rows: Sequence[Json]) -> Json | None:
    """The benchmark's compressed request at 5 segments x 4 tokens, longest history, one user."""
    candidates = [
        row
        for row in rows
        if row["method"] == "compressed"
        and (row["segments"], row["tokens"]) == PAPER
        and row["batch"] == 1
        and row.get("time_ratio") is not None
    ]
    return max(candidates, key=lambda row: row["history"], default=None)


def bench_tiles(rows: Sequence[Json]) -> list[tuple[str, str, str]]:
    """Compute, time and training step at the paper's shape; empty where it was not measured."""
    row = paper_row(rows)
    if row is None:
        return []
    setting = f"{row['history']:,} events, {PAPER[0]} segments x {PAPER[1]} tokens"

    def quartiles(low: float, high: float) -> str:
        return f"{setting}; {MEASURED} {100 * low:.1f} to {100 * high:.1f} %"

    tiles = [
        (
            percent(row["flops_ratio_analytic"]),
            "FLOPs of a request",
            f"{setting}; counted from layout",
        ),
        (
            percent(row["time_ratio"]),
            "wall time of a request",
            quartiles(*row["time_ratio_quartiles"]),
        ),
    ]
    full = next(
        other
        for other in rows
        if other["method"] == "full"
        and (other["history"], other["segments"]) == (row["history"], row["segments"])
        and other["batch"] == 1
    )
    if row.get("train_rounds_ms") and full.get("train_rounds_ms"):
        rounds = zip(row["train_rounds_ms"], full["train_rounds_ms"], strict=True)
        low, middle, high = np.percentile([a / b for a, b in rounds], (25, 50, 75))
        tiles.append((percent(middle), "time of a training step", quartiles(low, high)))
    return tiles


def percent(value: float) -> str:
    """A ratio as a percentage.

    >>> percent(0.1234)
    '12.3 %'
    """
    return f"{100 * value:.1f} %"


def span(value: tuple[float, float, float]) -> str:
    """A ratio with its interval.

    >>> span((0.9, 0.85, 0.95))
    '90.0 % [85.0, 95.0]'
    """
    return "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * v for v in value))
