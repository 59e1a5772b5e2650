"""The numbers to remember: what a request and a step cost, and what quality is left of it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

PAPER = (5, 4)  # segments and tokens of the paper's layout
MEASURED = "median over rounds in turn, quartiles"


class Headline(NamedTuple):
    """One row of `length`: shares of full history of as many events."""

    history: int
    compute: float  # of the analytic FLOPs of a request
    quality: dict[str, tuple[float, float, float]]  # metric -> ratio and its interval
    users: int
    seeds: int
    state_bytes: int


def of(table: Mapping[str, Any]) -> Headline | None:
    """The longest history of the table `length` that both kinds of run have."""
    rows = [r for r in table["rows"] if r.get("recall_of_full") is not None]
    if not rows:
        return None
    row = max(rows, key=lambda r: r["history"])
    quality = {
        name: tuple(row[f"{metric}_of_full{end}"] for end in ("", "_low", "_high"))
        for name, metric in (("Recall@10", "recall"), ("NDCG@10", "ndcg"))
    }
    seeds = len(table["protocol"]["seeds"])
    return Headline(
        row["history"], row["flops_of_full"], quality, row["users"], seeds, row["state_bytes"]
    )


def sentence(found: Headline) -> str:
    """`x % of the compute at y % of the quality`, the interval of the quality behind it."""
    quality = span(found.quality["Recall@10"])
    return f"{percent(found.compute)} of the compute at {quality} of the quality"


def tiles(found: Headline) -> list[tuple[str, str, str]]:
    """Number, what it is, where it is from."""
    at = f"history of {found.history:,} events, against full history of the same events"
    made = [(percent(found.compute), "FLOPs of a request", f"{at}; counted from the layout")]
    who = (
        f"{found.users:,} users, {found.seeds} seeds"
        if found.seeds > 1
        else f"{found.users:,} users"
    )
    for name, value in found.quality.items():
        low, high = (100 * v for v in value[1:])
        made.append(
            (
                percent(value[0]),
                f"{name} of full history",
                f"95 %: {low:.1f} to {high:.1f} %; {who}",
            )
        )
    made.append((f"{found.state_bytes:,} B", "kept per user", "K and V of the tokens, float32"))
    return made


def paper_row(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The benchmark's compressed request at 5 segments x 4 tokens, longest history, one user."""
    found = [
        r
        for r in rows
        if r["method"] == "compressed"
        and (r["segments"], r["tokens"]) == PAPER
        and r["batch"] == 1
        and r.get("time_ratio") is not None
    ]
    return max(found, key=lambda r: r["history"], default=None)


def bench_tiles(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Compute, time and training step of the paper's shape; none where it was not measured."""
    row = paper_row(rows)
    if row is None:
        return []
    at = f"{row['history']:,} events, {PAPER[0]} segments x {PAPER[1]} tokens"
    low, high = row["time_ratio_quartiles"]
    made = [
        (percent(row["flops_ratio_analytic"]), "FLOPs of a request", f"{at}; counted from layout"),
        (
            percent(row["time_ratio"]),
            "wall time of a request",
            f"{at}; {MEASURED} {100 * low:.1f} to {100 * high:.1f} %",
        ),
    ]
    full = next(
        r
        for r in rows
        if r["method"] == "full"
        and (r["history"], r["segments"], r["batch"]) == (row["history"], row["segments"], 1)
    )
    if row.get("train_rounds_ms") and full.get("train_rounds_ms"):
        both = zip(row["train_rounds_ms"], full["train_rounds_ms"], strict=True)
        low, middle, high = np.percentile([a / b for a, b in both], (25, 50, 75))
        made.append(
            (
                percent(middle),
                "time of a training step",
                f"{at}; {MEASURED} {100 * low:.1f} to {100 * high:.1f} %",
            )
        )
    return made


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def span(value: tuple[float, float, float]) -> str:
    return "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * v for v in value))
