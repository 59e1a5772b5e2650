"""What a search leaves: the table of trials, the best recipe, a plot."""

import ast
import copy
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxrec.config import Config, lookup
from jaxrec.data.advice import put
from jaxrec.runtime import recipe_text, workdir
from jaxrec.runtime.progress import clock, say

BEST, TABLE, VALUES, PLOT = "best.py", "trials.md", "trials.json", "trials.png"


class Row(NamedTuple):
    """A trial.

    kind: finished, stopped, diverged, out of memory, or invalid: settings that do not fit
    together. value, step: best validation and where. folder: below trials/. settings: dotted key
    -> value as Python text. note: why it ended so.
    """

    number: int
    kind: str
    value: float | None
    step: int | None
    seconds: float
    folder: str
    settings: Mapping[str, str]
    note: str


def trained(rows: Sequence[Row]) -> list[Row]:
    """The trials whose settings fit together."""
    return [row for row in rows if row.kind != "invalid"]


def best(rows: Sequence[Row]) -> Row | None:
    """The finished trial with the highest value, the first of equal ones."""
    finished = [row for row in rows if row.kind == "finished" and row.value is not None]
    return max(finished, key=lambda row: (row.value, -row.number), default=None)


def write(config: Config, folder: pathlib.Path, rows: Sequence[Row]) -> None:
    """The table as Markdown and JSON, and the best recipe; files are replaced as a whole."""
    workdir.write_text(folder / TABLE, f"{table(config, rows)}\n\n{counted(rows)}\n")
    value = {"metric": config.train.metric, "trials": [row._asdict() for row in rows]}
    workdir.write_text(folder / VALUES, json.dumps(value, indent=2) + "\n")
    top = best(rows)
    if top is None:
        return
    path = folder / BEST
    found = f"{config.train.metric} {top.value:.4f}"
    text = recipe_text.text(
        path,
        chosen(config, top),
        title=f"The best of {len(trained(rows))} trials of `jaxrec tune`, trial {top.number}.",
        about=[
            f"Data: {config.data.dataset} {config.data.path}".rstrip() + ".",
            "Layout, model and training: as below; a comment marks what was searched.",
            "Hardware and cost: those of the search (trials.md).",
            f"Quality: validation {found} at step {top.step}, the highest of the trials and so "
            "too high; the test events were not looked at.",
        ],
        reasons={key: _reason(rows, key) for key in top.settings},
    )
    workdir.write_text(path, text)


def chosen(config: Config, row: Row) -> Config:
    """The configuration of a trial."""
    config = copy.deepcopy(config)
    for key, text in row.settings.items():
        put(config, key, ast.literal_eval(text))
    return config


def table(config: Config, rows: Sequence[Row]) -> str:
    """Markdown, the best trial first."""
    keys = list(rows[0].settings) if rows else []
    ordered = sorted(
        trained(rows), key=lambda row: (row.kind != "finished", -(row.value or 0), row.number)
    )
    head = ["trial", f"validation {config.train.metric}", "at step", "ended", "time", *keys]
    lines = [head, ["---"] * len(head)]
    for row in ordered:
        value = "" if row.value is None else f"{row.value:.4f}"
        step = "" if row.step is None else f"{row.step:,}"
        cells = [str(row.number), value, step, row.kind, clock(row.seconds)]
        lines.append([*cells, *(_short(row.settings[key]) for key in keys)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def counted(rows: Sequence[Row]) -> str:
    """How many trials there were, by how they ended."""
    kinds = [row.kind for row in trained(rows)]
    invalid = len(rows) - len(kinds)
    parts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
    text = f"{len(kinds)} trials: {', '.join(parts)}"
    return text + (f"; {invalid} settings did not fit together and cost nothing" if invalid else "")


def summary(config: Config, folder: pathlib.Path, rows: Sequence[Row]) -> str:
    """What the search prints at its end."""
    top = best(rows)
    lines = [table(config, rows), "", counted(rows)]
    if top is None:
        return "\n".join(
            [*lines, "No trial finished: there is no best one. See trials.json for why"]
        )
    recipe, run = folder / BEST, folder / "trials" / top.folder
    settings = ", ".join(f"{key}={_short(text)}" for key, text in top.settings.items())
    return "\n".join(
        [
            *lines,
            f"Best: trial {top.number}, validation {config.train.metric} {top.value:.4f} with "
            f"{settings}: {recipe}",
            "Validation chose; the test was not looked at. The best of many is too high: evaluate",
            f"  jaxrec evaluate --workdir={run}",
            "and train it anew, with another seed or more steps, by",
            f"  jaxrec train --config={recipe} --workdir=runs/best --config.seed=1",
        ]
    )


def plot(config: Config, folder: pathlib.Path, rows: Sequence[Row]) -> None:
    """A PNG of the trials in their order and by each searched key; needs matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        say(f"no plot ({error}): pip install 'jaxrec[plot]'")
        return
    shown = [row for row in rows if row.value is not None]
    if not shown:
        return
    keys = list(shown[0].settings)
    figure = Figure(figsize=(3.4 * (len(keys) + 1), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(keys) + 1, squeeze=False)[0]
    for axis, key in zip(axes, ["trial", *keys], strict=True):
        for kind, mark in (("finished", "o"), ("stopped", "x")):
            some = [row for row in shown if row.kind == kind]
            place = [row.number if key == "trial" else _place(shown, row, key) for row in some]
            axis.plot(place, [row.value for row in some], mark, label=kind)
        axis.set(xlabel=key, ylabel=f"validation {config.train.metric}")
        axis.grid(alpha=0.3)
        if key != "trial" and not _numeric(shown, key):
            labels = sorted({row.settings[key] for row in shown})
            axis.set_xticks(range(len(labels)), [_short(label) for label in labels])
        elif key != "trial" and isinstance(lookup(config, key), float) and _wide(shown, key):
            axis.set_xscale("log")
    axes[0].legend()
    figure.savefig(folder / PLOT, dpi=110)


def _numeric(rows: Sequence[Row], key: str) -> bool:
    values = [ast.literal_eval(row.settings[key]) for row in rows]
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _wide(rows: Sequence[Row], key: str) -> bool:
    values = [float(row.settings[key]) for row in rows]
    return min(values) > 0 and max(values) > 20 * min(values)


def _place(rows: Sequence[Row], row: Row, key: str) -> float:
    if _numeric(rows, key):
        return float(row.settings[key])
    return float(sorted({other.settings[key] for other in rows}).index(row.settings[key]))


def _short(text: str) -> str:
    value = ast.literal_eval(text)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _reason(rows: Sequence[Row], key: str) -> str:
    values = list(dict.fromkeys(_short(row.settings[key]) for row in rows))
    shown = ", ".join(values[:8]) + (", ..." if len(values) > 8 else "")
    return f"searched: {shown}"
