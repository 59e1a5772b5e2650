"""Headline numbers: what tokens keep, and what a request and a training step cost."""

from collections.abc import Sequence

import numpy as np

from jaxrec.experiments import verdict
from jaxrec.types import Json

PAPER = (5, 4)  # segments and tokens of the paper's layout
MEASURED = "median over rounds in turn, quartiles"


def tiles(table: Json) -> list[tuple[str, str, str]]:
    """Headline numbers of a table of `gap` as (number, what it is, source).

    All are of one trained model: what it costs to answer and to keep a state, and the share of
    the gap that it closes, by every metric that allows to say so.
    """
    rows = table["rows"]
    row = next(row for row in rows if row["name"] == "compressed")
    seeds = len(table["protocol"]["seeds"])
    setting = f"history of {row['history']:,} events, against full history of the same events"
    sample = f"{row['users']:,} users, {seeds} seed{'s' if seeds > 1 else ''}"
    made = [
        (percent(row["flops_of_full"]), "FLOPs of a request", f"{setting}; counted from layout"),
        (
            percent(row["amortised_of_full"]),
            "FLOPs of a request and of extending the state",
            "one event a request; compressing a segment is spread over its events",
        ),
    ]
    for metric, title in verdict.METRICS.items():
        if verdict.verdict(rows, metric).told:
            closed = verdict.Estimate.of(row, f"{metric}_closed")
            gap = verdict.Estimate.of(row, f"{metric}_gap")
            made.append(
                (
                    percent(closed.mean),
                    f"of the gap closed by {title}",
                    f"95 %: {100 * closed.low:.1f} to {100 * closed.high:.1f} %; the gap is {gap}; "
                    f"{sample}",
                )
            )
    parts = (
        f"{row['token_bytes']:,} B vectors of the tokens, {row['remembered_bytes']:,} B remembered "
        f"events, {row['pending_bytes']:,} B pending events, float32"
    )
    return [*made, (f"{row['state_bytes']:,} B", "kept per user", parts)]


def cost_tiles(rows: Sequence[Json]) -> list[tuple[str, str, str]]:
    """Times of the compressed rows of a table of `cost`, as shares of full history."""
    by_part = {(row["part"], row["name"]): row for row in rows}
    return [
        (
            percent(row["ms_of_full"]),
            f"time of a {part}",
            f"{row['ms']:.3g} ms against {by_part[part, 'full']['ms']:.3g} ms; {MEASURED} "
            f"{100 * row['ms_of_full_low']:.1f} to {100 * row['ms_of_full_high']:.1f} %",
        )
        for (part, name), row in by_part.items()
        if name == "compressed"
    ]


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
