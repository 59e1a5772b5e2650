"""Two runs of the benchmark as a table of ratios that knows what is noise.

    python -m jaxrec.benchmark.compare runs/before runs/after

Cells are paired by method, history, segments, tokens and batch; a ratio is B's median over A's,
with a 95 % bootstrap interval over the rounds of both. `within noise` where it contains 1.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

import numpy as np

CELL = ("method", "history", "segments", "tokens", "batch")
KINDS = {"request": "rounds_ms", "training step": "train_rounds_ms"}


class CompareError(ValueError):
    """Folders that cannot be compared: names the file and what to do."""


def load(folder: str) -> list[dict[str, Any]]:
    """Rows of the last report of a benchmark's folder."""
    path = pathlib.Path(folder) / "report.json"
    if not path.is_file():
        raise CompareError(
            f"{path}: not there; make it with python -m jaxrec.benchmark --output={folder}"
        )
    try:
        rows = json.loads(path.read_text())["rows"]
        _ = [[row[name] for name in CELL] for row in rows]
        return rows
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CompareError(f"{path}: not a report of jaxrec.benchmark ({error!r})") from None


def ratio(
    before: list[float], after: list[float], resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """(median of after / median of before, low, high) with a 95 % bootstrap interval."""
    rng = np.random.default_rng(seed)
    drawn = [
        np.median(rng.choice(np.asarray(values), (resamples, len(values))), axis=1)
        for values in (before, after)
    ]
    low, high = np.percentile(drawn[1] / drawn[0], (2.5, 97.5))
    return float(np.median(after) / np.median(before)), float(low), float(high)


def compare(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for every cell and kind of time that both runs have.

    Raises CompareError when no cell is in both.
    """
    found = []
    others = {tuple(row[name] for name in CELL): row for row in after}
    for row in before:
        other = others.get(tuple(row[name] for name in CELL))
        if other is None:
            continue
        for kind, name in KINDS.items():
            if not row.get(name) or not other.get(name):
                continue
            middle, low, high = ratio(row[name], other[name])
            found.append(
                {
                    **{key: row[key] for key in CELL},
                    "kind": kind,
                    "ratio": middle,
                    "low": low,
                    "high": high,
                    "within_noise": low <= 1 <= high,
                }
            )
    if not found:
        raise CompareError("no cell was measured in both: compare runs of the same shapes")
    return found


def markdown(lines: list[dict[str, Any]]) -> str:
    """The table, and what all cells together say."""
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
        found = [row["ratio"] for row in lines if row["kind"] == kind]
        if found:
            low, middle, high = np.percentile(found, (25, 50, 75))
            text.append(
                f"\n{kind}: median {middle:.3f} over {len(found)} cells, "
                f"quartiles {low:.3f} to {high:.3f}"
            )
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxrec.benchmark.compare", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("a", help="folder of a benchmark, the base")
    parser.add_argument("b", help="folder of another")
    parser.add_argument("--output", default="", help="JSON file of the lines")
    args = parser.parse_args()
    try:
        lines = compare(load(args.a), load(args.b))
    except CompareError as error:
        parser.error(str(error))
    print(markdown(lines))
    if args.output:
        pathlib.Path(args.output).write_text(json.dumps(lines, indent=1) + "\n")
    sys.exit(0)


if __name__ == "__main__":
    main()
