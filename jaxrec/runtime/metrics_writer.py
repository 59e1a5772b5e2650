"""Metrics of a run: what writes them, and metrics.jsonl, the record of them."""

import json
import logging
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Protocol

from jaxrec.errors import DataError
from jaxrec.runtime import workdir
from jaxrec.types import Json
from jaxrec.untrusted import json_objects

VALIDATION = "validation/"  # prefix of keys
DAMAGED = ".damaged"  # suffix of the file that keeps unreadable lines

MAX_LINE = 1 << 20  # bytes; longer lines cannot be read

log = logging.getLogger(__name__)


class MetricWriter(Protocol):
    """Where metrics of a training go: a file, TensorBoard, a tracking server."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the values after `step` steps, by name (train/loss, validation/ndcg@10)."""
        ...

    def close(self, finished: bool) -> None:
        """Nothing follows. finished: the training has ended; else it may be continued later."""
        ...


class JsonLines:
    """Appends JSON lines to `<folder>/metrics.jsonl`; each is on disk when `write` returns.

    folder: the run's. start: the step that the run continues from. validated: the last step whose
    validation is known (default: `start`). Later lines are dropped first, since they will be
    written again: the file is the trace of one run. `damaged` is the number of lines that could
    not be read; they are kept in `metrics.jsonl.damaged`.
    """

    def __init__(self, folder: pathlib.Path, start: int = 0, validated: int | None = None):
        path = folder / workdir.METRICS
        self.damaged = rewind(path, start, start if validated is None else validated)
        self._file = open(path, "a")  # noqa: SIM115 (closed in `close`)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """`{"step": step, **values}`; a value that is not finite becomes null."""
        plain = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **plain}, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self, finished: bool = True) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: pathlib.Path) -> list[Json]:
    """The lines of a metrics file; unreadable ones are left out.

    A warning names them, but for a torn last line (a killed process).
    """
    rows, damaged = _read(path)
    for number in damaged:
        log.warning("%s: line %d cannot be read and is dropped", path, number)
    return rows


def rewind(path: pathlib.Path, step: int, validated: int) -> int:
    """Drops the lines of steps after `step`, validations after step `validated`.

    Unreadable lines go to `<name>.damaged`; returns how many. A torn last line is dropped.
    """
    if not path.exists():
        return 0

    def keep(row: Json) -> bool:
        validation = any(key.startswith(VALIDATION) for key in row)
        return bool(row["step"] <= (validated if validation else step))

    rows, damaged = _read(path)
    if damaged:
        with open(path.with_name(path.name + DAMAGED), "ab") as file:
            file.writelines(line + b"\n" for line in damaged.values())
    text = "".join(json.dumps(row) + "\n" for row in rows if keep(row))
    if text.encode() != path.read_bytes():
        workdir.write_text(path, text)
    return len(damaged)


def _read(path: pathlib.Path) -> tuple[list[Json], dict[int, bytes]]:
    """(rows, number -> unreadable line); a torn last line is in neither."""
    rows, damaged = [], {}
    *lines, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate([*lines, torn] if torn else lines, 1):
        try:
            rows.append(_row(line))
        except ValueError:
            if number <= len(lines):
                damaged[number] = line
    return rows, damaged


def _row(line: bytes) -> Json:
    """A line's values: a step, and numbers or nulls. Raises ValueError for any other line."""
    if len(line) > MAX_LINE:
        raise ValueError("the line is too long")
    row = json_objects.parse(line, "line", DataError)
    for key, value in row.items():
        if value is not None:
            json_objects.check(value, float, key, DataError)
    json_objects.get(row, "step", int, "line", DataError)
    return row
