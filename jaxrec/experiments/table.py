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
from typing import Any

import jax

from jaxrec.errors import WorkdirError
from jaxrec.evaluation.intervals import Interval
from jaxrec.experiments import settings
from jaxrec.runtime import environment, workdir

Values = dict[str, Any]
SHARE = "_of_full"  # columns that are shares of full history end so


@dataclasses.dataclass(frozen=True)
class Cell:
    """A row that can be made: its name, and the function that makes its columns."""

    name: str
    make: Callable[[], Values]


@dataclasses.dataclass(frozen=True)
class Line:
    """Points of a plot: rows of `series` by column `x` and columns `y`, `y_low`, `y_high`."""

    title: str
    x: str
    y: str
    x_label: str
    y_label: str
    series: str = "series"
    kind: str = "line"  # line | bar | heat (x by series, y is the colour)
    log: bool = False  # x by powers of two
    zero: bool = False  # the axis of y starts at 0


@dataclasses.dataclass(frozen=True)
class Experiment:
    """question, method and reading are sentences for the page."""

    name: str
    title: str
    question: str
    method: str
    reading: str
    cells: Sequence[Cell]
    plots: Sequence[Line]


def spread(name: str, value: Interval) -> Values:
    """An interval as columns."""
    return {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}


def result(
    experiment: Experiment,
    rows: Sequence[Values],
    config: settings.ExperimentsConfig,
    protocol: Mapping[str, Any],
    command: str,
) -> Values:
    """The JSON value of a table, with what is needed to repeat it."""
    found = environment.describe()
    return plain(
        {
            "experiment": experiment.name,
            "title": experiment.title,
            "question": experiment.question,
            "method": experiment.method,
            "reading": experiment.reading,
            "command": command,
            "config_digest": settings.digest(config),
            "config": settings.record(config),
            "protocol": dict(protocol),
            "machine": {
                "devices": [str(d.device_kind) for d in jax.devices()],
                "cpu_count": len(os.sched_getaffinity(0)),
                "platform": f"{platform.system()} {platform.machine()}",
            },
            "versions": {"python": found["python"], **found["packages"]},
            "git": found["git"],
            "time": found["time"],
            "plots": [dataclasses.asdict(plot) for plot in experiment.plots],
            "rows": list(rows),
        }
    )


def plain(value: Any) -> Any:
    """`value` as JSON: NumPy numbers as Python's, those that are none as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(folder: pathlib.Path, table: Values) -> None:
    """`<experiment>.json`, `.csv` and `.md` in a folder."""
    name = table["experiment"]
    workdir.write_text(folder / f"{name}.json", json.dumps(table, indent=1) + "\n")
    workdir.write_text(folder / f"{name}.csv", as_csv(table["rows"]))
    text = f"# {table['title']}\n\n{table['question']}\n\n{markdown(table['rows'])}\n"
    text += f"\nMade by\n\n```\n{table['command']}\n```\n"
    workdir.write_text(folder / f"{name}.md", text)


def read(file: pathlib.Path) -> Values:
    """A table that `write` made; raises WorkdirError for anything else."""
    try:
        value = json.loads(file.read_text())
        missing = [k for k in ("experiment", "rows", "config", "command") if k not in value]
    except (OSError, ValueError, TypeError) as error:
        raise WorkdirError(f"{file}: no table of an experiment ({error})") from error
    if missing:
        raise WorkdirError(f"{file}: no table of an experiment, it has no {missing[0]!r}")
    return value


def columns(rows: Sequence[Values]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def as_csv(rows: Sequence[Values]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns(rows), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
    return stream.getvalue()


def grid(rows: Sequence[Values]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells for people: intervals in one cell, lists left out."""
    keys = columns(rows)
    shown = [k for k in keys if not k.endswith(("_low", "_high"))]
    shown = [k for k in shown if not any(isinstance(row.get(k), list) for row in rows)]
    lines = []
    for row in rows:
        cells = []
        for key in shown:
            show = share if key.endswith(SHARE) else number
            text = show(row.get(key))
            if row.get(f"{key}_low") is not None:
                text += f" [{show(row[f'{key}_low'])}, {show(row[f'{key}_high'])}]"
            cells.append(text)
        lines.append(cells)
    return [key.replace("_", " ") for key in shown], lines


def share(value: Any) -> str:
    return "" if value is None else f"{value:.1%}"


def number(value: Any) -> str:
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
    """Rows in groups of one `part`: tables of their own where an experiment has several."""
    found: dict[Any, list[Values]] = {}
    for row in rows:
        found.setdefault(row.get("part"), []).append(row)
    return list(found.values())


def markdown(rows: Sequence[Values]) -> str:
    tables = []
    for part in parts(rows):
        heads, lines = grid(part)
        marks = ["---"] * len(heads)
        tables.append("\n".join(f"| {' | '.join(line)} |" for line in [heads, marks, *lines]))
    return "\n\n".join(tables)
