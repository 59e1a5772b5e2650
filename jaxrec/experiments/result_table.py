"""A table of an experiment: rows made one by one, written as JSON, CSV and Markdown."""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax

from jaxrec.errors import WorkdirError
from jaxrec.evaluation.intervals import Interval
from jaxrec.experiments import settings
from jaxrec.runtime import environment, workdir
from jaxrec.types import Json
from jaxrec.untrusted import json_objects

Values: TypeAlias = Json  # columns of a row by name
# what a table has, of what type
TABLE: Mapping[str, type[object]] = {
    "experiment": str,
    "rows": list,
    "config": dict,
    "command": str,
}
INTERVALS = "95 % intervals"
# columns that are shares, of full history, of what it adds, or of a shorter training, end so
SHARES = ("_of_full", "_of_fewer", "_closed", "_without_gap")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A row before it is made: its name and the function that makes its columns.

    prepare: trains and evaluates the row's own runs, without those that it is compared with, so
    that several processes can share the work; None: `make` does.
    """

    name: str
    make: Callable[[], Values]
    prepare: Callable[[], object] | None = None


@dataclasses.dataclass(frozen=True)
class Line:
    """One plot of a table: column `y` against column `x`, a line per value of column `series`.

    Columns `y_low` and `y_high`, where they exist, are error bars. kind: line, bar, or heat
    (x by series, y is the colour). log: x by powers of two. zero: the y axis starts at 0.
    """

    title: str
    x: str
    y: str
    x_label: str
    y_label: str
    series: str = "series"
    kind: str = "line"
    log: bool = False
    zero: bool = False


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A table to be made; question, method and reading are sentences for the page.

    reading: how to read it, also as a function of the rows that were made. brackets: what numbers
    in brackets are.
    """

    name: str
    title: str
    question: str
    method: str
    reading: str | Callable[[Sequence[Values]], str]
    cells: Sequence[Cell]
    plots: Sequence[Line]
    brackets: str = INTERVALS


def spread(name: str, value: Interval) -> Values:
    """An interval as columns.

    >>> spread("recall", Interval(0.2, 0.1, 0.3))
    {'recall': 0.2, 'recall_low': 0.1, 'recall_high': 0.3}
    """
    return {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}


def result(
    experiment: Experiment,
    rows: Sequence[Values],
    config: settings.ExperimentsConfig,
    protocol: Mapping[str, Any],
    command: str,
) -> Json:
    """The JSON value of a table, with what is needed to repeat it."""
    program = environment.describe()
    reading = experiment.reading
    return plain(
        {
            "experiment": experiment.name,
            "title": experiment.title,
            "question": experiment.question,
            "method": experiment.method,
            "reading": reading if isinstance(reading, str) else reading(plain(rows)),
            "brackets": experiment.brackets,
            "command": command,
            "config_digest": settings.digest(config),
            "config": settings.record(config),
            "protocol": dict(protocol),
            "machine": {
                "devices": [str(d.device_kind) for d in jax.devices()],
                "cpu_count": len(os.sched_getaffinity(0)),
                "platform": f"{platform.system()} {platform.machine()}",
            },
            "versions": {"python": program["python"], **program["packages"]},
            "git": program["git"],
            "time": program["time"],
            "plots": [dataclasses.asdict(plot) for plot in experiment.plots],
            "rows": list(rows),
        }
    )


def plain(value: Any) -> Any:
    """`value` as JSON: NumPy values as Python's, NaN and infinity as null.

    >>> plain({"a": (1, float("nan"))})
    {'a': [1, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(folder: pathlib.Path, table: Json) -> None:
    """Writes `<experiment>.json`, `.csv` and `.md` into a folder."""
    name = table["experiment"]
    workdir.write_text(folder / f"{name}.json", json.dumps(table, indent=1) + "\n")
    workdir.write_text(folder / f"{name}.csv", as_csv(table["rows"]))
    workdir.write_text(folder / f"{name}.md", page(table))


def page(table: Json) -> str:
    """A table as a Markdown page with its plots and its command."""
    plots = zip(table["plots"], plot_files(table), strict=True)
    sections = [
        f"# {table['title']}",
        table["question"],
        markdown(table["rows"]),
        *(f"![{plot['title']}]({file})" for plot, file in plots),
        f"Made by\n\n```\n{table['command']}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def plot_files(table: Json) -> list[str]:
    """File names of a table's plots.

    >>> plot_files({"experiment": "length", "plots": [{}, {}]})
    ['length.png', 'length_2.png']
    """
    name, count = table["experiment"], len(table["plots"])
    return [f"{name}.png" if not i else f"{name}_{i + 1}.png" for i in range(count)]


def read(file: pathlib.Path) -> Json:
    """A table that `write` made; raises WorkdirError for anything else."""

    def refuse(text: str) -> WorkdirError:
        return WorkdirError(f"{text}; it is no table of an experiment")

    value = json_objects.read(file, refuse)
    for key, kind in TABLE.items():
        json_objects.get(value, key, kind, str(file), refuse)
    for row in value["rows"]:
        json_objects.check(row, dict, f"{file}: damaged: a row", refuse)
    return value


def columns(rows: Sequence[Values]) -> list[str]:
    """Names of all columns, in the order in which they first occur."""
    return list(dict.fromkeys(key for row in rows for key in row))


def as_csv(rows: Sequence[Values]) -> str:
    """The rows as CSV; lists are JSON in one cell."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns(rows), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
    return stream.getvalue()


def grid(rows: Sequence[Values]) -> tuple[list[str], list[list[str]]]:
    """Heads and formatted cells: an interval is in one cell with its mean, lists are left out."""
    keys = columns(rows)
    shown = [k for k in keys if not k.endswith(("_low", "_high"))]
    shown = [k for k in shown if not any(isinstance(row.get(k), list) for row in rows)]
    lines = []
    for row in rows:
        cells = []
        for key in shown:
            show = share if key.endswith(SHARES) else number
            text = show(row.get(key))
            if row.get(f"{key}_low") is not None:
                text += f" [{show(row[f'{key}_low'])}, {show(row[f'{key}_high'])}]"
            cells.append(text)
        lines.append(cells)
    return [key.replace("_", " ") for key in shown], lines


def share(value: float | None) -> str:
    """A ratio as a percentage; empty where there is none."""
    return "" if value is None else f"{value:.1%}"


def number(value: float | str | None) -> str:
    """A value as people read it.

    >>> number(12345), number(0.25), number(1e-5), number(None)
    ('12,345', '0.2500', '1.0e-05', '')
    """
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"


def parts(rows: Sequence[Values]) -> list[list[Values]]:
    """Rows grouped by column `part`: an experiment may have several tables."""
    by_part: dict[str | None, list[Values]] = {}
    for row in rows:
        by_part.setdefault(row.get("part"), []).append(row)
    return list(by_part.values())


def markdown(rows: Sequence[Values]) -> str:
    """One Markdown table per part."""
    tables = []
    for part in parts(rows):
        heads, lines = grid(part)
        marks = ["---"] * len(heads)
        tables.append("\n".join(f"| {' | '.join(line)} |" for line in [heads, marks, *lines]))
    return "\n\n".join(tables)
