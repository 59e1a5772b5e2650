"""The rows of the benchmark as Markdown tables and plots."""

import collections
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxrec.benchmark import drawing
from jaxrec.benchmark.grid_config import METHODS
from jaxrec.types import Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Json]
Points = list[tuple[int, float]]  # (history, value)
HEADS = (
    "method",
    "tokens",
    "FLOPs, analytic",
    "FLOPs, XLA",
    "time [quartiles]",
    "time / FLOPs (XLA)",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "users/s",
    "peak MB",
    "state bytes",
    "training step",
    "status",
)
# name of the file, column, factor, axis
PLOTS = (
    ("latency", "p50_ms", 1, "median of a request, ms"),
    ("flops", "flops_analytic", 1e-6, "MFLOP of a request, analytic"),
    ("memory", "peak_bytes", 1e-6, "peak memory of a request, MB"),
    ("state", "state_bytes", 1e-3, "kept per user, kB"),
    ("training", "train_step_ms", 1, "training step, ms"),
)
SHARES = "Shares are of full history in the same shape; 100 % is the full row."


def number(value: float | None, spec: str = ".3g") -> str:
    """A formatted number; empty where it was not measured.

    >>> number(1234.5, ",.0f"), number(None)
    ('1,234', '')
    """
    return "" if value is None else format(value, spec)


def cells(row: Json) -> list[str]:
    """One row under `HEADS`; FLOPs, time and training steps as shares of full history."""
    flops, time = row.get("flops_ratio_xla"), row.get("time_ratio")
    spread = row.get("time_ratio_quartiles")
    share = f"{time:.1%} [{spread[0]:.1%}, {spread[1]:.1%}]" if time and spread else ""
    peak = row["peak_bytes"]
    train = row.get("train_ratio")
    return [
        row["method"],
        str(row["tokens"] or ""),
        number(row.get("flops_ratio_analytic"), ".1%"),
        number(flops, ".1%"),
        share,
        number(time / flops if time and flops else None, ".2f"),
        *(number(row[f"p{q}_ms"]) for q in (50, 90, 99)),
        number(row["users_per_s"], ",.0f"),
        number(None if peak is None else peak / 1e6),
        number(row["state_bytes"], ","),
        number(row["train_step_ms"], ".0f") + (f" ms ({train:.0%})" if train else ""),
        row["status"],
    ]


def hardware(report: Json) -> str:
    """Devices and versions of a report in one sentence."""
    machine = report["machine"]
    return (
        f"{', '.join(machine['devices'])}, {machine['cpu_count']} CPUs, jax {machine['jax']}, "
        f"Python {machine['python']}, compute type {report['config']['model']['dtype']}."
    )


def groups(rows: Rows) -> dict[str, list[Json]]:
    """Rows that were timed in turn, by a title that names shape and batch size."""
    by_title: dict[str, list[Json]] = {}
    for row in rows:
        history, segments = row["history"], row["segments"]
        name = f"{history:,} events, {segments} segments of {history // segments}"
        by_title.setdefault(f"{name}, batch {row['batch']}", []).append(row)
    return by_title


def markdown(report: Json) -> str:
    """The whole report as Markdown."""
    text = ["# What compression saves", "", f"`{report['command']}`", ""]
    text += [hardware(report), "", report["timing"], "", SHARES]
    for name, rows in groups(report["rows"]).items():
        text += ["", f"## {name}", "", f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS)]
        text += [f"| {' | '.join(cells(row))} |" for row in rows]
        text += [f"\n{row['method']}: {row['error']}" for row in rows if row["error"]]
    return "\n".join(text) + "\n"


def figures(rows: Rows) -> dict[str, "Figure"]:
    """`PLOTS` by name, against history with a line per method; plots without a point are left out.

    Raises ConfigError where matplotlib is not installed.
    """
    drawn = {}
    for name, column, factor, label in PLOTS:
        lines = lines_of(rows, column)
        if lines:
            scaled = {
                method: [(history, factor * value) for history, value in points]
                for method, points in lines.items()
            }
            drawn[name] = _figure(scaled, label)
    return drawn


def plot(rows: Rows, folder: pathlib.Path) -> None:
    """Writes `figures` as PNG files. Raises ConfigError where matplotlib is not installed."""
    for name, figure in figures(rows).items():
        drawing.save(figure, folder / f"{name}.png")


def _figure(lines: dict[str, Points], label: str) -> "Figure":
    """One plot, both axes logarithmic."""
    with drawing.style() as matplotlib:
        figure: Figure = matplotlib.figure.Figure(figsize=(5.6, 4.2))
        axes = figure.subplots()
        for method, points in lines.items():
            number = METHODS.index(method)
            axes.plot(
                [history for history, _ in points],
                [value for _, value in points],
                color=drawing.COLOURS[number],
                marker=drawing.MARKS[number],
                markersize=5,
                linewidth=1.6,
                label=method.replace("_", " "),
            )
        axes.set(xlabel="events of the history", yscale="log")
        axes.set_xscale("log", base=2)
        ticks = sorted({history for points in lines.values() for history, _ in points})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_tick))
        axes.minorticks_off()
        axes.set_title(label, loc="left", fontsize=11, fontweight="bold")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _tick(value: float, _: int) -> str:
    return f"{value:,.6g}"


def lines_of(rows: Rows, column: str) -> dict[str, Points]:
    """Points per method for the smallest batch size and the most tokens.

    Only shapes with the most common segment length are used: other windows would put steps into
    the lines. Of several shapes with one history, the one with most segments is used.
    """
    batch = min((row["batch"] for row in rows), default=0)
    shapes = {(row["history"], row["segments"]) for row in rows}
    windows = collections.Counter(history // segments for history, segments in shapes)
    most = max(windows.values(), default=0)
    common = {window for window, count in windows.items() if count == most}
    best: dict[str, dict[int, tuple[tuple[int, int], float]]] = {}
    for row in rows:
        history, segments = row["history"], row["segments"]
        if row["batch"] != batch or row[column] is None or history // segments not in common:
            continue
        points, order = best.setdefault(row["method"], {}), (segments, row["tokens"])
        if history not in points or order > points[history][0]:
            points[history] = (order, row[column])
    return {
        method: [(history, best[method][history][1]) for history in sorted(best[method])]
        for method in METHODS
        if method in best
    }
