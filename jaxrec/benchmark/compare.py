"""Compares two runs of the benchmark and says which differences are noise.

    python -m jaxrec.benchmark.compare runs/before runs/after

Cells are paired by method, history, segments, tokens and batch. A ratio is B's median over A's,
with a 95 % bootstrap interval over the rounds of both runs; it is `within noise` where the
interval contains 1.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from jaxrec.errors import DataError
from jaxrec.runtime import workdir
from jaxrec.types import Json
from jaxrec.untrusted import json_objects

CELL = ("method", "history", "segments", "tokens", "batch")
KINDS = {"request": "rounds_ms", "training step": "train_rounds_ms"}


def load(folder: str) -> list[Json]:
    """Rows of the last report in a benchmark's folder. Raises DataError without one."""
    path = pathlib.Path(folder) / "report.json"
    if not path.is_file():
        raise DataError(
            f"{path}: not there; make it with python -m jaxrec.benchmark --output={folder}"
        )

    def refuse(text: str) -> DataError:
        return DataError(f"{text}; it is not a report of jaxrec.benchmark")

    rows: list[Json] = json_objects.get(
        json_objects.read(path, refuse), "rows", list, str(path), refuse
    )
    with json_objects.taken_apart(path, refuse):
        for row in rows:
            hash(_cell(row))
            for name in KINDS.values():
                np.asarray(row.get(name) or [], np.float64)
    return rows


def _cell(row: Json) -> tuple[object, ...]:
    return tuple(row[name] for name in CELL)


def ratio(
    before: Sequence[float], after: Sequence[float], resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """(median of after / median of before, low, high) with a 95 % bootstrap interval."""
    rng = np.random.default_rng(seed)
    medians = [
        np.median(rng.choice(np.asarray(values), (resamples, len(values))), axis=1)
        for values in (before, after)
    ]
    low, high = np.percentile(medians[1] / medians[0], (2.5, 97.5))
    return float(np.median(after) / np.median(before)), float(low), float(high)


def compare(before: Sequence[Json], after: Sequence[Json]) -> list[Json]:
    """One line per cell and kind of time that both runs have.

    Raises DataError when no cell is in both.
    """
    lines: list[Json] = []
    after_by_cell = {_cell(row): row for row in after}
    for row in before:
        other = after_by_cell.get(_cell(row))
        if other is None:
            continue
        for kind, name in KINDS.items():
            if not row.get(name) or not other.get(name):
                continue
            middle, low, high = ratio(row[name], other[name])
            lines.append(
                {
                    **{key: row[key] for key in CELL},
                    "kind": kind,
                    "ratio": middle,
                    "low": low,
                    "high": high,
                    "within_noise": low <= 1 <= high,
                }
            )
    if not lines:
        raise DataError("no cell was measured in both: compare runs of the same shapes")
    return lines


def markdown(lines: Sequence[Json]) -> str:
    """The table, and quartiles over all cells."""
    text = [
        f"| {' | '.join(CELL)} | time | B / A [95 %] | |",
        "|" + "---|" * (len(CELL) + 3),
    ]
    for row in lines:
        verdict = "within noise" if row["within_noise"] else ""
        if not verdict:
            verdict = "slower" if row["ratio"] > 1 else "faster"
        cell = " | ".join(str(row[name]) for name in CELL)
        span = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        text.append(f"| {cell} | {row['kind']} | {span} | {verdict} |")
    for kind in KINDS:
        ratios = [row["ratio"] for row in lines if row["kind"] == kind]
        if ratios:
            low, middle, high = np.percentile(ratios, (25, 50, 75))
            text.append(
                f"\n{kind}: median {middle:.3f} over {len(ratios)} cells, "
                f"quartiles {low:.3f} to {high:.3f}"
            )
    return "\n".join(text)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxrec.benchmark.compare", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("a", help="folder of a benchmark run, the base")
    parser.add_argument("b", help="folder of another run")
    parser.add_argument("--output", default="", help="JSON file of the lines")
    args = parser.parse_args()
    try:
        lines = compare(load(args.a), load(args.b))
    except DataError as error:
        parser.error(str(error))
    print(markdown(lines))
    if args.output:
        workdir.write_text(pathlib.Path(args.output), json.dumps(lines, indent=1) + "\n")
    sys.exit(0)


if __name__ == "__main__":
    main()
