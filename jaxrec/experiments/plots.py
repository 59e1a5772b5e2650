"""Plots of an experiment's table, drawn by matplotlib (`pip install jaxrec[plot]`)."""

import collections
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jaxrec.benchmark import drawing
from jaxrec.benchmark.drawing import COLOURS, MARKS
from jaxrec.experiments.result_table import plot_files
from jaxrec.types import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Json]
LETTERS = 56  # characters of bar labels that fit side by side


def check() -> None:
    """Raises ConfigError where plots cannot be drawn; call it before hours of work."""
    with drawing.style():
        pass


def draw(plot: Json, rows: Rows) -> "Figure":
    """The figure of one plot (a `result_table.Line` as JSON) of a table's rows.

    Raises ConfigError where matplotlib is not installed.
    """
    points = [r for r in rows if r.get(plot["x"]) is not None and r.get(plot["y"]) is not None]
    with drawing.style() as matplotlib:
        figure: Figure = matplotlib.figure.Figure(figsize=(5.6, 3.6))
        axes = figure.subplots()
        KINDS[plot["kind"]](axes, plot, points)
        axes.set_title(plot["title"], loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel(plot["x_label"])
        if plot["kind"] != "heat":
            axes.set_ylabel(plot["y_label"])
            if plot["zero"] and axes.dataLim.y0 >= 0:  # what lies below zero is shown
                axes.set_ylim(bottom=0)
    return figure


def _series(plot: Json, rows: Rows) -> dict[str, list[Json]]:
    """Rows by the name of their series."""
    by_name: dict[str, list[Json]] = {}
    for row in rows:
        by_name.setdefault(str(row.get(plot["series"], "")), []).append(row)
    return by_name


def _errors(rows: Rows, y: str) -> list[list[float]] | None:
    """Lengths of the error bars below and above; None without intervals."""
    if any(r.get(f"{y}_low") is None or r.get(f"{y}_high") is None for r in rows):
        return None
    below = [max(0.0, r[y] - r[f"{y}_low"]) for r in rows]
    return [below, [max(0.0, r[f"{y}_high"] - r[y]) for r in rows]]


def _lines(axes: "Axes", plot: Json, rows: Rows) -> None:
    x, y = plot["x"], plot["y"]
    series = _series(plot, rows)
    for number, (name, points) in enumerate(series.items()):
        points = sorted(points, key=lambda r: r[x])
        place = [r[x] for r in points]
        if plot["log"]:  # shifted a little, so that intervals do not cover each other
            place = [p * (1 + 0.015 * (number - (len(series) - 1) / 2)) for p in place]
        axes.errorbar(
            place,
            [r[y] for r in points],
            yerr=_errors(points, y),
            color=COLOURS[number % len(COLOURS)],
            marker=MARKS[number % len(MARKS)],
            markersize=5,
            linewidth=1.6,
            elinewidth=1,
            capsize=3,
            label=name,
        )
    ticks = sorted({r[x] for r in rows})
    if plot["log"]:
        axes.set_xscale("symlog" if ticks and min(ticks) <= 0 else "log", base=2)
    if 0 < len(ticks) <= 10 and (plot["log"] or all(isinstance(tick, int) for tick in ticks)):
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9)


def _bars(axes: "Axes", plot: Json, rows: Rows) -> None:
    x, y = plot["x"], plot["y"]
    series = _series(plot, rows)
    labels = list(dict.fromkeys(str(r[x]) for r in rows))
    # bars of a label stand side by side around it; a label need not have one of every series
    beside = collections.Counter(str(r[x]) for points in series.values() for r in points)
    width = 0.8 / max(beside.values(), default=1)
    drawn: collections.Counter[str] = collections.Counter()
    for number, (name, points) in enumerate(series.items()):
        place = []
        for at in (str(r[x]) for r in points):
            place.append(labels.index(at) + (drawn[at] - (beside[at] - 1) / 2) * width)
            drawn[at] += 1
        axes.bar(
            place,
            [r[y] for r in points],
            width * 0.92,
            yerr=_errors(points, y),
            color=COLOURS[number % len(COLOURS)],
            error_kw={"elinewidth": 1, "capsize": 3},
            label=name,
        )
    axes.set_xticks(range(len(labels)), labels)
    if sum(len(label) for label in labels) > LETTERS:  # names of many bars run into each other
        axes.tick_params("x", rotation=60)
        longest = max(len(label) for label in labels)
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.set_size_inches(max(5.6, 0.4 * len(labels)), 3.6 + 0.075 * longest)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.grid(False, axis="x")
    if len(series) > 1:  # above the bars, in rows of their own that are no wider than the plot
        columns = len(series) if len(series) < 4 else 2
        lines = -(-len(series) // columns)
        axes.set_ylim(top=axes.get_ylim()[1] * (1.05 + 0.1 * lines))
        axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=columns)


def _heat(axes: "Axes", plot: Json, rows: Rows) -> None:
    if not rows:
        return
    series = _series(plot, rows)
    across = list(dict.fromkeys(r[plot["x"]] for r in rows))
    table = [[float("nan")] * len(across) for _ in series]
    for line, points in zip(table, series.values(), strict=True):
        for row in points:
            line[across.index(row[plot["x"]])] = row[plot["y"]]
    image = axes.imshow(table, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(across)), [str(a) for a in across])
    axes.set_yticks(range(len(series)), list(series))
    axes.grid(False)
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.colorbar(image, ax=axes, label=plot["y_label"])


KINDS: dict[str, Callable[["Axes", Json, Rows], None]] = {
    "line": _lines,
    "bar": _bars,
    "heat": _heat,
}


def figures(table: Json) -> dict[str, "Figure"]:
    """The plots of a table by file name."""
    drawn = (draw(plot, table["rows"]) for plot in table["plots"])
    return dict(zip(plot_files(table), drawn, strict=True))


def write(folder: pathlib.Path, table: Json) -> None:
    """Writes every plot of a table as PNG."""
    for name, figure in figures(table).items():
        drawing.save(figure, folder / name)
